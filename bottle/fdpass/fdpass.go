// Package fdpass passes open TCP connections from one process to another, by SCM_RIGHTS over a
// socket pair of kind SOCK_SEQPACKET (unix(7)): one message bears a few bytes and the connections
// that they are about. What nobody has read yet, the kernel keeps, open connections included.
package fdpass

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Header is how egress asks pipelock, with a CONNECT, to pass it the connection to the upstream
// instead of relaying what flows: the value is the body of the message that bears it. An answer with
// the same field says that the message was sent. The connection that the CONNECT came by is the
// leash then: who closes it, or dies, ends the other connection too, by a reset. Egress says by one byte
// before, the only one that the leash carries, that what it has written is still to be sent.
const Header = "Bottle-Pass"

// MaxBody is how many bytes a message may have.
const MaxBody = 1024

// Room for more descriptors than anybody sends, so that those too many are closed here rather
// than taken for none.
const maxRights = 8

// ErrNoRoom is a message that the socket did not take within its write deadline.
var ErrNoRoom = errors.New("nobody has taken the connections before it yet")

// CheckEnd refuses a socket that would not keep messages apart.
func CheckEnd(c *net.UnixConn) error {
	return control(c, func(fd int) error {
		kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
		if err == nil && kind != unix.SOCK_SEQPACKET {
			err = errors.New("give an end of a SOCK_SEQPACKET pair")
		}
		return err
	})
}

// Send passes conns, which stay open here too. It waits for room until c's write deadline, and
// without one for ever. The descriptors are held rather than duplicated: the sockets stay
// non-blocking, and what Go keeps of deadlines is not theirs.
func Send(c *net.UnixConn, body []byte, conns ...*net.TCPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return holding(conns, nil, func(fds []int) error {
		oob := unix.UnixRights(fds...)
		var sent error
		err := raw.Write(func(fd uintptr) bool {
			sent = send(int(fd), body, oob)
			return !errors.Is(sent, unix.EAGAIN)
		})
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded): // perhaps before the first try
			return fmt.Errorf("%w (%w)", ErrNoRoom, err)
		case err != nil:
			return err
		}
		return sent
	})
}

// TrySend is Send without waiting: where there is no room, its error is [ErrNoRoom].
func TrySend(c *net.UnixConn, body []byte, conns ...*net.TCPConn) error {
	return holding(conns, nil, func(fds []int) error {
		err := control(c, func(fd int) error { return send(fd, body, unix.UnixRights(fds...)) })
		if errors.Is(err, unix.EAGAIN) {
			return ErrNoRoom
		}
		return err
	})
}

// send never blocks the thread, whatever another holder of the socket made of its flags.
func send(fd int, b, oob []byte) error {
	for {
		err := unix.Sendmsg(fd, b, oob, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func holding(conns []*net.TCPConn, fds []int, f func([]int) error) error {
	if len(conns) == 0 {
		return f(fds)
	}
	return control(conns[0], func(fd int) error { return holding(conns[1:], append(fds, fd), f) })
}

func control(c syscall.Conn, f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// A Message is what came at once. Its receiver calls Take or Close.
type Message struct {
	Body  []byte
	oob   []byte
	flags int
}

// Receive waits for the next message, until c's read deadline if it has one. Its error is that
// of the socket, for good; the other end's close is [io.EOF].
func Receive(c *net.UnixConn) (Message, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return Message{}, err
	}
	m := Message{Body: make([]byte, MaxBody), oob: make([]byte, unix.CmsgSpace(4*maxRights))}
	var got error
	err = raw.Read(func(fd uintptr) bool {
		for {
			n, oobn, flags, _, err := unix.Recvmsg(int(fd), m.Body, m.oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
			switch {
			case errors.Is(err, unix.EINTR):
				continue
			case err == nil && n == 0 && oobn == 0 && hungUp(int(fd)):
				err = io.EOF
			}
			if got = err; err == nil {
				m.Body, m.oob, m.flags = m.Body[:n], m.oob[:oobn], flags
			}
			return !errors.Is(err, unix.EAGAIN)
		}
	})
	if err == nil {
		err = got
	}
	return m, err
}

// hungUp tells the end of a socket from an empty message.
func hungUp(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}} //nolint:gosec // G115: a descriptor
	n, err := unix.Poll(p, 0)
	return err == nil && n == 1 && p[0].Revents&(unix.POLLRDHUP|unix.POLLHUP) != 0
}

// Take returns the message's connections, one for each role, in which an error names the one
// that is at fault. After an error nothing of the message is left open.
func (m Message) Take(roles ...string) (_ []*net.TCPConn, err error) {
	fds, err := m.descriptors()
	defer func() { closeAll(fds) }()
	switch {
	case err != nil:
		return nil, err
	case m.flags&unix.MSG_TRUNC != 0:
		return nil, fmt.Errorf("more than %d bytes", MaxBody)
	case m.flags&unix.MSG_CTRUNC != 0:
		return nil, fmt.Errorf("descriptors were lost: too many were sent, or this process has no room: %w", unix.EMFILE)
	case len(fds) != len(roles):
		return nil, fmt.Errorf("%d descriptors, not %d", len(fds), len(roles))
	}
	var conns []*net.TCPConn
	for _, role := range roles {
		c, err := tcpConn(fds[0])
		fds = fds[1:] // it is tcpConn's
		if err != nil {
			for _, c := range conns {
				_ = c.Close()
			}
			return nil, fmt.Errorf("%s: %w", role, err)
		}
		conns = append(conns, c)
	}
	return conns, nil
}

// Close closes what the message bears.
func (m Message) Close() {
	fds, _ := m.descriptors() // whatever it says of the others
	closeAll(fds)
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// descriptors returns those of the message, after an error too: they are open.
func (m Message) descriptors() (fds []int, err error) {
	list, err := unix.ParseSocketControlMessage(m.oob)
	if err != nil {
		return nil, err
	}
	for i := range list {
		some, parseErr := unix.ParseUnixRights(&list[i])
		if parseErr != nil {
			err = errors.New("it bears something else than descriptors")
			continue
		}
		fds = append(fds, some...)
	}
	return fds, err
}

// tcpConn makes a connection of a descriptor, which is closed if it can't be one.
func tcpConn(fd int) (*net.TCPConn, error) {
	f := os.NewFile(uintptr(fd), "passed")
	defer f.Close() // FileConn duplicates it
	for _, want := range []struct{ option, value int }{
		{unix.SO_TYPE, unix.SOCK_STREAM}, {unix.SO_PROTOCOL, unix.IPPROTO_TCP}, {unix.SO_ACCEPTCONN, 0},
	} {
		switch v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, want.option); {
		case err != nil:
			return nil, fmt.Errorf("not a socket: %w", err)
		case v != want.value:
			return nil, errors.New("not a TCP connection")
		}
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		_ = c.Close()
		return nil, errors.New("not a TCP connection")
	}
	return tcp, nil
}
