package launch_test

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/docker/docker/api/types/container"

	"bottle/bottle/launch"
)

// A program that the engine can't start has the code that a shell has for it, and a reason that is not its output.
func testUnstartable(t *testing.T, p *pot) {
	for name, c := range map[string]struct {
		argv []string
		dir  string
		code int
		says string
		out  string
	}{
		"no such program":          {argv: []string{"no-such-program"}, code: 127, says: "no-such-program was not found in its image"},
		"no such path":             {argv: []string{"/etc/none"}, code: 127, says: "/etc/none was not found in its image"},
		"a directory":              {argv: []string{"/etc"}, code: 126, says: "/etc can't be executed"},
		"no such directory":        {argv: []string{"true"}, dir: "none", code: 126, says: "its working directory is not there"},
		"one that says so itself":  {argv: []string{"sh", "-c", "echo my word; exit 127"}, code: 127, out: "my word\n"},
		"one that sounds like it":  {argv: []string{"sh", "-c", "echo OCI runtime exec failed: no; exit 126"}, code: 126, out: "OCI runtime exec failed: no\n"},
		"one that begins like it":  {argv: []string{"sh", "-c", "printf OCI; exit 3"}, code: 3, out: "OCI"},
		"one that goes on from it": {argv: []string{"sh", "-c", "printf 'OCI runtime'; sleep 0.2; printf ' is fine'"}, out: "OCI runtime is fine"},
	} {
		t.Run(name, func(t *testing.T) {
			in, out := tempFile(t, ""), tempFile(t, "")
			code, err := p.RunAgent(t.Context(), launch.Agent{Argv: c.argv, Dir: c.dir, In: in, Out: out, Err: out})
			b, rerr := os.ReadFile(out.Name())
			if rerr != nil {
				t.Fatal(rerr)
			}
			if code != c.code || string(b) != c.out || (err != nil) != (c.says != "") {
				t.Errorf("code %d, %v, output %q", code, err, b)
			}
			if c.says != "" {
				says(t, err, c.says)
			}
		})
	}
}

// The bridge is named by its path, and starts whatever PATH is.
func testMCPConfig(t *testing.T, p *pot) {
	_, text := p.run(t, "cat", "/etc/bottle/mcp.json")
	var cfg struct {
		Servers map[string]struct {
			Command string
			Args    []string
		} `json:"mcpServers"`
	}
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		t.Fatal(err)
	}
	server := cfg.Servers["bottle"]
	argv := append([]string{"env", "PATH=/none", server.Command}, server.Args...)
	const hello = `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}` + "\n"
	if code, out := p.agent(t, hello, launch.Agent{Argv: argv}); code != 0 || !strings.Contains(out, `"serverInfo"`) {
		t.Errorf("%q: %d, %q", argv, code, out)
	}
}

// The agent's container is killed, and then removed, beside a bundle that goes on: it is brought back.
func testAgentKilled(t *testing.T, p *pot) {
	before, bundle := p.ids(t), p.status(t)
	in, keep, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer keep.Close()
	out := tempFile(t, "")
	var code int
	var runErr error
	var wg sync.WaitGroup
	wg.Go(func() {
		code, runErr = p.RunAgent(t.Context(), launch.Agent{Argv: []string{"sh", "-c", "echo up; cat"}, In: in, Out: out, Err: out})
	})
	eventually(t, func() string {
		if b, _ := os.ReadFile(out.Name()); !bytes.Equal(b, []byte("up\n")) {
			return "the agent is not up"
		}
		return ""
	})
	if err := p.dock.cli.ContainerKill(t.Context(), before.Agent, "KILL"); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if code != 137 {
		t.Errorf("code %d", code)
	}
	says(t, runErr, "the agent's container was killed from outside")
	// Without a keeper nobody brings it back, so nobody waits for that.
	_, err = p.RunAgent(t.Context(), launch.Agent{Argv: []string{"true"}, In: in, Out: out, Err: out})
	says(t, err, "its container does not run", "bottle restart "+p.m.Name)

	back := func() {
		t.Helper()
		eventually(t, func() string {
			if started, err := p.Ensure(t.Context()); started || err != nil {
				t.Fatalf("Ensure: %v, %v", started, err)
			}
			c, err := p.dock.cli.ContainerInspect(t.Context(), p.ids(t).Agent)
			if err != nil || !c.State.Running {
				return "it is not back"
			}
			return ""
		})
		if code, out := p.run(t, "sh", "-c", "pwd; ls -d /etc/bottle/ca.pem; cat /proc/net/route >/dev/null"); code != 0 || out != "/workspace\n/etc/bottle/ca.pem\n" {
			t.Errorf("%d, %q", code, out)
		}
	}
	back()
	if now := p.ids(t); now.Agent != before.Agent || now.Sidecars != before.Sidecars {
		t.Errorf("from %+v to %+v", before, now)
	}
	if err := p.dock.cli.ContainerRemove(t.Context(), before.Agent, container.RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	back()
	if now := p.ids(t); now.Agent == before.Agent || now.Sidecars != before.Sidecars {
		t.Errorf("from %+v to %+v", before, now)
	}
	if now := p.status(t); !now.StartedAt.Equal(bundle.StartedAt) {
		t.Error("the bundle was started anew")
	}
}
