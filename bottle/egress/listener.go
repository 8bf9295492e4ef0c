package egress

import (
	"io"
	"net"
	"sync"
	"time"
)

// maxConns bounds the agent's open connections, tunnels included.
const maxConns = 4096

const overloaded = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nX-Bottle-Layer: egress\r\nRetry-After: 1\r\nConnection: close\r\n\r\n" +
	"egress: too many open connections; close some and try again\n"

// A listener counts and remembers the connections that it accepted, so that the number is
// bounded and a stop reaches each of them, whoever has it by then.
type listener struct {
	*net.TCPListener

	mu     sync.Mutex
	conns  map[*clientConn]struct{}
	closed bool
}

func newListener(l *net.TCPListener) *listener {
	return &listener{TCPListener: l, conns: map[*clientConn]struct{}{}}
}

// Accept implements [net.Listener]. A connection over the bound is told so and closed.
func (l *listener) Accept() (net.Conn, error) {
	for {
		tcp, err := l.AcceptTCP()
		if err != nil {
			return nil, err
		}
		c := &clientConn{TCPConn: tcp, from: l}
		if l.admit(c) {
			return c, nil
		}
		// A fresh connection's send buffer takes this without waiting.
		_ = tcp.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		_, _ = io.WriteString(tcp, overloaded)
		_ = tcp.Close()
	}
}

func (l *listener) admit(c *clientConn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || len(l.conns) >= maxConns {
		return false
	}
	l.conns[c] = struct{}{}
	return true
}

// closeAll closes the listener and every connection that came of it.
func (l *listener) closeAll() {
	_ = l.Close()
	l.mu.Lock()
	l.closed = true
	open := make([]*clientConn, 0, len(l.conns))
	for c := range l.conns {
		open = append(open, c)
	}
	l.mu.Unlock()
	for _, c := range open {
		_ = c.Close()
	}
}

func (l *listener) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.conns)
}

// A clientConn is a connection of the agent's.
type clientConn struct {
	*net.TCPConn
	from *listener
}

// Close implements [net.Conn].
func (c *clientConn) Close() error {
	c.from.mu.Lock()
	delete(c.from.conns, c)
	c.from.mu.Unlock()
	return c.TCPConn.Close()
}

// A queue is a [net.Listener] whose connections are put there: the tunnels whose TLS was
// ended, on their way to the server that reads the requests in them.
type queue struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
	addr  net.Addr
}

func newQueue(addr net.Addr) *queue {
	return &queue{conns: make(chan net.Conn), done: make(chan struct{}), addr: addr}
}

// put hands c over; false means that the queue is closed and c still the caller's.
func (q *queue) put(c net.Conn) bool {
	select {
	case q.conns <- c:
		return true
	case <-q.done:
		return false
	}
}

// Accept implements [net.Listener].
func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

// Close implements [net.Listener].
func (q *queue) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}

// Addr implements [net.Listener].
func (q *queue) Addr() net.Addr { return q.addr }
