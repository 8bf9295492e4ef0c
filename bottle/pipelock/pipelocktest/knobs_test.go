package pipelocktest_test

import (
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The real one does so in about one run of five, for up to 30 s: its supervisor has to kill it.
func TestTunnelHoldsUpTheEnd(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := subject{"stand-in", exe}.start(t, open)
	c, code, body := p.tunnel(echo(t))
	if c == nil {
		t.Fatalf("%d %s", code, body)
	}
	p.signal(syscall.SIGTERM)
	p.until("nobody listens", func() bool { code, _ := p.get("/health"); return code == 0 })
	p.quiet()
	if err := echoes(c); err != nil {
		t.Errorf("the tunnel: %v", err)
	}
	select {
	case <-p.done:
		t.Error("ended with a tunnel open")
	default:
	}
}

// The stand-in alone: what makes it misbehave.
func TestKnobs(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := subject{"stand-in", exe}
	t.Run("exit", func(t *testing.T) {
		p := s.launch(t, open, "PIPELOCKTEST_EXIT=no more ports")
		if code := p.exit(); code != 1 || p.errors() != "no more ports\n" {
			t.Errorf("%d %q", code, p.errors())
		}
	})
	t.Run("file wins", func(t *testing.T) {
		p := s.launch(t, open, "PIPELOCKTEST_EXIT=no more ports", "PIPELOCKTEST_START_DELAY=1ms")
		p.exit()
		if err := os.WriteFile(p.live+".knobs", []byte("PIPELOCKTEST_EXIT=\nPIPELOCKTEST_RESOLVE=a.test=127.0.0.1\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		again := &proc{t: t, addr: freeAddr(t), live: p.live, unseen: p.unseen, done: make(chan struct{}), last: time.Now()}
		again.write(config("a.test"))
		again.run(s, "PIPELOCKTEST_EXIT=no more ports")
		again.up()
		_, port, err := net.SplitHostPort(site(t))
		if err != nil {
			t.Fatal(err)
		}
		if code, body := again.through("http://a.test:" + port + "/"); code != http.StatusOK {
			t.Errorf("%d %s", code, body)
		}
	})
	t.Run("hang", func(t *testing.T) {
		p := s.launch(t, open, "PIPELOCKTEST_HANG=1")
		p.until("hanging", func() bool { return strings.Contains(p.errors(), "hangs") })
		if code, _ := p.get("/health"); code != 0 || len(p.lines()) > 0 {
			t.Errorf("%d %+v", code, p.lines())
		}
		p.signal(syscall.SIGTERM)
		if code := p.exit(); code != 0 {
			t.Errorf("code %d", code)
		}
	})
	t.Run("ignore TERM", func(t *testing.T) {
		p := s.start(t, open, "PIPELOCKTEST_IGNORE_TERM=1")
		p.signal(syscall.SIGTERM)
		p.quiet()
		if code, _ := p.get("/health"); code != http.StatusOK {
			t.Errorf("%d", code)
		}
	})
	t.Run("no watch, slow reload", func(t *testing.T) {
		p := s.start(t, open, "PIPELOCKTEST_NO_WATCH=1", "PIPELOCKTEST_RELOAD_TIME=1ms")
		if err := os.WriteFile(p.live, []byte(closed), 0o600); err != nil {
			t.Fatal(err)
		}
		p.quiet()
		if p.loaded(closed) > 0 {
			t.Errorf("%+v", p.lines())
		}
		p.reload(closed)
	})
	t.Run("unknown", func(t *testing.T) {
		p := s.launch(t, open, "PIPELOCKTEST_HNAG=1")
		if code := p.exit(); code != 1 || !strings.Contains(p.errors(), "no such knob") {
			t.Errorf("%d %q", code, p.errors())
		}
	})
}
