package pipelock_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bottle/bottle"
	"bottle/bottle/pipelock"
)

// A pair is what init makes once for all gates of a bundle.
type pair struct{ handover, adopt *os.File }

func newPair(t testing.TB) *pair {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	p := &pair{os.NewFile(uintptr(fds[0]), "handover"), os.NewFile(uintptr(fds[1]), "adopt")}
	t.Cleanup(func() { _ = p.handover.Close(); _ = p.adopt.Close() })
	return p
}

func end(t testing.TB, f *os.File) *net.UnixConn {
	t.Helper()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		t.Fatalf("%T", c)
	}
	return u
}

// A heir is a gate with a pair, and what it reports.
type heir struct {
	*running
	drain   chan struct{}
	reports chan bottle.DaemonStatus
}

func (p *pair) start(t testing.TB, allow ...bottle.AllowEntry) *heir {
	t.Helper()
	h := &heir{drain: make(chan struct{}), reports: make(chan bottle.DaemonStatus, 1000)}
	h.running = start(t, func(c *pipelock.GateConfig) {
		c.Handover, c.Adopt, c.Drain = end(t, p.handover), end(t, p.adopt), h.drain
		c.Report = func(st bottle.DaemonStatus) error { h.reports <- st; return nil }
	}, allow...)
	return h
}

// until returns the first status from now on of which that is true.
func (h *heir) until(what string, ok func(counters map[string]uint64) bool) map[string]uint64 {
	h.t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		select {
		case st := <-h.reports:
			if ok(st.Counters) {
				return st.Counters
			}
		case <-timeout:
			h.t.Fatalf("%s: never", what)
		}
	}
}

// becomes is until for what the gate does not report by itself: a reload has it report.
func (h *heir) becomes(what string, ok func(counters map[string]uint64) bool) {
	h.t.Helper()
	h.reload <- struct{}{}
	h.until(what, func(c map[string]uint64) bool {
		if ok(c) {
			return true
		}
		if len(h.reports) == 0 {
			h.reload <- struct{}{}
		}
		return false
	})
}

// adopts waits until that many came from other gates.
func (h *heir) adopts(n uint64) {
	h.t.Helper()
	h.becomes("all are adopted", func(c map[string]uint64) bool { return c["adopted"] == n })
}

// yield tells the gate that another took over; what it reported before is of no use then.
func (h *heir) yield() {
	for len(h.reports) > 0 {
		<-h.reports
	}
	h.drain <- struct{}{}
}

// leave has the gate hand over all that it has and end.
func (h *heir) leave() map[string]uint64 {
	h.t.Helper()
	h.yield()
	return h.left()
}

func (h *heir) left() map[string]uint64 {
	h.t.Helper()
	h.until("nothing is open any more", func(c map[string]uint64) bool { return c["open"] == 0 })
	if err := h.stop(); err != nil {
		h.t.Fatal(err)
	}
	var last map[string]uint64
	for len(h.reports) > 0 {
		last = (<-h.reports).Counters
	}
	return last
}

// upstream serves each connection with f, and waits for all at the end.
func upstream(t testing.TB, f func(c *net.TCPConn)) int {
	t.Helper()
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := ln.AcceptTCP()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer c.Close()
				f(c)
			})
		}
	})
	t.Cleanup(func() { _ = ln.Close(); conns.Wait() })
	_, port, _ := strings.Cut(ln.Addr().String(), ":")
	var n int
	if _, err := fmt.Sscan(port, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// open opens a tunnel, and reads nothing but the answer to that.
func (h *heir) open(port int) *net.TCPConn {
	h.t.Helper()
	c, err := (&net.Dialer{}).DialContext(h.t.Context(), "tcp", h.addr)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = c.Close() })
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		h.t.Fatalf("%T", c)
	}
	if err := c.SetDeadline(time.Now().Add(5 * time.Minute)); err != nil {
		h.t.Fatal(err)
	}
	if _, err := fmt.Fprintf(c, "CONNECT a.test:%d HTTP/1.1\r\nHost: a.test\r\n\r\n", port); err != nil {
		h.t.Fatal(err)
	}
	got := make([]byte, len("HTTP/1.1 200 Connection established\r\n\r\n"))
	if _, err := io.ReadFull(c, got); err != nil || !strings.HasPrefix(string(got), "HTTP/1.1 200 ") {
		h.t.Fatalf("%q, %v", got, err)
	}
	return tcp
}

