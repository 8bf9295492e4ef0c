package launch

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"bottle/bottle"
	"bottle/bottle/pipelock"
)

// An agent in the sandbox reaches what it is there for, through the real bundle: egress, which
// asks for the secret, and the MCP server.
func TestSandboxReachesTheBundle(t *testing.T) {
	if os.Getenv(envMCP) != "" {
		t.Log("no compiler here: the first run of these tests has seen to it")
		return
	}
	d := newDen(t)
	bin := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", bin+"/", "bottle/cmd/bottle-sidecars", "bottle/cmd/bottle-supervise")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the bundle: %v\n%s", err, out)
	}
	m := bottle.DefaultManifest()
	m.Name = "box"
	routes, err := bottle.NewRoutes([]bottle.Route{{Host: "allowed.example.com"}})
	if err != nil {
		t.Fatal(err)
	}
	gate, err := pipelock.New(bottle.Allowlist(routes.Routes()))
	if err != nil {
		t.Fatal(err)
	}
	var f Files
	if f.Routes, _, err = routes.Bytes(); err != nil {
		t.Fatal(err)
	}
	if f.Pipelock, _, err = gate.Bytes(); err != nil {
		t.Fatal(err)
	}
	if err := Prepare(d.dir, m, f); err != nil {
		t.Fatal(err)
	}
	local, err := NewLocal(LocalConfig{Dir: d.dir, Sidecars: filepath.Join(bin, "bottle-sidecars"), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = local.Stop(context.Background()) })
	if _, err := local.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := local.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	box, err := NewSandbox(t.Context(), SandboxConfig{Dir: d.dir, Workspace: d.work, MCP: d.box.mcp}) // of this start's secret
	if err != nil {
		t.Fatal(err)
	}
	d.box = box
	var mcp struct {
		Servers map[string]struct {
			Command string
			Args    []string
		} `json:"mcpServers"`
	}
	if _, out := d.run("cat", "/etc/bottle/mcp.json"); json.Unmarshal([]byte(out), &mcp) != nil {
		t.Fatalf("no MCP configuration: %s", out)
	}
	server := mcp.Servers["bottle"]
	for _, tt := range []struct{ name, script, want string }{
		{"what egress enforces", `curl -sS -H 'Accept: application/json' http://egress.bottle.internal/routes`, "allowed.example.com"},
		{"a refusal inside TLS, by the bottle's CA", `curl -sS https://forbidden.example.com/`, "forbidden.example.com"},
		{"without the secret", `curl -sS --proxy http://127.0.0.1:3128 http://allowed.example.com/`, "proxy"},
		{"the MCP server", `echo '{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}' | ` + server.Command + " " + strings.Join(server.Args, " "), `"serverInfo"`},
		{"past the proxy", `curl -sS --noproxy '*' --connect-timeout 2 http://192.0.2.1/ 2>&1`, "Couldn't connect"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inner := *d
			inner.t = t
			if _, out := inner.run("sh", "-c", tt.script); !strings.Contains(out, tt.want) {
				t.Errorf("%q; want %q", out, tt.want)
			}
		})
	}
}
