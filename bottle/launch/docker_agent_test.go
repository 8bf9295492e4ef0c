package launch_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"bottle/bottle"
	"bottle/bottle/launch"
)

func TestDockerAgent(t *testing.T) {
	t.Parallel()
	d := engine(t)
	if d == nil {
		return
	}
	p := newPot(t, d, func(m *bottle.Manifest) {
		// Neither compose nor YAML may make anything of it.
		m.Agent.Workspace = filepath.Join(t.TempDir(), "a $HOME ${b} #c")
		if err := os.Mkdir(m.Agent.Workspace, 0o755); err != nil {
			t.Fatal(err)
		}
	})
	p.up(t)

	for name, c := range map[string]struct {
		argv  []string
		input string
		code  int
		out   string
	}{
		"success":             {argv: []string{"true"}},
		"an exit code":        {argv: []string{"sh", "-c", "exit 42"}, code: 42},
		"killed by a signal":  {argv: []string{"sh", "-c", "kill -9 $$"}, code: 137},
		"no such program":     {argv: []string{"sh", "-c", "exec no-such-program"}, code: 127},
		"input and its end":   {argv: []string{"sh", "-c", "cat; echo end"}, input: "one\ntwo\n", out: "one\ntwo\nend\n"},
		"both outputs":        {argv: []string{"sh", "-c", "echo a >&2; sleep 0.3; echo b"}, out: "a\nb\n"},
		"much output":         {argv: []string{"sh", "-c", "yes | head -c 1000000 | tail -c 4"}, out: "y\ny\n"},
		"input that is left":  {argv: []string{"sh", "-c", "exit 3"}, input: strings.Repeat("x", 1<<20), code: 3},
		"in the workspace":    {argv: []string{"pwd"}, out: "/workspace\n"},
		"a home of its own":   {argv: []string{"sh", "-c", "cd && pwd && touch x && echo ok"}, out: "/home/agent\nok\n"},
		"the bridge":          {argv: []string{"sh", "-c", "bottle-mcp --help 2>&1 | head -1"}, out: "usage: bottle-mcp [--socket PATH] [--wait DURATION]\n"},
		"the socket":          {argv: []string{"sh", "-c", "[ -S $BOTTLE_MCP_SOCKET ] && echo $BOTTLE_MCP_SOCKET"}, out: "/run/bottle/mcp.sock\n"},
		"the CA":              {argv: []string{"sh", "-c", "grep -l BEGIN $SSL_CERT_FILE $NODE_EXTRA_CA_CERTS"}, out: "/etc/bottle/ca-bundle.pem\n/etc/bottle/ca-bundle.pem\n"},
		"a background output": {argv: []string{"sh", "-c", "sleep 600 & exit 7"}, code: 7},
	} {
		t.Run(name, func(t *testing.T) {
			code, out := p.agent(t, c.input, launch.Agent{Argv: c.argv})
			if code != c.code || c.out != "" && out != c.out {
				t.Errorf("code %d, output %q; want %d, %q", code, out, c.code, c.out)
			}
		})
	}

	t.Run("a directory of the workspace, as on the host", func(t *testing.T) {
		sub := filepath.Join(p.m.Agent.Workspace, "sub")
		if err := os.Mkdir(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		_, out := p.agent(t, "", launch.Agent{Argv: []string{"sh", "-c", "pwd; echo from inside > made; echo $EXTRA"}, Dir: sub, Env: []string{"EXTRA=more"}})
		b, err := os.ReadFile(filepath.Join(sub, "made"))
		if out != "/workspace/sub\nmore\n" || string(b) != "from inside\n" {
			t.Errorf("%q, %q, %v", out, b, err)
		}
	})

	t.Run("MCP through the bridge", func(t *testing.T) {
		const hello = `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}` + "\n"
		code, out := p.agent(t, hello, launch.Agent{Argv: []string{"bottle-mcp"}})
		if code != 0 || !strings.Contains(out, `"serverInfo"`) {
			t.Errorf("%d, %q", code, out)
		}
	})

	t.Run("interrupted, it gets TERM", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		out := tempFile(t, "")
		in, keep, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		defer keep.Close()
		var code int
		var wg sync.WaitGroup
		wg.Go(func() {
			code, err = p.RunAgent(ctx, launch.Agent{Argv: []string{"sh", "-c", `trap "echo bye; exit 9" TERM; echo up; while :; do sleep 0.05; done`}, In: in, Out: out, Err: out})
		})
		eventually(t, func() string {
			if b, _ := os.ReadFile(out.Name()); string(b) != "up\n" {
				return "it is not up"
			}
			return ""
		})
		cancel()
		wg.Wait()
		if b, _ := os.ReadFile(out.Name()); code != 9 || err != nil || string(b) != "up\nbye\n" {
			t.Errorf("code %d, %v, output %q", code, err, b)
		}
	})

	t.Run("on a terminal", func(t *testing.T) { testTerminal(t, p) })
	t.Run("what can't be started", func(t *testing.T) { testUnstartable(t, p) })
	t.Run("the MCP configuration", func(t *testing.T) { testMCPConfig(t, p) })
	t.Run("killed alone", func(t *testing.T) { testAgentKilled(t, p) })
}

