package pipelock_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bottle/bottle"
	"bottle/bottle/fdpass"
	"bottle/bottle/pipelock"
)

// A passingPair is what init makes for egress and all gates of a bundle; the test is egress.
type passingPair struct {
	*pair
	egress *net.UnixConn
}

func newPassingPair(t *testing.T) *passingPair {
	p := newPair(t)
	egress := end(t, p.adopt)
	t.Cleanup(func() { _ = egress.Close() })
	return &passingPair{p, egress}
}

// start starts a gate that passes what it is asked to, and hands over by handover.
func (p *passingPair) start(t *testing.T, handover *pair, allow ...bottle.AllowEntry) *heir {
	t.Helper()
	h := &heir{drain: make(chan struct{}), reports: make(chan bottle.DaemonStatus, 1000)}
	h.running = start(t, func(c *pipelock.GateConfig) {
		c.Handover, c.Adopt, c.Drain, c.Pass = end(t, handover.handover), end(t, handover.adopt), h.drain, end(t, p.handover)
		c.Report = func(st bottle.DaemonStatus) error { h.reports <- st; return nil }
	}, allow...)
	return h
}

// ask opens a tunnel and asks for its connection; more is sent with the CONNECT.
func (h *heir) ask(port int, token, more string) (leash *net.TCPConn, answer string) {
	h.t.Helper()
	c, err := (&net.Dialer{}).DialContext(h.t.Context(), "tcp", h.addr)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		h.t.Fatal(err)
	}
	if _, err := fmt.Fprintf(c, "CONNECT a.test:%d HTTP/1.1\r\nHost: a.test\r\n%s: %s\r\n\r\n%s", port, fdpass.Header, token, more); err != nil {
		h.t.Fatal(err)
	}
	var head []byte // and not a byte of what follows
	for b := make([]byte, 1); !bytes.HasSuffix(head, []byte("\r\n\r\n")); head = append(head, b...) {
		if _, err := c.Read(b); err != nil {
			h.t.Fatal(err)
		}
	}
	res, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(head)), &http.Request{Method: http.MethodConnect})
	if err != nil || res.StatusCode != http.StatusOK {
		h.t.Fatalf("%q, %v", head, err)
	}
	_ = res.Body.Close()
	return c.(*net.TCPConn), res.Header.Get(fdpass.Header) //nolint:errcheck // it is TCP
}

// get asks for a connection and returns it and its leash.
func (p *passingPair) get(h *heir, port int) (leash, up *net.TCPConn) {
	h.t.Helper()
	leash, answer := h.ask(port, "token-1", "")
	if answer != "token-1" {
		h.t.Fatalf("not passed: %q", answer)
	}
	m, err := fdpass.Receive(p.egress)
	if err != nil || string(m.Body) != "token-1" {
		h.t.Fatalf("%q, %v", m.Body, err)
	}
	conns, err := m.Take("upstream")
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = conns[0].Close() })
	if err := conns[0].SetDeadline(time.Now().Add(time.Minute)); err != nil {
		h.t.Fatal(err)
	}
	return leash, conns[0]
}

// mustBreak expects what is no end.
func mustBreak(t *testing.T, what string, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, io.EOF) {
		t.Errorf("%s: read %d, %v", what, n, err)
	}
}

// through says that egress is, and closes the leash.
func through(t *testing.T, leash net.Conn) {
	t.Helper()
	if _, err := leash.Write([]byte{0}); err != nil {
		t.Fatal(err)
	}
	_ = leash.Close()
}

// What egress got goes on without the gate, and ends when either lets go of the leash: who kept a
// copy can neither write nor read any more, and what was written before arrives.
func TestPass(t *testing.T) {
	got := make(chan string, 1)
	port := upstream(t, func(c *net.TCPConn) {
		b := make([]byte, 5)
		if _, err := io.ReadFull(c, b); err != nil {
			got <- err.Error()
			return
		}
		_, _ = c.Write(b)
		rest, err := io.ReadAll(c)
		got <- fmt.Sprintf("%s %v", rest, err)
	})
	p := newPassingPair(t)
	h := p.start(t, newPair(t), entry("a.test", port))
	leash, up := p.get(h, port)
	if _, err := up.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(up, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	if _, err := up.Write([]byte("the rest")); err != nil {
		t.Fatal(err)
	}
	through(t, leash)
	if n, err := up.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a copy that was kept: read %d, %v", n, err)
	}
	if _, err := up.Write([]byte("more")); err == nil {
		t.Error("a copy that was kept can write")
	}
	if s := <-got; s != "the rest <nil>" {
		t.Errorf("the upstream got %q", s)
	}
	h.becomes("nothing is open", func(c map[string]uint64) bool { return c["open"] == 0 && c["passed"] == 1 })
}

// Of what egress wrote before it closed, nothing is lost, however long the upstream takes.
func TestTheTailOfWhatWasPassedArrives(t *testing.T) {
	const size = 8 << 20
	got, begin := make(chan int64, 1), make(chan struct{})
	port := upstream(t, func(c *net.TCPConn) {
		<-begin
		pace := time.NewTicker(20 * time.Millisecond)
		defer pace.Stop()
		var sum int64
		for {
			n, err := io.CopyN(io.Discard, c, 64<<10)
			if sum += n; err != nil {
				break
			}
			<-pace.C
		}
		got <- sum
	})
	p := newPassingPair(t)
	h := p.start(t, newPair(t), entry("a.test", port))
	leash, up := p.get(h, port)
	if err := up.SetWriteBuffer(size); err != nil {
		t.Fatal(err)
	}
	if err := up.SetWriteDeadline(time.Now().Add(time.Second / 2)); err != nil {
		t.Fatal(err)
	}
	sent, _ := up.Write(make([]byte, size)) // as much as the kernel takes
	_ = up.Close()
	through(t, leash)
	close(begin)
	if n := <-got; n != int64(sent) || n < 1<<20 {
		t.Errorf("%d bytes arrived of %d", n, sent)
	}
}

