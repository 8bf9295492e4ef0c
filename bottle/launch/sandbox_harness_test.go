package launch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bottle/bottle"
)

// A den is a sandbox over a state directory without a bundle, and a workspace with the test
// program in it.
type den struct {
	t    *testing.T
	dir  *bottle.Dir
	box  *Sandbox
	work string
}

// envMCP names a bottle-mcp that was built already, for those who can't.
const envMCP = "BOTTLE_TEST_MCP"

// mcpProgram is bottle-mcp as it ships.
func mcpProgram(t *testing.T) string {
	t.Helper()
	if path := os.Getenv(envMCP); path != "" {
		return path
	}
	path := filepath.Join(t.TempDir(), "bottle-mcp")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "bottle/cmd/bottle-mcp")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build bottle-mcp: %v\n%s", err, out)
	}
	return path
}

// newDen makes one.
func newDen(t *testing.T) *den {
	t.Helper()
	// Not t.TempDir: with the test's name in it the sockets' paths may not fit in sun_path.
	base, err := os.MkdirTemp("", "bx") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	if base, err = filepath.EvalSymlinks(base); err != nil {
		t.Fatal(err)
	}
	d := &den{t: t, work: filepath.Join(base, "work")}
	if err := os.Mkdir(d.work, 0o700); err != nil {
		t.Fatal(err)
	}
	if d.dir, err = bottle.NewDir(filepath.Join(base, "state", "box")); err != nil {
		t.Fatal(err)
	}
	if err := d.dir.Create(); err != nil {
		t.Fatal(err)
	}
	m := bottle.DefaultManifest()
	m.Name = "box"
	if err := Prepare(d.dir, m, Files{}); err != nil {
		t.Fatal(err)
	}
	if d.box, err = NewSandbox(t.Context(), SandboxConfig{Dir: d.dir, Workspace: d.work, MCP: mcpProgram(t)}); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d.work, "probe"), b, 0o700); err != nil {
		t.Fatal(err)
	}
	return d
}

// run runs an agent without a terminal and returns its exit code and what it wrote, to either.
func (d *den) run(argv ...string) (code int, out string) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), 60*time.Second)
	defer cancel()
	code, out, err := d.start(ctx, Agent{Argv: argv})
	if err != nil {
		d.t.Fatalf("%v: %v\n%s", argv, err, out)
	}
	return code, out
}

func (d *den) start(ctx context.Context, a Agent) (code int, out string, err error) {
	d.t.Helper()
	null, err := os.Open(os.DevNull)
	if err != nil {
		d.t.Fatal(err)
	}
	defer null.Close()
	f, err := os.OpenFile(filepath.Join(d.t.TempDir(), "out"), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	a.In, a.Out, a.Err = null, f, f
	code, err = d.box.RunAgent(ctx, a)
	b, readErr := os.ReadFile(f.Name())
	if readErr != nil {
		d.t.Fatal(readErr)
	}
	return code, string(b), err
}

// try has the probe try something. It succeeds, or says why not.
func (d *den) try(what string, args ...string) error {
	d.t.Helper()
	code, out := d.run(append([]string{d.work + "/probe", probeArg, what}, args...)...)
	switch code {
	case probeDone:
		return nil
	case probeFailed:
		return errors.New(strings.TrimSpace(out))
	}
	d.t.Fatalf("probe %s: exit code %d\n%s", what, code, out)
	return nil
}

const (
	probeArg    = "probe:"
	probeDone   = 40
	probeFailed = 41
)

// The test program is also the probe, which runs in the sandbox.
func init() {
	if len(os.Args) < 3 || os.Args[1] != probeArg {
		return
	}
	if err := probes[os.Args[2]](os.Args[3:]); err != nil {
		fmt.Println(err)
		os.Exit(probeFailed)
	}
	os.Exit(probeDone)
}

// echo answers on l with what it is sent, until the test's end.
func echo(t *testing.T, l net.Listener) {
	t.Helper()
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b := make([]byte, 64)
				if n, err := c.Read(b); err == nil {
					_, _ = c.Write(bytes.ToUpper(b[:n]))
				}
			}()
		}
	}()
}
