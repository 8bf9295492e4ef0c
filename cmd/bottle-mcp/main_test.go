package main

import (
	"bytes"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	absent := filepath.Join(t.TempDir(), "absent.sock")
	const call = `{"jsonrpc": "2.0", "id": 3, "method": "tools/list"}` + "\n"
	for name, c := range map[string]struct {
		args           []string
		env, in        string
		code           int
		stdout, stderr string
	}{
		"the end of the input":        {args: []string{"--socket", absent}},
		"a bottle that is not there":  {args: []string{"--socket", absent, "--wait", "10ms"}, in: call, stdout: `{"jsonrpc":"2.0","id":3,"error":{"code":-32000,"message":"bottle is not running: dial unix ` + absent},
		"the socket from environment": {env: absent, args: []string{"--wait", "10ms"}, in: call, stdout: absent},
		"help":                        {args: []string{"--help"}, stderr: "usage: bottle-mcp"},
		"an unknown flag":             {args: []string{"--frobnicate"}, code: 2, stderr: "usage: bottle-mcp"},
		"an argument":                 {args: []string{"x"}, code: 2, stderr: "usage: bottle-mcp"},
		"no time to wait":             {args: []string{"--wait", "0s"}, code: 2, stderr: "usage: bottle-mcp"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("BOTTLE_MCP_SOCKET", c.env)
			var stdout, stderr bytes.Buffer
			code := run(c.args, io.NopCloser(strings.NewReader(c.in)), &stdout, &stderr)
			if code != c.code || !strings.Contains(stdout.String(), c.stdout) || !strings.Contains(stderr.String(), c.stderr) {
				t.Errorf("exit code %d, stdout %q, stderr %q", code, &stdout, &stderr)
			}
		})
	}
}

func TestRunForwards(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mcp.sock")
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	echoed := make(chan error, 1)
	go func() { // a server that answers each request, also the bridge's own, with its id
		nc, err := l.Accept()
		if err != nil {
			echoed <- err
			return
		}
		defer nc.Close()
		b := make([]byte, 4096)
		for {
			n, err := nc.Read(b)
			if err != nil {
				echoed <- nil
				return
			}
			for line := range strings.Lines(string(b[:n])) {
				_, rest, _ := strings.Cut(line, `"id":`)
				id, _, _ := strings.Cut(rest, ",")
				if _, err := io.WriteString(nc, `{"jsonrpc":"2.0","id":`+id+`,"result":{}}`+"\n"); err != nil {
					echoed <- err
					return
				}
			}
		}
	}()
	var stdout bytes.Buffer
	code := run([]string{"--socket", path}, io.NopCloser(strings.NewReader(`{"jsonrpc":"2.0","id":"7","method":"ping"}`)), &stdout, io.Discard)
	if got := stdout.String(); code != 0 || got != `{"jsonrpc":"2.0","id":"7","result":{}}`+"\n" {
		t.Errorf("exit code %d, stdout %q", code, got)
	}
	if err := <-echoed; err != nil {
		t.Error(err)
	}
}
