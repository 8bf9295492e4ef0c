package bundle_test

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bottle/bottle"
	"bottle/bottle/bundle"
)

// A daemon that is killed refuses nobody: who comes while it is down waits for the next one, and
// the socket is the same.
func TestKilledDaemonRefusesNobody(t *testing.T) {
	b := newBed(t)
	b.start()
	st := b.ready()
	inode := func() uint64 {
		var s unix.Stat_t
		if err := unix.Stat(b.dir.MCPSocket(), &s); err != nil {
			t.Fatal(err)
		}
		if mode := s.Mode & 0o777; mode != 0o660 {
			t.Errorf("mcp.sock has mode %o", mode)
		}
		return s.Ino
	}
	before := inode()
	for _, tt := range []struct{ daemon, network, addr string }{
		{bottle.DaemonEgress, "tcp", b.proxy()},
		{bottle.DaemonPipelock, "tcp", b.hop()},
		{bottle.DaemonSupervise, "unix", b.dir.MCPSocket()},
	} {
		t.Run(tt.daemon, func(t *testing.T) {
			old := st.Daemons[tt.daemon].PID
			b.behave(tt.daemon, "slow")
			if err := unix.Kill(old, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			eventually(t, "it is gone", func() bool { runs, _ := alive(old); return !runs })
			for n := range 50 {
				c, err := dial(tt.network, tt.addr)
				if err != nil {
					t.Fatalf("connection %d is refused: %v", n, err)
				}
				defer c.Close()
				if n > 0 {
					continue
				}
				if pid, err := c.say("who"); err != nil || pid == old {
					t.Errorf("process %d answers: %v", pid, err)
				}
			}
			if _, err := os.Stat(b.dir.DaemonStatus(tt.daemon)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Error(err)
			}
		})
	}
	b.ready()
	if now := inode(); now != before {
		t.Errorf("mcp.sock is inode %d, and was %d", now, before)
	}
}

// proxy is the address of egress.
func (b *bed) proxy() string {
	var c bottle.BundleConfig
	if err := bottle.ReadJSON(b.dir.DaemonConfig(bottle.DaemonEgress), 0, &c); err != nil {
		b.t.Fatal(err)
	}
	return c.Egress
}

// What does not run has nothing in force, by the word of status/.
func TestDeadDaemonHasNoStatus(t *testing.T) {
	b := newBed(t)
	b.start()
	st := b.ready()
	b.behave(bottle.DaemonEgress, "mute")
	if err := unix.Kill(st.Daemons[bottle.DaemonEgress].PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.until("not ready", func(st bottle.InitStatus) bool { return !st.Ready })
	if _, err := os.Stat(b.dir.DaemonStatus(bottle.DaemonEgress)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the status of the dead one is still there: %v", err)
	}
}

// A socket that somebody else serves on is not taken from them, nor is a file that is none.
func TestSocketPathInUse(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		put        func(path string) (func(), error)
	}{
		{"served", "a live server answers there; stop it first", func(path string) (func(), error) {
			l, err := net.Listen("unix", path) //nolint:noctx // a test's
			if err != nil {
				return nil, err
			}
			return func() { _ = l.Close() }, nil
		}},
		{"a file", "there is something that is not a socket; move it away", func(path string) (func(), error) {
			return func() {}, os.WriteFile(path, []byte("x"), 0o600)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t)
			done, err := tt.put(b.dir.MCPSocket())
			if err != nil {
				t.Fatal(err)
			}
			defer done()
			b.start()
			if code := b.wait(); code != 1 || !strings.Contains(b.output(), tt.want) {
				t.Errorf("exit code %d, no %q", code, tt.want)
			}
		})
	}
}

func TestPortInUse(t *testing.T) {
	b := newBed(t)
	taken := listen(t)
	b.config(bottle.BundleConfig{Egress: taken})
	b.start()
	if code := b.wait(); code != 1 || !strings.Contains(b.output(), "egress.listen: listen on "+taken) {
		t.Errorf("exit code %d", code)
	}
}

// Started by hand, a daemon says what it lacks.
func TestInheritNothing(t *testing.T) {
	in, err := bundle.Inherit()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.Listener(bundle.FDProxy); err == nil || !strings.Contains(err.Error(), "started by bottle-sidecars init") {
		t.Errorf("%v", err)
	}
	if err := in.Report(bottle.DaemonStatus{}); err == nil {
		t.Error("a report went nowhere, and no error")
	}
	for name, env := range map[string][2]string{"no number": {"x", ""}, "too many": {"99", ""}, "names": {"2", "a"}} {
		t.Setenv("LISTEN_FDS", env[0])
		t.Setenv("LISTEN_FDNAMES", env[1])
		if _, err := bundle.Inherit(); !errors.Is(err, bottle.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	t.Setenv("LISTEN_FDS", "1")
	t.Setenv("LISTEN_FDNAMES", "proxy")
	t.Setenv("LISTEN_PID", "1") // meant for another
	if in, err = bundle.Inherit(); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Listener(bundle.FDProxy); err == nil {
		t.Error("another process' socket was taken")
	}
}

// The successor of an init that was killed takes its sockets over while its daemons still die.
func TestSuccessorTakesTheSocketsOver(t *testing.T) {
	b := newBed(t)
	b.config(bottle.BundleConfig{Egress: freePort(t)})
	for range 3 {
		b.start()
		b.ready()
		if c, err := dial("unix", b.dir.MCPSocket()); err != nil {
			t.Fatal(err)
		} else if _, err := c.say("hello"); err != nil {
			t.Fatal(err)
		}
		b.signal(bottle.Signal(unix.SIGKILL))
		b.wait()
	}
	start := time.Now()
	b.start()
	b.ready()
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	if code, _ := b.stop(); code != 0 {
		t.Errorf("code %d", code)
	}
	if _, err := os.Stat(b.dir.MCPSocket()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}