// A terminal's user types at ours; what the agent prints comes out of it.
func testTerminal(t *testing.T, p *pot) {
	ours, theirs, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	defer theirs.Close()
	if err := pty.Setsize(theirs, &pty.Winsize{Rows: 31, Cols: 101}); err != nil {
		t.Fatal(err)
	}
	before, err := unix.IoctlGetTermios(int(theirs.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var screen bytes.Buffer
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, err := ours.Read(buf)
			mu.Lock()
			screen.Write(buf[:n])
			mu.Unlock()
			if err != nil {
				return
			}
		}
	})
	sees := func(what string) {
		t.Helper()
		eventually(t, func() string {
			mu.Lock()
			defer mu.Unlock()
			if _, after, ok := strings.Cut(screen.String(), what); ok {
				screen.Reset()
				screen.WriteString(after)
				return ""
			}
			return "no " + what + " in " + screen.String()
		})
	}
	types := func(keys string) {
		t.Helper()
		if _, err := io.WriteString(ours, keys); err != nil {
			t.Fatal(err)
		}
	}
	ended := make(chan struct{})
	var code int
	var runErr error
	wg.Go(func() {
		defer close(ended)
		code, runErr = p.RunAgent(t.Context(), launch.Agent{Argv: []string{"sh"}, In: theirs, Out: theirs, Err: theirs, TTY: true, Env: []string{"PS1=ready>", "TERM=dumb"}})
	})
	sees("ready>")
	eventually(t, func() string { // the size follows a moment after the start
		types("stty size\r")
		mu.Lock()
		defer mu.Unlock()
		if !strings.Contains(screen.String(), "31 101") {
			return "no size: " + screen.String()
		}
		return ""
	})
	if err := pty.Setsize(theirs, &pty.Winsize{Rows: 40, Cols: 90}); err != nil {
		t.Fatal(err)
	}
	// The kernel tells who has the terminal; this process has not, so it is told by hand.
	if err := unix.Kill(os.Getpid(), unix.SIGWINCH); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		types("stty size\r")
		mu.Lock()
		defer mu.Unlock()
		if !strings.Contains(screen.String(), "40 90") {
			return "no new size: " + screen.String()
		}
		return ""
	})
	types("sh -c 'trap \"echo inter\"rupted\\;exit INT; echo wai\"\"ting; while :; do sleep 0.05; done'\r")
	sees("waiting")
	types("\x03")
	sees("interrupted")
	sees("ready>")
	types("stty -echo -ixon; echo quie\"\"tly; cat -v\r")
	sees("quietly")
	types("\x10\x11x\r") // Ctrl-P Ctrl-Q would let go of it
	sees("^P^Qx")
	types("\x04")
	sees("ready>")
	types("exit 5\r")
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		t.Fatal("it does not end")
	}
	if code != 5 || runErr != nil {
		t.Errorf("code %d, %v", code, runErr)
	}
	after, err := unix.IoctlGetTermios(int(theirs.Fd()), unix.TCGETS)
	if err != nil || *after != *before {
		t.Errorf("the terminal was left as %+v, %v", after, err)
	}
	if err := errors.Join(theirs.Close(), ours.Close()); err != nil {
		t.Error(err)
	}
	wg.Wait()
}
