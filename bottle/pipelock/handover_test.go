package pipelock_test

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bottle/bottle/pipelock"
)

func TestHandoverLosesNoByte(t *testing.T) {
	const tunnels, handovers = 50, 20
	p, f := newPair(t), newTraffic(t)
	port := f.upstream()
	before := sockets(t)
	gate := p.start(t, entry("a.test", port))
	for range tunnels {
		f.through(gate.open(port))
	}
	for i := range handovers {
		next := p.start(t, entry("a.test", port))
		if c := gate.leave(); c["cut"]+c["failed"] != 0 {
			t.Fatalf("%v", c)
		}
		if i%2 == 0 { // else what the next one has not read yet goes to the one after it
			next.adopts(tunnels)
		}
		gate = next
	}
	gate.adopts(tunnels)
	f.end()
	if err := gate.stop(); err != nil {
		t.Fatal(err)
	}
	last := gate.until("the end", func(c map[string]uint64) bool { return c["open"] == 0 })
	if last["adopted"] != tunnels || last["allowed"] != 0 {
		t.Errorf("%v", last)
	}
	t.Logf("%d bytes", f.bytes)
	// The clients' ends close with the test; all else was the gates'.
	if after := sockets(t); after > before+tunnels {
		t.Errorf("%d sockets before, %d after, of which %d are the clients'", before, after, tunnels)
	}
}

// A client that reads nothing holds up its own tunnel alone, and of that one direction.
func TestHandoverOfASlowReader(t *testing.T) {
	const size = 64 << 20
	said, stuck := make(chan string, 10), make(chan struct{})
	p := newPair(t)
	port := upstream(t, func(c *net.TCPConn) {
		var both sync.WaitGroup
		both.Go(func() {
			if err := flood(c, size, stuck); err != nil {
				t.Errorf("flood: %v", err)
			}
			_ = c.CloseWrite()
		})
		lines := bufio.NewScanner(c)
		for lines.Scan() {
			said <- lines.Text()
		}
		both.Wait()
	})
	quick := echo(t)
	old := p.start(t, entry("a.test", port, quick))
	slow, fast := old.open(port), old.open(quick)
	next := p.start(t, entry("a.test", port, quick))
	<-stuck
	old.yield()
	for _, word := range []string{"it", "still", "hears"} {
		ping(t, fast)
		if _, err := fmt.Fprintln(slow, word); err != nil {
			t.Fatal(err)
		}
		if got := <-said; got != word {
			t.Fatalf("%q", got)
		}
	}
	old.becomes("the quick one is handed over", func(c map[string]uint64) bool { return c["open"] == 1 && c["handed_over"] == 1 })
	n, err := listen(slow, 0)
	if err != nil || n != size {
		t.Errorf("%d of %d bytes, %v", n, size, err)
	}
	if c := old.left(); c["handed_over"] != 2 {
		t.Errorf("%v", c)
	}
	if _, err := fmt.Fprintln(slow, "to the end"); err != nil || <-said != "to the end" {
		t.Error(err)
	}
	_ = slow.Close()
	_ = fast.Close()
	if err := next.stop(); err != nil {
		t.Fatal(err)
	}
}

// flood writes numbers for as long as c takes them, and closes stuck once it takes none.
func flood(c *net.TCPConn, limit int64, stuck chan<- struct{}) error {
	src := numbers{new(uint64)}
	b := make([]byte, 8<<10)
	for sent := int64(0); sent < limit; sent += int64(len(b)) {
		_, _ = src.Read(b)
		if stuck != nil {
			_ = c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		}
		n, err := c.Write(b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			close(stuck)
			stuck = nil
			_ = c.SetWriteDeadline(time.Time{})
			_, err = c.Write(b[n:])
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// numbers is what listen expects, without end.
type numbers struct{ next *uint64 }

func (n numbers) Read(p []byte) (int, error) {
	p = p[:len(p)/8*8]
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], *n.next)
		*n.next++
	}
	return len(p), nil
}

