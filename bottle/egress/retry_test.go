package egress

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// A fakeHop is a pipelock that does with each connection what answer does, then closes it.
type fakeHop struct {
	addr  string
	tries atomic.Int32
}

func newFakeHop(t *testing.T, answer func(*net.TCPConn)) *fakeHop {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeHop{addr: l.Addr().String()}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			f.tries.Add(1)
			answer(c)
			_ = c.Close()
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	return f
}

// readHead reads a CONNECT, so that the close after it is no reset.
func readHead(c *net.TCPConn) {
	var head strings.Builder
	for b := make([]byte, 1024); !strings.HasSuffix(head.String(), "\r\n\r\n"); {
		n, err := c.Read(b)
		head.Write(b[:n])
		if err != nil {
			return
		}
	}
}

func say(s string) func(*net.TCPConn) {
	return func(c *net.TCPConn) {
		readHead(c)
		_, _ = io.WriteString(c, s)
	}
}

// freeAddr is an address at which nobody listens.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // a test's listener
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// A pipelock that is gone is waited for, and not for ever.
func TestRetryLasts(t *testing.T) {
	place := authority{"a.example.com", 443}
	connect := func(ctx context.Context, h *hop) error {
		_, err := h.connect(ctx, place)
		return err
	}
	dial := func(ctx context.Context, h *hop) error {
		_, err := h.dial(ctx)
		return err
	}
	for _, tc := range []struct {
		name string
		addr string
		try  func(context.Context, *hop) error
		want error
	}{
		{"refused", freeAddr(t), connect, syscall.ECONNREFUSED},
		{"refused, plain", freeAddr(t), dial, syscall.ECONNREFUSED},
		{"closed unanswered", newFakeHop(t, readHead).addr, connect, io.ErrUnexpectedEOF},
		{"reset unanswered", newFakeHop(t, func(c *net.TCPConn) { _ = c.SetLinger(0) }).addr, connect, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // for a retry without end
				defer cancel()
				start := time.Now()
				err := tc.try(ctx, newHop(tc.addr, "", nil))
				if !errors.Is(err, errHopDown) || tc.want != nil && !errors.Is(err, tc.want) {
					t.Error(err)
				}
				if took := time.Since(start); took > hopRetry || took < hopRetry-200*time.Millisecond {
					t.Errorf("it was waited for %s", took)
				}
			})
		})
	}
}

// The wait ends with the request.
func TestRetryEndsWithItsRequest(t *testing.T) {
	addr := freeAddr(t)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		start := time.Now()
		if _, err := newHop(addr, "", nil).dial(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 300*time.Millisecond {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
	})
}

// Once some of an answer has come there is no second CONNECT.
func TestNoRetryAfterAnAnswer(t *testing.T) {
	for _, tc := range []struct{ name, answer, want string }{
		{"half an answer", "HTTP/1.1 200", "unexpected EOF"},
		{"one byte", "H", "malformed"},
		{"a head without end", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", maxHopHead), ""},
		{"a refusal", "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", "403"},
		{"a refusal cut short", "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 20\r\n\r\nno", "502"},
		{"opened, then closed", "HTTP/1.1 200 OK\r\n\r\n", "nil"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFakeHop(t, say(tc.answer))
			c, err := newHop(f.addr, "", nil).connect(t.Context(), authority{"a.example.com", 443})
			if err == nil {
				if b, err := io.ReadAll(c); err != nil || len(b) > 0 {
					t.Errorf("%q %v", b, err)
				}
				_ = c.Close()
			}
			if (err == nil) != (tc.want == "nil") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Error(err)
			}
			if n := f.tries.Load(); n != 1 {
				t.Errorf("%d CONNECTs", n)
			}
		})
	}
}

// A port that refuses connections for a moment loses nothing.
func TestRetryReachesAPortThatComesUp(t *testing.T) {
	addr := freeAddr(t)
	h, attempts := newHop(addr, "", nil), 0
	served := make(chan error, 1)
	h.dialer.Control = func(string, string, syscall.RawConn) error {
		if attempts++; attempts != 4 {
			return nil
		}
		l, err := net.Listen("tcp", addr) //nolint:noctx // a test's listener
		if err != nil {
			return err
		}
		go func() {
			defer l.Close()
			c, err := l.Accept()
			if err == nil {
				_, err = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\nearly")
				_ = c.Close()
			}
			served <- err
		}()
		return nil
	}
	c, err := h.connect(t.Context(), authority{"a.example.com", 443})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if b, _ := io.ReadAll(c); string(b) != "early" || attempts != 4 {
		t.Errorf("%q after %d attempts", b, attempts)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// What the old pipelock refused, the next try takes to the new one.
func TestRetryGoesToTheNewPipelock(t *testing.T) {
	for name, try := range map[string]func(*hop) (net.Conn, error){
		"connect": func(h *hop) (net.Conn, error) { return h.connect(t.Context(), authority{"a.example.com", 443}) },
		"dial":    func(h *hop) (net.Conn, error) { return h.dial(t.Context()) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeHop(t, say("HTTP/1.1 200 OK\r\n\r\n"))
			h, attempts := newHop(freeAddr(t), "", nil), 0
			h.dialer.Control = func(string, string, syscall.RawConn) error {
				if attempts++; attempts == 2 {
					h.addr.Store(&f.addr) // this try goes to the old one still
				}
				return nil
			}
			c, err := try(h)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_, _ = io.WriteString(c, "HEAD / HTTP/1.1\r\n\r\n")
			_, _ = io.ReadAll(c) // until it was accepted, and closed
			if attempts != 3 || f.tries.Load() != 1 {
				t.Errorf("%d attempts, %d to the new one", attempts, f.tries.Load())
			}
		})
	}
}
