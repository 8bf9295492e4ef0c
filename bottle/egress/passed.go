package egress

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"sync/atomic"

	"bottle/bottle/fdpass"
)

// passed receives the connections that pipelock makes and passes on, each of which somebody
// waits for; see [fdpass.Header].
type passed struct {
	socket *net.UnixConn
	log    *slog.Logger
	prefix string // tells what this process asks for from what an earlier one did
	last   atomic.Uint64
	tied   sync.WaitGroup // one for each leash

	mu      sync.Mutex
	waiting map[string]chan delivery
	over    bool // nothing comes any more
}

func newPassed(socket *net.UnixConn, log *slog.Logger) *passed {
	return &passed{socket: socket, log: log, prefix: rand.Text() + "-", waiting: map[string]chan delivery{}}
}

// A wish is a connection that pipelock is asked to pass.
type wish struct {
	passed *passed
	name   string
	c      chan delivery
}

type delivery struct {
	conn *net.TCPConn
	err  error
}

// ask returns nil where none can be passed. Its caller calls end.
func (p *passed) ask() *wish {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return nil
	}
	w := &wish{p, p.prefix + strconv.FormatUint(p.last.Add(1), 36), make(chan delivery, 1)}
	p.waiting[w.name] = w.c
	return w
}

// take waits for the connection and ties it to the leash.
func (w *wish) take(ctx context.Context, leash net.Conn) (halfCloser, error) {
	select {
	case d := <-w.c:
		if d.err != nil {
			return nil, fmt.Errorf("what pipelock passed: %w", d.err)
		}
		t := &tied{TCPConn: d.conn, leash: leash}
		w.passed.tied.Go(t.watch)
		return t, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// end closes what comes and was not taken.
func (w *wish) end() {
	if w == nil {
		return
	}
	w.passed.mu.Lock()
	delete(w.passed.waiting, w.name)
	w.passed.mu.Unlock()
	select {
	case d := <-w.c:
		if d.err == nil {
			_ = d.conn.Close()
		}
	default:
	}
}

// receive goes on until the socket is closed.
func (p *passed) receive() {
	for {
		m, err := fdpass.Receive(p.socket)
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				p.log.Error("pipelock can pass no more connections: what flows goes through it", "error", err)
			}
			p.mu.Lock()
			p.over = true
			p.mu.Unlock()
			return
		}
		p.deliver(m)
	}
}

func (p *passed) deliver(m fdpass.Message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	to, ok := p.waiting[string(m.Body)]
	if !ok { // of an earlier process, or nobody waits any more
		m.Close()
		return
	}
	delete(p.waiting, string(m.Body)) // so there is room in to
	conns, err := m.Take("upstream")
	if err != nil {
		to <- delivery{err: err}
		return
	}
	to <- delivery{conn: conns[0]}
}

// A tied connection is one that pipelock made and passed on. It lasts as long as the connection by
// which it was asked for, by which pipelock learns of its end, and egress of pipelock's.
type tied struct {
	*net.TCPConn
	leash  net.Conn
	abrupt atomic.Bool
	once   sync.Once
}

// SetLinger makes the Close that follows a reset if sec is 0.
func (t *tied) SetLinger(sec int) error {
	t.abrupt.Store(sec == 0)
	return t.TCPConn.SetLinger(sec)
}

// Close implements [net.Conn].
func (t *tied) Close() error {
	err := net.ErrClosed
	t.once.Do(func() {
		err = t.TCPConn.Close()
		if !t.abrupt.Load() {
			_, _ = t.leash.Write([]byte{0}) // see [fdpass.Header]; there is room
		}
		_ = t.leash.Close()
	})
	return err
}

// watch ends the connection when pipelock does.
func (t *tied) watch() {
	_, err := t.leash.Read(make([]byte, 1))
	if errors.Is(err, net.ErrClosed) {
		return
	}
	_ = t.SetLinger(0)
	_ = t.Close()
}
