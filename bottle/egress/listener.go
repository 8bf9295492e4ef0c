package egress

import (
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"bottle/bottle/proxysock"
)

const overloaded = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nX-Bottle-Layer: egress\r\nRetry-After: 1\r\nConnection: close\r\n\r\n" +
	"egress: too many open connections; close some and try again\n"

// A crowd is the open connections of the agent's, by whichever socket they came, so that
// their number is bounded and a stop reaches each of them, whoever has it by then.
type crowd struct {
	most int

	mu      sync.Mutex
	conns   map[*clientConn]struct{}
	parting map[*clientConn]struct{} // they were refused, and are to read so
	closed  bool
	parted  sync.WaitGroup // one for each of parting
}

// maxParting is how many of those over the bound get the time to read that they are. It saves
// them from a reset, which can overtake the words.
const maxParting = 64

func newCrowd(most int) *crowd {
	return &crowd{most: most, conns: map[*clientConn]struct{}{}, parting: map[*clientConn]struct{}{}}
}

func (c *crowd) admit(conn *clientConn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || len(c.conns) >= c.most {
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

// turnAway tells a connection that was not admitted why, and closes it.
func (c *crowd) turnAway(conn *clientConn) {
	c.mu.Lock()
	wait := !c.closed && len(c.parting) < maxParting
	if wait {
		c.parting[conn] = struct{}{}
		c.parted.Add(1)
	}
	c.mu.Unlock()
	if !wait {
		// A fresh connection's send buffer takes this without waiting.
		_ = conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		_, _ = io.WriteString(conn.agentConn, overloaded)
		_ = conn.agentConn.Close()
		return
	}
	go func() { // Run waits for its end
		defer c.parted.Done()
		sayBye(conn, []byte(overloaded))
		c.mu.Lock()
		delete(c.parting, conn)
		c.mu.Unlock()
		_ = conn.agentConn.Close()
	}()
}

// closeAll closes every connection, and those that come later.
func (c *crowd) closeAll() {
	c.mu.Lock()
	c.closed = true
	open := make([]*clientConn, 0, len(c.conns))
	for conn := range c.conns {
		open = append(open, conn)
	}
	for conn := range c.parting {
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
		if errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.ENOMEM) {
			return nil, scarce{err}
		}
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
		l.crowd.turnAway(c)
	}
}

// scarce is an accept that failed for want of the kernel's memory. For [http.Server] it is what
// the want of descriptors is by itself: a reason to try again, later and later, at last each second.
type scarce struct{ error }

func (scarce) Timeout() bool   { return false }
func (scarce) Temporary() bool { return true }
func (e scarce) Unwrap() error { return e.error }

// An agentConn is a [net.TCPConn], or a [proxysock.Conn], which ends as one does.
type agentConn interface{ halfCloser }

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
