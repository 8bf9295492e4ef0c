package inside

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"bottle/bottle/proxysock"
)

const (
	// dialFor is how long a connection waits for a bundle that is being restarted; its socket is
	// missing meanwhile, or refuses.
	dialFor   = 10 * time.Second
	dialEvery = 20 * time.Millisecond
	// acceptPause is between tries to accept when the process is out of descriptors.
	acceptPause = 50 * time.Millisecond
)

// A Forward carries connections from a loopback address to a unix socket.
type Forward struct {
	Listen string // host:port
	Socket string // path
}

// ParseForward reads host:port=path.
func ParseForward(s string) (Forward, error) {
	listen, socket, ok := strings.Cut(s, "=")
	host, _, err := net.SplitHostPort(listen)
	if !ok || err != nil || !strings.HasPrefix(socket, "/") {
		return Forward{}, fmt.Errorf("forward %q: give it as 127.0.0.1:PORT=/PATH/OF/SOCKET", s)
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return Forward{}, fmt.Errorf("forward %q: %s is no loopback address", s, host)
	}
	return Forward{Listen: listen, Socket: socket}, nil
}

func (f Forward) listen(ctx context.Context) (*net.TCPListener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", f.Listen)
	if err != nil {
		return nil, fmt.Errorf("forward %s: %w", f.Listen, err)
	}
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("forward %s: no TCP address", f.Listen), l.Close())
	}
	return tcp, nil
}

// serve ends with ctx, and with it every connection.
func (f Forward) serve(ctx context.Context, l *net.TCPListener) {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.AcceptTCP()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // out of descriptors: they come free again
			select {
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
			continue
		}
		wg.Go(func() {
			up, err := f.dial(ctx)
			if err != nil {
				_ = c.SetLinger(0)
				_ = c.Close()
				return
			}
			carry(ctx, c, up)
		})
	}
}

func (f Forward) dial(ctx context.Context) (*proxysock.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialFor)
	defer cancel()
	tick := time.NewTicker(dialEvery)
	defer tick.Stop()
	for {
		c, err := (&net.Dialer{}).DialContext(ctx, "unix", f.Socket)
		if u, ok := c.(*net.UnixConn); ok && err == nil {
			return proxysock.New(u), nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, err
		}
	}
}

// A side is one of the two connections: each can end, end in one direction, or be cut.
type side interface {
	net.Conn
	CloseWrite() error
	SetLinger(sec int) error
}

// carry copies both ways until both have ended. If one is cut, so is the other: what it had by
// then must not look whole.
func carry(ctx context.Context, a, b side) {
	cut := func() {
		for _, c := range []side{a, b} {
			_ = c.SetLinger(0)
			_ = c.Close()
		}
	}
	stop := context.AfterFunc(ctx, cut)
	defer stop()
	pump := func(dst, src side) {
		if _, err := io.Copy(dst, src); err != nil {
			cut()
			return
		}
		_ = dst.CloseWrite()
	}
	var wg sync.WaitGroup
	wg.Go(func() { pump(a, b) })
	wg.Go(func() { pump(b, a) })
	wg.Wait()
	_ = a.Close()
	_ = b.Close()
}
