package pipelock_test

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"bottle/bottle"
	"bottle/bottle/pipelock"
)

// held is a listening socket as init holds it: a descriptor that outlives each gate.
func held(t *testing.T) (f *os.File, addr string) {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		t.Fatalf("%T", l)
	}
	if f, err = tcp.File(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f, l.Addr().String()
}

// inherit is what a daemon makes of the descriptor that it inherited.
func inherit(t *testing.T, f *os.File) net.Listener {
	t.Helper()
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// A gate that ends does not take the socket with it: who comes before the next one waits.
func TestInheritedListenerOutlivesTheGate(t *testing.T) {
	port := echo(t)
	sock, addr := held(t)
	gate := func() *running {
		return start(t, func(c *pipelock.GateConfig) { c.Listener = inherit(t, sock) }, entry("a.test", port))
	}
	first := gate()
	if first.addr != addr {
		t.Fatalf("serves on %s, inherited %s", first.addr, addr)
	}
	if c, a := first.connect(fmt.Sprintf("a.test:%d", port)); c == nil {
		t.Fatalf("%+v", a)
	} else {
		_ = c.Close() // or the gate would wait for it
	}
	if err := first.stop(); err != nil {
		t.Fatal(err)
	}

	var waiting []net.Conn
	for range 5 {
		c, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatalf("between two gates: %v", err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if _, err := fmt.Fprintf(c, "CONNECT a.test:%d HTTP/1.1\r\nHost: a.test\r\n\r\n", port); err != nil {
			t.Fatal(err)
		}
		waiting = append(waiting, c)
	}
	gate()
	for _, c := range waiting {
		if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: http.MethodConnect})
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != http.StatusOK {
			t.Errorf("from the backlog: %s", res.Status)
		}
		ping(t, c)
	}
}

func TestListenerMustBeOfLoopback(t *testing.T) {
	config := filepath.Join(t.TempDir(), "pipelock.yaml")
	if err := os.WriteFile(config, sealed(t), 0o600); err != nil {
		t.Fatal(err)
	}
	for network, addr := range map[string]string{"tcp": "0.0.0.0:0", "unix": filepath.Join(t.TempDir(), "s")} {
		l, err := (&net.ListenConfig{}).Listen(t.Context(), network, addr)
		if err != nil {
			t.Fatal(err)
		}
		_, err = pipelock.NewGate(pipelock.GateConfig{Config: config, Listener: l, Logger: slog.New(slog.DiscardHandler)})
		if err == nil || !strings.Contains(err.Error(), "loopback") {
			t.Errorf("%s %s: %v", network, l.Addr(), err)
		}
		if err := l.Close(); err != nil {
			t.Errorf("a listener that was refused is still the caller's: %v", err)
		}
	}
}

// What the gate says of itself goes to Report and not into a file.
func TestReport(t *testing.T) {
	var mu sync.Mutex
	var got []bottle.DaemonStatus
	r := start(t, func(c *pipelock.GateConfig) {
		c.Report = func(st bottle.DaemonStatus) error {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, st)
			return errors.New("nobody listens")
		}
	}, entry("a.test"))
	r.change(sealed(t, entry("b.test")))
	r.change([]byte("torn"))
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(r.status); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a status file beside Report: %v", err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(got) < 4 {
		t.Fatalf("%d reports: %+v", len(got), got)
	}
	revisions := map[bottle.Hash]bool{}
	for _, st := range got {
		revisions[st.Revision] = true
		if st.PID != os.Getpid() || st.Listen != r.addr || st.Instance != got[0].Instance {
			t.Errorf("%+v", st)
		}
	}
	refused := slices.ContainsFunc(got, func(st bottle.DaemonStatus) bool { return st.Refused != nil })
	if len(revisions) != 2 || !refused {
		t.Errorf("%d revisions, refused %v: %+v", len(revisions), refused, got)
	}
	if !strings.Contains(r.log.String(), "nobody listens") {
		t.Error("a report that was not heard is not in the log")
	}
}
