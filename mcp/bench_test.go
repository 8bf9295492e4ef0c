package mcp_test

import (
	"encoding/json"
	"io"
	"path/filepath"
	"testing"

	"bottle/mcp"
)

// BenchmarkCall measures one tool call, a check_access, at three distances: in memory, over
// the socket, and through the bridge.
func BenchmarkCall(b *testing.B) {
	const line = `{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "check_access", "arguments": {"url": "https://api.example.com/v1"}}}`
	b.Run("memory", func(b *testing.B) {
		srv, err := mcp.NewServer(mcp.Config{Queue: newFakeQueue(), Enforcer: &fakeEgress{}})
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			if _, err := json.Marshal(srv.HandleMessage(b.Context(), json.RawMessage(line))); err != nil {
				b.Fatal(err)
			}
		}
	})
	path := filepath.Join(b.TempDir(), "mcp.sock")
	serve(b, path, newFakeQueue())
	b.Run("socket", func(b *testing.B) {
		c := dial(b, path)
		defer c.nc.Close()
		for b.Loop() {
			if _, err := io.WriteString(c.nc, line+"\n"); err != nil || !c.out.Scan() {
				b.Fatal(err, c.out.Err())
			}
		}
	})
	b.Run("bridge", func(b *testing.B) {
		in, out := newBridged(b, path)
		for b.Loop() {
			if _, err := io.WriteString(in, line+"\n"); err != nil || !out.Scan() {
				b.Fatal(err, out.Err())
			}
		}
	})
}
