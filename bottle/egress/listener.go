package egress

import (
	"io"
	"net"
	"sync"
	"time"

	"bottle/bottle/proxysock"
)

// maxConns bounds the agent's open connections, tunnels included.
const maxConns = 4096

const overloaded = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nX-Bottle-Layer: egress\r\nRetry-After: 1\r\nConnection: close\r\n\r\n" +
	"egress: too many open connections; close some and try again\n"

// A crowd is the open connections of the agent's, by whichever socket they came, so that
// their number is bounded and a stop reaches each of them, whoever has it by then.
type crowd struct {
	mu     sync.Mutex
	conns  map[*clientConn]struct{}
	closed bool
}

func newCrowd() *crowd { return &crowd{conns: map[*clientConn]struct{}{}} }

func (c *crowd) admit(conn *clientConn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || len(c.conns) >= maxConns {
		return false
	}
	c.conns[conn] = struct{}{}
	return true
}

func (c *crowd) leave(conn *clientConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.conns, conn)
}

// closeAll closes every connection, and those that come later.
func (c *crowd) closeAll() {
	c.mu.Lock()
	c.closed = true
	open := make([]*clientConn, 0, len(c.conns))
	for conn := range c.conns {
		open = append(open, conn)
	}
	c.mu.Unlock()
	for _, conn := range open {
		_ = conn.Close()
	}
}

func (c *crowd) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.conns)
}

// A listener is one of the sockets that the agent's connections come by.
type listener struct {
	net.Listener
	crowd *crowd
}

// Accept implements [net.Listener]. A connection over the bound is told so and closed.
func (l *listener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &clientConn{crowd: l.crowd}
		switch raw := raw.(type) {
		case *net.TCPConn:
			c.agentConn = raw
		case *net.UnixConn:
			c.agentConn = proxysock.New(raw)
		default: // Config.check knows no other
			_ = raw.Close()
			continue
		}
		if l.crowd.admit(c) {
			return c, nil
		}
		// A fresh connection's send buffer takes this without waiting.
		_ = c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		_, _ = io.WriteString(c.agentConn, overloaded)
		_ = c.agentConn.Close()
	}
}

// An agentConn is a [net.TCPConn], or a [proxysock.Conn], which ends as one does.
type agentConn interface {
	halfCloser
	SetLinger(sec int) error
}

// A clientConn is a connection of the agent's.
type clientConn struct {
	agentConn
	crowd *crowd
}

// Close implements [net.Conn].
func (c *clientConn) Close() error {
	c.crowd.leave(c)
	return c.agentConn.Close()
}

// ReadFrom and WriteTo hand the socket itself to io.Copy, so that the kernel can splice.
func (c *clientConn) ReadFrom(r io.Reader) (int64, error) { return io.Copy(c.agentConn, r) }

// WriteTo implements [io.WriterTo].
func (c *clientConn) WriteTo(w io.Writer) (int64, error) { return io.Copy(w, c.agentConn) }

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