func TestHandoverKeepsHalfClose(t *testing.T) {
	t.Run("of the client", func(t *testing.T) {
		heard, speak := make(chan struct{}), make(chan struct{})
		port := upstream(t, func(c *net.TCPConn) {
			b, err := io.ReadAll(c)
			close(heard)
			<-speak
			_, _ = fmt.Fprintf(c, "%s, %v", b, err)
		})
		p := newPair(t)
		old := p.start(t, entry("a.test", port))
		c := old.open(port)
		if _, err := c.Write([]byte("all")); err != nil {
			t.Fatal(err)
		}
		closeWrite(t, c)
		<-heard
		for range 3 {
			next := p.start(t, entry("a.test", port))
			old.leave()
			next.adopts(1)
			old = next
		}
		close(speak)
		if b, err := io.ReadAll(c); err != nil || string(b) != "all, <nil>" {
			t.Errorf("%q, %v", b, err)
		}
	})
	t.Run("of the upstream", func(t *testing.T) {
		heard := make(chan string, 1)
		port := upstream(t, func(c *net.TCPConn) {
			_, _ = c.Write([]byte("all"))
			_ = c.CloseWrite()
			b, err := io.ReadAll(c)
			heard <- fmt.Sprintf("%s, %v", b, err)
		})
		p := newPair(t)
		old := p.start(t, entry("a.test", port))
		c := old.open(port)
		if b, err := io.ReadAll(c); err != nil || string(b) != "all" {
			t.Fatalf("%q, %v", b, err)
		}
		for range 3 {
			next := p.start(t, entry("a.test", port))
			old.leave()
			next.adopts(1)
			old = next
		}
		if _, err := c.Write([]byte("late")); err != nil {
			t.Fatal(err)
		}
		closeWrite(t, c)
		if got := <-heard; got != "late, <nil>" {
			t.Error(got)
		}
	})
}

// Whatever an end that closes meets, gate, message or gate, all that it said arrives.
func TestHandoverOfWhatIsJustClosing(t *testing.T) {
	const tunnels = 40
	for _, who := range []string{"upstream", "client"} {
		t.Run(who, func(t *testing.T) {
			closing := make(chan struct{})
			heard := make(chan string, tunnels)
			say := func(c *net.TCPConn) {
				<-closing
				_, _ = c.Write([]byte("bye"))
				_ = c.Close()
			}
			hear := func(c *net.TCPConn) {
				b, err := io.ReadAll(c)
				heard <- fmt.Sprintf("%s, %v", b, err)
				_ = c.Close()
			}
			atClient, atUpstream := say, hear
			if who == "upstream" {
				atClient, atUpstream = hear, say
			}
			port := upstream(t, atUpstream)
			p := newPair(t)
			old := p.start(t, entry("a.test", port))
			var clients sync.WaitGroup
			for range tunnels {
				c := old.open(port)
				clients.Go(func() { atClient(c) })
			}
			next := p.start(t, entry("a.test", port))
			clients.Go(func() { close(closing) })
			old.leave()
			for range tunnels {
				if got := <-heard; got != "bye, <nil>" {
					t.Error(got)
				}
			}
			clients.Wait()
			next.yield() // nothing is left to hand over
			next.until("all is over", func(c map[string]uint64) bool { return c["open"] == 0 })
		})
	}
}

func TestHandoverOfWhatTheHeirForbids(t *testing.T) {
	port, other := echo(t), echo(t)
	p := newPair(t)
	old := p.start(t, entry("a.test", port, other))
	kept, cut := old.open(port), old.open(other)
	next := p.start(t, entry("a.test", port))
	old.leave()
	if _, err := cut.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("forbidden: %v", err)
	}
	ping(t, kept)
	_ = kept.Close()
	if err := next.stop(); err != nil {
		t.Fatal(err)
	}
	next.until("one is cut", func(c map[string]uint64) bool { return c["cut"] == 1 && c["adopted"] == 1 })
}

// What reaches a gate after another took over is served, and handed over.
func TestHandoverOfStragglers(t *testing.T) {
	port := echo(t)
	p := newPair(t)
	old := p.start(t, entry("a.test", port))
	next := p.start(t, entry("a.test", port))
	old.yield()
	late := old.open(port)
	ping(t, late)
	// Asked, since the gate itself reports only what it sees: it may not have seen it open at all.
	old.becomes("it is handed over", func(c map[string]uint64) bool { return c["handed_over"] == 1 && c["open"] == 0 })
	ping(t, late)
	if err := old.stop(); err != nil {
		t.Fatal(err)
	}
	ping(t, late)
	next.change(sealed(t, entry("b.test")))
	if _, err := late.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("forbidden by a reload: %v", err)
	}
}

