package bundle_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"bottle/bottle"
	"bottle/bottle/bundle"
)

// execMain is the launcher.
func execMain(daemon, root string, argv []string) int {
	dir, err := bottle.NewDir(root)
	if err == nil {
		err = bundle.Exec(bundle.LaunchConfig{
			Dir: dir, Daemon: daemon, Argv: argv, Env: os.Environ(), Warn: func(s string) { fmt.Fprintln(os.Stderr, s) },
		})
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// real names a binary of the real pipelock, for the tests that its stand-in passes.
const realPipelock = "BOTTLE_PIPELOCK"

// eachForeign runs a test with the stand-in and, where there is one, with the real pipelock.
func eachForeign(t *testing.T, f func(t *testing.T, b *foreignBed)) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	programs := map[string]string{"stand-in": exe}
	if bin := os.Getenv(realPipelock); bin != "" {
		programs["real"] = bin
	}
	for name, bin := range programs {
		t.Run(name, func(t *testing.T) {
			b := &foreignBed{bed: newBed(t), binary: bin, echo: echoServer(t)}
			b.config(bottle.BundleConfig{Egress: "127.0.0.1:0", Binary: bin})
			b.allow("localhost")
			f(t, b)
		})
	}
}

type foreignBed struct {
	*bed
	binary string
	echo   string // port of a server that gives back what it gets
}

// allow writes a config with these hosts, and more lines.
func (b *foreignBed) allow(hosts string, more ...string) bottle.Hash {
	return b.write(bottle.PipelockFile, "version: 1\nmode: strict\nforward_proxy: {enabled: true}\nssrf: {ip_allowlist: [127.0.0.0/8]}\napi_allowlist: ["+hosts+"]\n"+strings.Join(more, "\n")+"\n")
}

func (b *foreignBed) inForce(rev bottle.Hash) {
	b.t.Helper()
	eventually(b.t, "in force: "+rev.Short(), func() bool {
		d := b.daemonStatus(bottle.DaemonPipelock)
		return d.Revision == rev && d.Listen == b.hop() && d.PID == b.pipelock().PID
	})
}

func echoServer(t *testing.T) (port string) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0") //nolint:noctx // a test's
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
		}
	}()
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return port
}

// tunnel opens one by the pipelock in use, trying again as egress does.
func (b *foreignBed) tunnel() (c net.Conn) {
	b.t.Helper()
	eventually(b.t, "a tunnel", func() bool {
		var err error
		if c, err = net.Dial("tcp", b.hop()); err != nil { //nolint:noctx // a test's
			return false
		}
		_, _ = fmt.Fprintf(c, "CONNECT localhost:%s HTTP/1.1\r\nHost: localhost:%s\r\n\r\n", b.echo, b.echo)
		res, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: http.MethodConnect})
		if err == nil {
			_ = res.Body.Close() // empty, or of a connection that is closed below
			if res.StatusCode == http.StatusOK {
				return true
			}
		}
		_ = c.Close()
		return false
	})
	b.t.Cleanup(func() { _ = c.Close() })
	return c
}

