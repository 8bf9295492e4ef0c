// Package proxysock is how a proxied connection crosses a unix socket, from the forwarder in the
// agent's sandbox to egress, without losing how it ended.
//
// # Model
//
// Egress cuts a connection that is no longer allowed with a TCP reset, so that what the
// agent has by then can't pass for a whole answer. A unix socket has no reset: whether its
// peer was done, cut the connection or was killed, the reader finds the same end of file. So both
// directions are framed: two bytes of length, high byte first, then that many bytes; a length
// of zero is the end. A stream that stops without it was cut, which the forwarder turns into
// a reset again. Whatever nobody foresaw, a crash among it, therefore is a cut.
//
// # Trust
//
// The peer is whoever reaches the socket, on egress' side the agent. A frame asks for no memory:
// its bytes are handed out as they come.
package proxysock

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	headSize = 2
	maxFrame = 1<<16 - 1 // what the head can say
	// readSize is what is read ahead of need: enough for a head and a small frame. A larger frame is
	// read past the buffer.
	readSize = 4 << 10
	// sendBuffer is asked for at first and lastBuffer for the end's sake (the kernel doubles
	// both): a full queue still takes the frame that says the stream is whole.
	sendBuffer = 64 << 10
	lastBuffer = 4 * sendBuffer
)

// A Conn is a [net.UnixConn] whose ends are told apart. Its methods are those of a
// [net.TCPConn] that a proxy needs. Reads may go on beside writes, as with any net.Conn.
type Conn struct {
	*net.UnixConn
	r    *bufio.Reader
	left int  // of the frame that is being read
	eof  bool // its end was read

	mu     sync.Mutex // held while a frame is written
	ended  bool       // the end was written, or can't be any more
	abrupt atomic.Bool
}

// New takes c over. Both ends of the socket must do so.
func New(c *net.UnixConn) *Conn {
	_ = c.SetWriteBuffer(sendBuffer) // else as the system has it
	return &Conn{UnixConn: c, r: bufio.NewReaderSize(c, readSize)}
}

// Read implements [net.Conn]. The error is [io.EOF] where the peer ended its direction, and
// [io.ErrUnexpectedEOF] where it was cut.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for c.left == 0 {
		if c.eof {
			return 0, io.EOF
		}
		head, err := c.r.Peek(headSize) // what it has stays, if a deadline passes
		if err != nil {
			return 0, cutAt(err)
		}
		c.left = int(binary.BigEndian.Uint16(head))
		c.eof = c.left == 0
		if _, err := c.r.Discard(headSize); err != nil {
			return 0, err
		}
	}
	n, err := c.r.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, cutAt(err)
}

func cutAt(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Write implements [net.Conn]. After an error the stream is cut: where its frame broke off, the
// next one can't begin.
func (c *Conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return 0, net.ErrClosed
	}
	done := 0
	for done < len(p) {
		part := p[done:min(len(p), done+maxFrame)]
		var head [headSize]byte
		binary.BigEndian.PutUint16(head[:], uint16(len(part))) //nolint:gosec // G115: at most maxFrame
		frame := net.Buffers{head[:], part}
		n, err := frame.WriteTo(c.UnixConn)
		done += max(0, int(n)-headSize)
		if err != nil {
			c.ended = true
			return done, err
		}
	}
	return done, nil
}

// CloseWrite says that the stream is whole. It does not wait for the peer.
func (c *Conn) CloseWrite() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.end()
}

// end writes the end, once, without waiting; c.mu is held.
func (c *Conn) end() error {
	if c.ended {
		return net.ErrClosed
	}
	c.ended = true
	_ = c.SetWriteBuffer(lastBuffer)
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Control(func(fd uintptr) {
		sent = unix.Sendto(int(fd), make([]byte, headSize), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil)
	})
	return errors.Join(err, sent, c.UnixConn.CloseWrite())
}

// SetLinger with 0 makes the Close that follows a cut. Other values are without effect.
func (c *Conn) SetLinger(sec int) error {
	c.abrupt.Store(sec == 0)
	return nil
}

// Close implements [net.Conn]. It says that the stream is whole, unless SetLinger asked for a
// cut, or somebody is in the midst of a Write. It does not wait for the peer.
func (c *Conn) Close() error {
	if !c.abrupt.Load() && c.mu.TryLock() {
		_ = c.end() // that it was ended, or that the peer is gone, makes no difference now
		c.mu.Unlock()
	}
	return c.UnixConn.Close()
}