// A reload cuts what can't be handed over too.
func TestReloadCutsWhatDrains(t *testing.T) {
	stuck := make(chan struct{})
	port := upstream(t, func(c *net.TCPConn) { _ = flood(c, 1<<40, stuck) })
	p := newPair(t)
	old := p.start(t, entry("a.test", port))
	c := old.open(port) // it reads nothing
	next := p.start(t, entry("a.test", port))
	<-stuck
	old.yield()
	old.change(sealed(t, entry("b.test")))
	old.until("it is cut", func(c map[string]uint64) bool { return c["cut"] == 1 && c["open"] == 0 })
	if _, err := io.Copy(io.Discard, c); err != nil && !errors.Is(err, unix.ECONNRESET) {
		t.Error(err)
	}
	if err := next.stop(); err != nil {
		t.Fatal(err)
	}
	next.until("it got nothing", func(c map[string]uint64) bool { return c["adopted"] == 0 })
}

// Tunnels that nobody takes go on in the old gate, but for those that are on their way:
// these go on in the next one, whenever that comes.
func TestHandoverToNobodyYet(t *testing.T) {
	const tunnels = 30
	port := echo(t)
	p := newPair(t)
	if err := unix.SetsockoptInt(int(p.handover.Fd()), unix.SOL_SOCKET, unix.SO_SNDBUF, 4<<10); err != nil {
		t.Fatal(err)
	}
	old := p.start(t, entry("a.test", port))
	var list []*net.TCPConn
	for range tunnels {
		list = append(list, old.open(port))
	}
	old.yield()
	answered := make(chan error, tunnels)
	var each sync.WaitGroup
	for _, c := range list {
		each.Go(func() {
			b := make([]byte, 4)
			_, err := c.Write([]byte("ping"))
			if err == nil {
				_, err = io.ReadFull(c, b)
			}
			if err == nil && string(b) != "ping" {
				err = fmt.Errorf("%q", b)
			}
			answered <- err
		})
	}
	for range tunnels / 2 {
		if err := <-answered; err != nil {
			t.Error(err)
		}
	}
	next := p.start(t, entry("a.test", port))
	for range tunnels - tunnels/2 {
		if err := <-answered; err != nil {
			t.Error(err)
		}
	}
	each.Wait()
	if c := old.left(); c["handed_over"] != tunnels {
		t.Errorf("%v", c)
	}
	for _, c := range list {
		ping(t, c)
		_ = c.Close()
	}
	if err := next.stop(); err != nil {
		t.Fatal(err)
	}
}

// Without a pair Drain is a reload.
func TestDrainWithoutPair(t *testing.T) {
	port := echo(t)
	drain := make(chan struct{})
	r := start(t, func(c *pipelock.GateConfig) { c.Drain = drain }, entry("a.test", port))
	c, a := r.connect(fmt.Sprintf("a.test:%d", port))
	if c == nil {
		t.Fatalf("%+v", a)
	}
	r.write(sealed(t, entry("a.test", port), entry("b.test")))
	first := r.started().Revision
	drain <- struct{}{}
	drain <- struct{}{}
	ping(t, c)
	r.write(sealed(t, entry("b.test")))
	drain <- struct{}{}
	drain <- struct{}{}
	if st := r.readStatus(); st.Revision == first || st.Counters["cut"] != 1 {
		t.Errorf("%+v", st)
	}
	close(drain)
	r.started()
}

func BenchmarkHandover(b *testing.B) {
	for _, tunnels := range []int{0, 1000} {
		b.Run(fmt.Sprintf("tunnels=%d", tunnels), func(b *testing.B) {
			port := upstream(b, func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) })
			p := newPair(b)
			old := p.start(b, entry("a.test", port))
			for range tunnels {
				defer old.open(port).Close()
			}
			for b.Loop() {
				b.StopTimer()
				next := p.start(b, entry("a.test", port))
				b.StartTimer()
				old.yield()
				old.until("nothing is open", func(c map[string]uint64) bool { return c["open"] == 0 })
				next.adopts(uint64(tunnels))
				b.StopTimer()
				if err := old.stop(); err != nil {
					b.Fatal(err)
				}
				old = next
				b.StartTimer()
			}
		})
	}
}