func echoes(c net.Conn) error {
	if _, err := io.WriteString(c, "x"); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

func TestForeignReload(t *testing.T) {
	eachForeign(t, func(t *testing.T, b *foreignBed) {
		b.start()
		pid := b.ready().Daemons[bottle.DaemonPipelock].PID
		held := b.tunnel()
		var rev bottle.Hash
		for n := range 20 { // faster than it takes them: it drops the newest
			rev = b.allow(fmt.Sprintf("localhost, h%d.example.com", n))
			b.signal(bottle.SignalReloadPipelock)
		}
		b.inForce(rev)
		// There and back again.
		old := b.allow("localhost")
		b.signal(bottle.SignalReloadPipelock)
		b.inForce(old)
		b.allow("localhost, back.example.com")
		b.signal(bottle.SignalReloadPipelock)
		if got := b.allow("localhost"); got != old {
			t.Fatalf("the same file is %s and %s", old, got)
		}
		b.signal(bottle.SignalReloadPipelock)
		b.inForce(old)
		if now := b.pipelock().PID; now != pid {
			t.Errorf("process %d, was %d", now, pid)
		}
		if err := echoes(held); err != nil {
			t.Errorf("the tunnel: %v", err)
		}
	})
}

// What a reload refuses, a new process takes.
func TestForeignReplacement(t *testing.T) {
	eachForeign(t, func(t *testing.T, b *foreignBed) {
		b.start()
		b.ready()
		was := b.daemonStatus(bottle.DaemonPipelock)
		held := b.tunnel()
		rev := b.allow("localhost", "trusted_domains: [a.example.com]")
		b.signal(bottle.SignalReloadPipelock)
		eventually(t, "the refusal", func() bool {
			r := b.daemonStatus(bottle.DaemonPipelock).Refused
			return r != nil && r.Revision == rev && strings.Contains(r.Error, "security downgrade")
		})
		if now := b.daemonStatus(bottle.DaemonPipelock); now.Revision != was.Revision || now.PID != was.PID {
			t.Errorf("%+v", now)
		}
		b.signal(bottle.SignalReplacePipelock)
		b.inForce(rev)
		if b.hop() == was.Listen {
			t.Error("the old one is still in use")
		}
		if err := echoes(held); err != nil {
			t.Errorf("the held tunnel: %v", err)
		}
		if err := echoes(b.tunnel()); err != nil {
			t.Errorf("a new tunnel: %v", err)
		}
		_ = held.Close()
		eventually(t, "the old one ends", func() bool { _, gone := alive(was.PID); return gone })
	})
}

// In any mode but strict, hosts that nobody listed are reachable.
func TestForeignMustBeStrict(t *testing.T) {
	eachForeign(t, func(t *testing.T, b *foreignBed) {
		const balanced = "version: 1\nmode: balanced\nforward_proxy: {enabled: true}\napi_allowlist: [localhost]\n"
		b.start()
		b.ready()
		was := b.daemonStatus(bottle.DaemonPipelock)
		rev := b.write(bottle.PipelockFile, balanced)
		b.signal(bottle.SignalReplacePipelock)
		eventually(t, "the refusal", func() bool {
			r := b.daemonStatus(bottle.DaemonPipelock).Refused
			return r != nil && r.Revision == rev && strings.Contains(r.Error, `it runs in mode "balanced"`)
		})
		if now := b.pipelock(); now.PID != was.PID || b.hop() != was.Listen {
			t.Errorf("%+v", now)
		}
		b.stop()
		b.start()
		if code := b.wait(); code == 0 || !strings.Contains(b.output(), `daemon pipelock does not come up (5 tries): killed by SIGKILL: it runs in mode \"balanced\"`) {
			t.Errorf("code %d", code)
		}
	})
}

func TestForeignKilled(t *testing.T) {
	eachForeign(t, func(t *testing.T, b *foreignBed) {
		b.start()
		b.ready()
		was := b.pipelock().PID
		if err := unix.Kill(was, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := echoes(b.tunnel()); err != nil {
			t.Error(err)
		}
		if now := b.ready().Daemons[bottle.DaemonPipelock].PID; now == was {
			t.Error("it was not killed")
		}
	})
}

// Where the stand-in misbehaves at its start.
func TestForeignThatDoesNotComeUp(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ knob, want string }{
		{"PIPELOCKTEST_EXIT=out of luck", "a new one did not come up: exit code 1: out of luck"},
		{"PIPELOCKTEST_HANG=1", "a new one was not healthy in time; its last words: pipelocktest: hangs, as it was told"},
	} {
		t.Run(tt.knob, func(t *testing.T) {
			b := &foreignBed{bed: newBed(t), binary: exe, echo: echoServer(t)}
			b.config(bottle.BundleConfig{Egress: "127.0.0.1:0", Binary: exe})
			b.allow("localhost")
			b.start()
			b.ready()
			held := b.tunnel()
			knobs := b.dir.Live(bottle.PipelockFile) + ".knobs"
			if err := os.WriteFile(knobs, []byte(tt.knob+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			rev := b.allow("localhost, other.example.com")
			b.signal(bottle.SignalReplacePipelock)
			eventually(t, "the refusal", func() bool {
				r := b.daemonStatus(bottle.DaemonPipelock).Refused
				return r != nil && r.Revision == rev && strings.Contains(r.Error, tt.want)
			})
			if err := echoes(held); err != nil {
				t.Errorf("the held tunnel: %v", err)
			}
			if err := os.Remove(knobs); err != nil {
				t.Fatal(err)
			}
			b.signal(bottle.SignalReplacePipelock)
			b.inForce(rev)
		})
	}
}