// talk writes numbers from seed on until stop, in pieces of any size, and says how many
// bytes it wrote. All that flows here shares two or so processors, so most of it is paced.
func talk(c *net.TCPConn, seed uint64, paced bool, stop <-chan struct{}) (sent uint64, err error) {
	defer func() { _ = c.CloseWrite() }()
	pace := time.NewTicker(20 * time.Millisecond)
	defer pace.Stop()
	w := bufio.NewWriterSize(c, 1+rand.IntN(16<<10)) // so that pieces end in the midst of numbers
	src := numbers{&seed}
	for b := make([]byte, 8<<10); ; {
		select {
		case <-stop:
			return sent, w.Flush()
		default:
		}
		if paced {
			<-pace.C
		}
		n, _ := src.Read(b[:8+rand.IntN(len(b)-8)])
		if _, err := w.Write(b[:n]); err != nil {
			return sent, err
		}
		sent += uint64(n)
	}
}

// listen checks that what comes are the numbers from seed on, until the end.
func listen(c io.Reader, seed uint64) (got uint64, err error) {
	src, have, want := numbers{&seed}, make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, err := io.ReadFull(c, have)
		_, _ = src.Read(want)
		if !bytes.Equal(have[:n], want[:n]) {
			return got, fmt.Errorf("after %d bytes: something else than was sent", got)
		}
		got += uint64(n)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return got, nil
		case err != nil:
			return got, err
		}
	}
}

// traffic is tunnels in which both sides talk and listen all the time.
type traffic struct {
	t        testing.TB
	stop     chan struct{}
	halt     func() // closes stop
	both     sync.WaitGroup
	mu       sync.Mutex
	up, down uint64 // sent minus received, over all
	bytes    uint64
	opened   atomic.Int64
}

func newTraffic(t testing.TB) *traffic {
	f := &traffic{t: t, stop: make(chan struct{})}
	f.halt = sync.OnceFunc(func() { close(f.stop) })
	return f
}

func (f *traffic) side(c *net.TCPConn, sends, gets *uint64, seed uint64) {
	var each sync.WaitGroup
	each.Go(func() {
		n, err := talk(c, seed, f.opened.Add(1) > 2, f.stop)
		f.add(sends, n, err)
	})
	each.Go(func() {
		n, err := listen(c, seed)
		f.add(gets, -n, err)
	})
	each.Wait()
}

func (f *traffic) add(to *uint64, n uint64, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	*to += n
	if err != nil {
		f.t.Errorf("a tunnel: %v", err)
	}
	if int64(n) > 0 {
		f.bytes += n
	}
}

func (f *traffic) upstream() int {
	port := upstream(f.t, func(c *net.TCPConn) {
		f.both.Add(1)
		defer f.both.Done()
		f.side(c, &f.down, &f.up, 1<<40)
	})
	f.t.Cleanup(f.halt) // before upstream's, which waits
	return port
}

func (f *traffic) through(c *net.TCPConn) {
	f.both.Go(func() { f.side(c, &f.up, &f.down, 1<<40) })
}

// end stops it and says whether all that was sent has come.
func (f *traffic) end() {
	f.t.Helper()
	f.halt()
	f.both.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.up != 0 || f.down != 0 || f.bytes == 0 {
		f.t.Errorf("of %d bytes %d are missing upstream, and %d downstream", f.bytes, f.up, f.down)
	}
}

// sockets counts those that this process has open. (Pipes of splice(2) are pooled by the
// runtime, and say nothing.)
func sockets(t testing.TB) (n int) {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n
}
