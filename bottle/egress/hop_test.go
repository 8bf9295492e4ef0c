package egress_test

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"bottle/bottle"
	"bottle/bottle/egress"
)

// A pipelock that is being replaced closes connections unanswered. That is waited out: by
// then no byte of the request was sent.
func TestReplacedPipelockIsWaitedFor(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // a test's listener
	if err != nil {
		t.Fatal(err)
	}
	var drop atomic.Int32
	w := newWorld(t, []bottle.Route{whole("a.example.com")}, func(c *egress.Config) { c.Pipelock = l.Addr().String() })
	w.upstream("a.example.com", hello)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if drop.Add(-1) >= 0 {
				_ = c.Close()
				continue
			}
			up, err := net.Dial("tcp", w.gate.addr) //nolint:noctx // a test's relay
			if err != nil {
				_ = c.Close()
				continue
			}
			wg.Go(func() { _, _ = io.Copy(up, c); _ = up.Close() })
			wg.Go(func() { _, _ = io.Copy(c, up); _ = c.Close() })
		}
	})
	drop.Store(3)
	if a := w.get("https://a.example.com/"); a.status != 200 {
		t.Errorf("closed before the answer: %+v", a)
	}
	w.stop()
	_ = l.Close()
	wg.Wait()
}
