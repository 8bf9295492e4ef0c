package egress

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A halfCloser is a connection of which one direction can be ended, in some wrapping. After
// SetLinger(0) its Close is a reset.
type halfCloser interface {
	net.Conn
	CloseWrite() error
	SetLinger(sec int) error
}

// prefixed is a connection of which some bytes were read already.
type prefixed struct {
	halfCloser
	early []byte
}

// Read implements [net.Conn].
func (c *prefixed) Read(p []byte) (int, error) {
	if len(c.early) > 0 {
		n := copy(p, c.early)
		c.early = c.early[n:]
		return n, nil
	}
	return c.halfCloser.Read(p)
}

// ReadFrom hands the socket itself to io.Copy, so that the kernel can splice.
func (c *prefixed) ReadFrom(r io.Reader) (int64, error) { return io.Copy(c.halfCloser, r) }

// buffered returns a copy of what r has read and nobody has taken.
func buffered(r *bufio.Reader) ([]byte, error) {
	b, err := r.Peek(r.Buffered())
	return bytes.Clone(b), err
}

// relay copies both ways between two connections, passing half-closes on, until both
// directions have ended or ctx does; then both are closed. It returns the bytes from a to b and from
// b to a, and whether both directions ended by themselves.
//
// What broke off is passed on as a reset, so that it can't pass for whole. Where one side takes no
// more, what it has yet to say still goes to the other.
func relay(ctx context.Context, a, b halfCloser) (up, down int64, whole bool) {
	abort := func() {
		for _, c := range []halfCloser{a, b} {
			_ = c.SetLinger(0)
			_ = c.Close()
		}
	}
	stop := context.AfterFunc(ctx, abort)
	defer stop()
	defer func() {
		_ = a.Close()
		_ = b.Close()
	}()
	there := &direction{dst: b, src: a, over: make(chan struct{})}
	back := &direction{dst: a, src: b, over: make(chan struct{})}
	var both sync.WaitGroup
	both.Go(func() { there.run(back, abort) })
	back.run(there, abort)
	both.Wait()
	return there.n, back.n, there.whole() && back.whole()
}

// A direction is one of the two of a relay.
type direction struct {
	dst, src halfCloser
	shut     atomic.Bool // dst was told of the end of src

	over          chan struct{} // closed when what follows is set
	n             int64
	read, written error // why the source, or the destination, came to an end, if not by itself
}

func (d *direction) whole() bool { return d.read == nil && d.written == nil }

func (d *direction) run(other *direction, abort func()) {
	d.n, d.read, d.written = transfer(d.dst, d.src)
	close(d.over)
	switch {
	case errors.Is(d.read, os.ErrDeadlineExceeded): // the other one has the say
	case d.read != nil, d.whole() && d.brokeOff(other):
		abort()
	case d.written == nil:
		d.shut.Store(true)
		_ = d.dst.CloseWrite()
	}
}

// brokeOff tells a reset of the source from its end. The kernel reports one to whoever asks first, and if
// that was the other direction, which writes there, what is read next is an end of file. It can be so only
// if the connection is over both ways, and not by our own end; then the other direction has
// nothing to do any more, and is stopped and asked.
func (d *direction) brokeOff(other *direction) bool {
	if other.shut.Load() || !isOver(d.src) {
		return false
	}
	_ = d.dst.SetReadDeadline(time.Unix(1, 0))
	<-other.over
	why := errors.Join(other.read, other.written)
	return why != nil && !errors.Is(why, os.ErrDeadlineExceeded) && !errors.Is(why, unix.EPIPE) // which follows an end of the source's
}

// isOver reports whether neither side of a TCP connection can send any more.
func isOver(c net.Conn) bool {
	t := tcpOf(c)
	if t == nil {
		return false
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return false
	}
	over := false
	_ = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		over = err == nil && info.State == unix.BPF_TCP_CLOSE
	})
	return over
}

// tcpOf returns what is below the wrappings of a connection, nil if that is not TCP.
func tcpOf(c net.Conn) *net.TCPConn {
	switch c := c.(type) {
	case *net.TCPConn:
		return c
	case *prefixed:
		return tcpOf(c.halfCloser)
	case *clientConn:
		return tcpOf(c.agentConn)
	case *tied:
		return c.TCPConn
	}
	return nil
}

// bulk is after how many full buffers in a row a stream is taken for a large one.
const bulk = 4

// transfer copies src to dst until the end of src, for which read is nil; written is why dst took no more.
// While src is silent, no buffer is held. Messages are copied, since two system calls are cheaper
// for a few bytes than two splices, and need no pipe; what is large is spliced by the kernel where both are
// TCP connections.
func transfer(dst, src halfCloser) (n int64, read, written error) {
	if p, ok := src.(*prefixed); ok {
		if len(p.early) > 0 {
			m, err := dst.Write(p.early)
			if n = int64(m); err != nil {
				return n, nil, err
			}
		}
		p.early, src = nil, p.halfCloser
	}
	from := newSource(src)
	for full := 0; full < bulk; {
		buf, m, err := from.read()
		if m > 0 {
			var sent int
			sent, written = dst.Write(buf[:m])
			n += int64(sent)
		}
		if full++; m < len(buf) {
			full = 0
		}
		streamBuffers.Put(buf)
		switch {
		case written != nil:
			return n, nil, written
		case errors.Is(err, io.EOF):
			return n, nil, nil
		case err != nil:
			return n, err, nil
		}
	}
	m, err := io.Copy(dst, src)
	if errors.Is(err, unix.EPIPE) {
		return n + m, nil, errSpliced
	}
	return n + m, err, nil // or it was dst's: of a splice that can't be told
}

// errSpliced is that dst takes no more of what is spliced to it, after an end of its peer's or a reset.
var errSpliced = errors.New("broken pipe")

// A source is what a stream is read from.
type source struct {
	net.Conn
	raw syscall.RawConn // nil if it is no TCP connection
}

func newSource(c net.Conn) source {
	s := source{Conn: c}
	if t := tcpOf(c); t != nil {
		s.raw, _ = t.SyscallConn() // its error is that of t being nil
	}
	return s
}

type streamBuffer [16 << 10]byte

var streamBuffers = sync.Pool{New: func() any { return new(streamBuffer) }}

// read takes a buffer once there is something to read, for the caller to give back.
func (s source) read() (buf *streamBuffer, n int, err error) {
	take := func() {
		buf = streamBuffers.Get().(*streamBuffer) //nolint:errcheck // it holds nothing else
	}
	if s.raw == nil {
		take()
		n, err = s.Read(buf[:])
		return buf, n, err
	}
	waited := s.raw.Read(func(fd uintptr) bool {
		take()
		for {
			n, err = unix.Read(int(fd), buf[:])
			if !errors.Is(err, unix.EINTR) {
				break
			}
		}
		if errors.Is(err, unix.EAGAIN) {
			streamBuffers.Put(buf)
			buf = nil
			return false
		}
		return true
	})
	switch {
	case waited != nil:
		n, err = 0, waited
	case n == 0 && err == nil:
		err = io.EOF
	}
	if buf == nil {
		take()
	}
	return buf, max(n, 0), err
}
