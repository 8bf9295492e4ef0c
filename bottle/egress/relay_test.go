package egress

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// relayed is an agent and an upstream with a relay between them.
type relayed struct {
	agent, upstream *net.TCPConn
	inner           *net.TCPConn // the relay's side of the agent
	cancel          context.CancelFunc
	done            chan struct{}
	whole           bool
}

func newRelayed(t *testing.T) *relayed {
	t.Helper()
	connected := func() (a, b *net.TCPConn) {
		l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if a, err = net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr)); err != nil { //nolint:errcheck // a TCP listener
			t.Fatal(err)
		}
		if b, err = l.AcceptTCP(); err != nil {
			t.Fatal(err)
		}
		for _, c := range []*net.TCPConn{a, b} {
			t.Cleanup(func() { _ = c.Close() })
		}
		_ = a.SetDeadline(time.Now().Add(time.Minute))
		return a, b
	}
	r := &relayed{done: make(chan struct{})}
	r.agent, r.inner = connected()
	var outer *net.TCPConn
	r.upstream, outer = connected()
	ctx, cancel := context.WithCancel(t.Context())
	r.cancel = cancel
	go func() {
		defer close(r.done)
		_, _, r.whole = relay(ctx, r.inner, outer)
	}()
	t.Cleanup(func() { cancel(); <-r.done })
	return r
}

// A reset of the upstream's is one to the agent, though it is the relay's writer who is told of it
// as often as not, and the reader then sees an end.
func TestRelayPassesAResetOn(t *testing.T) {
	for size, rounds := range map[int]int{10: 200, 1 << 20: 20} { // copied; spliced
		for range rounds {
			r := newRelayed(t)
			wrote := make(chan error, 1)
			go func() {
				for b := make([]byte, size); ; {
					if _, err := r.agent.Write(b); err != nil {
						wrote <- err
						return
					}
				}
			}()
			if _, err := io.CopyN(io.Discard, r.upstream, int64(min(200*size, 16<<20))); err != nil {
				t.Fatal(err)
			}
			_ = r.upstream.SetLinger(0)
			_ = r.upstream.Close()
			_, read := r.agent.Read(make([]byte, 1))
			// One of the two is told, here too: after an end the write would have failed by EPIPE.
			if write := <-wrote; !errors.Is(read, unix.ECONNRESET) && !errors.Is(write, unix.ECONNRESET) {
				t.Errorf("messages of %d bytes: the agent read %v and wrote %v", size, read, write)
			}
			<-r.done
			if r.whole {
				t.Errorf("messages of %d bytes: taken for whole", size)
			}
		}
	}
}

// Who is cut off by a reload, or by the end of egress, learns of no end either.
func TestRelayIsCutByAReset(t *testing.T) {
	for range 100 {
		r := newRelayed(t)
		if _, err := r.agent.Write([]byte("half")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(r.upstream, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
		r.cancel()
		for name, c := range map[string]*net.TCPConn{"agent": r.agent, "upstream": r.upstream} {
			if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// An upstream that answers and closes while the agent still sends is heard to its end.
func TestRelayKeepsTheLastWords(t *testing.T) {
	const answer = 1 << 20
	for range 20 {
		r := newRelayed(t)
		var writing sync.WaitGroup
		writing.Go(func() {
			for b := make([]byte, 10); ; {
				if _, err := r.agent.Write(b); err != nil {
					return
				}
			}
		})
		writing.Go(func() { // it reads all, so that its close is no reset
			_, _ = io.Copy(io.Discard, r.upstream)
		})
		if _, err := r.upstream.Write(make([]byte, answer)); err != nil {
			t.Fatal(err)
		}
		_ = r.upstream.CloseWrite()
		if n, err := io.Copy(io.Discard, r.agent); n != answer || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
		_ = r.agent.Close()
		writing.Wait()
		<-r.done
	}
}