// Who lets go of the leash and keeps the connection does not read on for long.
func TestPassedStreamEndsWithItsLeash(t *testing.T) {
	port := upstream(t, func(c *net.TCPConn) {
		go func() { _, _ = io.Copy(io.Discard, c) }() // until the write fails
		for b := make([]byte, 1<<10); ; {
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	})
	p := newPassingPair(t)
	h := p.start(t, newPair(t), entry("a.test", port))
	leash, up := p.get(h, port)
	if _, err := up.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	// The flag is the socket's, so it has the gate's thread wait too, if that lets it.
	if f, err := up.File(); err != nil {
		t.Fatal(err)
	} else if err := errors.Join(unix.SetNonblock(int(f.Fd()), false), f.Close()); err != nil {
		t.Fatal(err)
	}
	through(t, leash)
	if _, err := io.Copy(io.Discard, up); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("it is read for ever")
	}
}

// An egress that breaks off, or dies, breaks the connection off.
func TestPassedIsBrokenOffWithItsLeash(t *testing.T) {
	seen := make(chan error, 1)
	port := upstream(t, func(c *net.TCPConn) {
		_, err := io.Copy(io.Discard, c)
		seen <- err
	})
	p := newPassingPair(t)
	h := p.start(t, newPair(t), entry("a.test", port))
	leash, up := p.get(h, port)
	if _, err := up.Write([]byte("half")); err != nil {
		t.Fatal(err)
	}
	_ = up.Close()
	_ = leash.Close()
	if err := <-seen; err == nil {
		t.Error("the upstream saw an end")
	}
}

// A host that becomes forbidden is cut from egress too, however many copies it has made.
func TestReloadCutsWhatWasPassed(t *testing.T) {
	seen := make(chan error, 1)
	port := upstream(t, func(c *net.TCPConn) {
		_, err := io.Copy(c, c)
		seen <- err
	})
	p := newPassingPair(t)
	h := p.start(t, newPair(t), entry("a.test", port))
	leash, up := p.get(h, port)
	ping(t, up)
	h.change(sealed(t, entry("b.test", port)))
	mustBreak(t, "the connection", up)
	mustBreak(t, "its leash", leash)
	if _, err := up.Write([]byte("more")); err == nil {
		t.Error("it can write")
	}
	if err := <-seen; err == nil {
		t.Error("the upstream saw an end, not a reset")
	}
}

// What was passed outlives the gate that made it, and its successor can cut it.
func TestHandoverOfWhatWasPassed(t *testing.T) {
	const gates = 4
	port := echo(t)
	p, handover := newPassingPair(t), newPair(t)
	h := p.start(t, handover, entry("a.test", port))
	leash, up := p.get(h, port)
	for range gates {
		next := p.start(t, handover, entry("a.test", port))
		h.leave()
		next.adopts(1)
		ping(t, up)
		h = next
	}
	second, _ := p.get(h, port)
	_ = second.Close()
	h.change(sealed(t, entry("b.test")))
	mustBreak(t, "the connection", up)
	mustBreak(t, "its leash", leash)
}

// The end of a gate that nobody took over from ends what it passed.
func TestStopEndsWhatWasPassed(t *testing.T) {
	port := echo(t)
	p := newPassingPair(t)
	h := p.start(t, newPair(t), entry("a.test", port))
	leash, up := p.get(h, port)
	ping(t, up)
	if err := h.stop(); err != nil {
		t.Fatal(err)
	}
	mustBreak(t, "the connection", up)
	mustBreak(t, "its leash", leash)
}

// Who says more with the CONNECT, asks for nothing, or takes nothing is relayed.
func TestWhatIsNotPassed(t *testing.T) {
	port := echo(t)
	p := newPassingPair(t)
	h := p.start(t, newPair(t), entry("a.test", port))
	early, answer := h.ask(port, "token", "early")
	if b := make([]byte, 5); answer != "" {
		t.Errorf("passed in spite of early bytes: %q", answer)
	} else if _, err := io.ReadFull(early, b); err != nil || string(b) != "early" {
		t.Errorf("early bytes: %q, %v", b, err)
	}
	ping(t, h.open(port))

	if err := unix.SetsockoptInt(int(p.handover.Fd()), unix.SOL_SOCKET, unix.SO_SNDBUF, 1); err != nil { // the kernel makes it 4,608
		t.Fatal(err)
	}
	for i := 0; ; i++ {
		c, answer := h.ask(port, "token", "")
		if answer == "" {
			ping(t, c)
			break
		}
		if i == 1000 {
			t.Fatal("there is always room")
		}
	}
	_ = p.egress.Close()
	_ = p.adopt.Close()
	c, answer := h.ask(port, "token", "")
	if answer != "" {
		t.Errorf("passed to nobody: %q", answer)
	}
	ping(t, c)
}
