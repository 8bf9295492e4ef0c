package egress

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"sync"
)

// A halfCloser is a connection of which one direction can be ended, in some wrapping.
type halfCloser interface {
	net.Conn
	CloseWrite() error
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

// WriteTo hands the socket itself to io.Copy once what was read early is out, so that the
// kernel can splice.
func (c *prefixed) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(c.early)
	if c.early = c.early[n:]; err != nil {
		return int64(n), err
	}
	m, err := io.Copy(w, c.halfCloser)
	return int64(n) + m, err
}

// ReadFrom does the same for what is written.
func (c *prefixed) ReadFrom(r io.Reader) (int64, error) { return io.Copy(c.halfCloser, r) }

// buffered returns a copy of what r has read and nobody has taken.
func buffered(r *bufio.Reader) ([]byte, error) {
	b, err := r.Peek(r.Buffered())
	return bytes.Clone(b), err
}

// relay copies both ways between two connections, passing half-closes on, until both
// directions have ended or ctx does; then both are closed. Nothing is buffered beyond one
// copy, and between two TCP connections the kernel splices. It returns the bytes from a to b and
// from b to a, and whether both directions ended by themselves.
func relay(ctx context.Context, a, b halfCloser) (up, down int64, whole bool) {
	end := func() {
		_ = a.Close()
		_ = b.Close()
	}
	stop := context.AfterFunc(ctx, end)
	defer stop()
	defer end()
	pump := func(dst, src halfCloser) (int64, error) {
		n, err := io.Copy(dst, src)
		if err != nil {
			end() // neither side may wait for one that is gone
			return n, err
		}
		_ = dst.CloseWrite()
		return n, nil
	}
	var (
		there          sync.WaitGroup
		upErr, downErr error
	)
	there.Go(func() { up, upErr = pump(b, a) })
	down, downErr = pump(a, b)
	there.Wait()
	return up, down, upErr == nil && downErr == nil
}
