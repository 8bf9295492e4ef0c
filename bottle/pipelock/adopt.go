package pipelock

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"bottle/bottle"
	"bottle/bottle/allow"
)

// Room for more descriptors than the two of a tunnel, so that those too many are closed
// here rather than taken for none.
const maxRights = 8

// adopt takes over tunnels until the function that it returns is called, which returns once
// it reads no more. What comes later stays in the socket, for another gate.
//
// Who sends is another gate, behind the same walls. One that was hijacked could reach no
// more through this one than by itself, but it gets nothing for free: what is not a tunnel
// to a host that this gate allows is closed.
func (g *Gate) adopt() (stop func()) {
	if g.cfg.Adopt == nil {
		return func() {}
	}
	var reading sync.WaitGroup
	reading.Go(func() {
		for {
			m, err := receive(g.cfg.Adopt)
			if err != nil {
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					g.log.Error("no more tunnels can be adopted", "error", err.Error())
				}
				return
			}
			t, err := m.tunnel(g.cfg.AllowCIDRs)
			if err != nil {
				g.chatter.Warn("what was handed over is no tunnel, and was closed", "error", err.Error())
				g.counters.failed.Add(1)
				continue
			}
			g.takeOver(t)
		}
	})
	return func() {
		_ = g.cfg.Adopt.SetReadDeadline(time.Unix(1, 0))
		reading.Wait()
	}
}

// takeOver carries on with a tunnel from another gate, if the table in force here allows it.
func (g *Gate) takeOver(t *tunnel) {
	ctx, end, why := g.admit(context.Background(), t.host, t.port)
	if why != nil {
		t.cut(errForbidden)
		g.counters.cut.Add(1)
		g.chatter.Warn("a tunnel that was handed over is cut", "host", t.host, "port", t.port, "reason", why.Reason)
		return
	}
	g.counters.adopted.Add(1)
	g.hold()
	g.chatter.Debug("tunnel adopted", "host", t.host, "port", t.port, "since", t.since)
	go func() { // Run waits for its end
		defer end()
		defer g.release()
		g.carry(ctx, t)
	}()
}

// A message is what came in one datagram.
type message struct {
	body  []byte
	oob   []byte
	flags int
}

// receive waits for the next message. Its error is that of the socket, for good.
func receive(c *net.UnixConn) (message, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return message{}, err
	}
	m := message{body: make([]byte, maxPassed), oob: make([]byte, unix.CmsgSpace(4*maxRights))}
	var got error
	err = raw.Read(func(fd uintptr) bool {
		for {
			// Without blocking, whatever another holder of the socket made of its flags.
			n, oobn, flags, _, err := unix.Recvmsg(int(fd), m.body, m.oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
			switch {
			case errors.Is(err, unix.EINTR):
				continue
			case err == nil && n == 0 && oobn == 0 && hungUp(int(fd)):
				err = io.EOF
			}
			if got = err; err == nil {
				m.body, m.oob, m.flags = m.body[:n], m.oob[:oobn], flags
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

// tunnel returns what the message hands over. After an error nothing of it is left open.
func (m message) tunnel(permitted []netip.Prefix) (_ *tunnel, err error) {
	fds, err := rights(m.oob)
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}()
	switch {
	case err != nil:
		return nil, err
	case m.flags&unix.MSG_TRUNC != 0:
		return nil, fmt.Errorf("more than %d bytes", maxPassed)
	case m.flags&unix.MSG_CTRUNC != 0:
		return nil, errors.New("descriptors were lost: too many were sent, or this process has no room")
	case len(fds) != 2:
		return nil, fmt.Errorf("%d descriptors, not 2", len(fds))
	}
	var p passed
	d := json.NewDecoder(bytes.NewReader(m.body))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more follows the JSON")
	}
	switch h, err := bottle.ParseHost(string(p.Host)); {
	case err != nil:
		return nil, err
	case h != p.Host:
		return nil, fmt.Errorf("host %q is not canonical", clip(string(p.Host)))
	case p.Port < 1 || p.Port > 65535:
		return nil, fmt.Errorf("port %d", p.Port)
	case p.ClientEnded && p.UpstreamEnded:
		return nil, errors.New("both directions are at their end")
	}
	t := &tunnel{host: p.Host, port: p.Port, since: p.Since, there: p.ClientEnded, back: p.UpstreamEnded}
	defer func() {
		for _, c := range []*net.TCPConn{t.client, t.up} {
			if err != nil && c != nil {
				_ = c.Close()
			}
		}
	}()
	client, up := fds[0], fds[1]
	fds = nil // they are tcpConn's
	var errClient, errUp error
	t.client, errClient = tcpConn(client)
	t.up, errUp = tcpConn(up)
	switch {
	case errClient != nil:
		return nil, fmt.Errorf("client: %w", errClient)
	case errUp != nil:
		return nil, fmt.Errorf("upstream: %w", errUp)
	}
	return t, t.checkEnds(permitted)
}

// checkEnds holds a tunnel to what the gate that made it saw to. An end that is over has no
// peer, and may have bytes to read for all that.
func (t *tunnel) checkEnds(permitted []netip.Prefix) error {
	if a, ok := t.client.LocalAddr().(*net.TCPAddr); !ok || !a.IP.IsLoopback() {
		return fmt.Errorf("client: came to %s, which is not of loopback", t.client.LocalAddr())
	}
	a, ok := t.up.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return nil
	}
	to := a.AddrPort()
	if int(to.Port()) != t.port {
		return fmt.Errorf("upstream: %s, not port %d", to, t.port)
	}
	if class, ok := allow.Classify(to.Addr().Unmap(), permitted); !ok {
		return fmt.Errorf("upstream: %s is %s", to, class)
	}
	return nil
}

// rights returns the descriptors of a message, after an error too: they are open.
func rights(oob []byte) (fds []int, err error) {
	list, err := unix.ParseSocketControlMessage(oob)
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
	f := os.NewFile(uintptr(fd), "tunnel")
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
