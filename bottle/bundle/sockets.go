package bundle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"bottle/bottle"
)

// takeOverFor is how long a predecessor that was killed may still hold a socket: its daemons
// end by their parent-death signal, a moment after it.
const (
	takeOverFor   = 2 * time.Second
	takeOverEvery = 10 * time.Millisecond
	maxFlush      = 10000 // connections at a time: whoever makes more must not hold init up
)

// A socket is one that init listens on for its daemons. It stays open when they end, so a
// client that comes meanwhile waits in the backlog, and no port or inode changes. It is a bare
// descriptor because the runtime's poller would wake init for each connection.
type socket struct {
	addr string // host:port, or a path
	fd   int
	open func(context.Context) (*socket, error) // makes it anew
}

// revive makes the socket anew if it does not listen any more. A daemon that was taken over can
// see to that (shutdown(2) is about the socket, not about its descriptor), and its successors
// must not have to bear it.
func (s *socket) revive(ctx context.Context) error {
	poll := []unix.PollFd{{Fd: int32(s.fd)}} //nolint:gosec // G115: an open descriptor
	if _, err := unix.Poll(poll, 0); err == nil && poll[0].Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) == 0 {
		return nil
	}
	again, err := s.open(ctx)
	if err != nil {
		return fmt.Errorf("listen on %s again: %w", s.addr, err)
	}
	s.close()
	s.fd = again.fd
	return nil
}

func (s *socket) close() { _ = unix.Close(s.fd) }

// bare takes the socket out of l, which is closed.
func bare(l net.Listener, raw interface {
	Control(f func(fd uintptr)) error
},
) (*socket, error) {
	s := &socket{addr: l.Addr().String(), fd: -1}
	var dup error
	if err := raw.Control(func(fd uintptr) { s.fd, dup = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		dup = err
	}
	if err := l.Close(); err != nil && dup == nil {
		dup = err
	}
	if dup != nil {
		return nil, fmt.Errorf("listen on %s: %w", s.addr, dup)
	}
	return s, nil
}

// patiently tries until a predecessor is gone.
func patiently(ctx context.Context, try func() (*socket, error)) (*socket, error) {
	tick := time.NewTicker(takeOverEvery)
	defer tick.Stop()
	for end := time.Now().Add(takeOverFor); ; {
		s, err := try()
		if err == nil || !errors.Is(err, unix.EADDRINUSE) && !errors.Is(err, bottle.ErrLocked) || time.Now().After(end) {
			return s, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// listenTCP listens on host:port; port 0 picks one.
func listenTCP(ctx context.Context, field, addr string) (*socket, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // Landlock's port rules know TCP alone
	s, err := patiently(ctx, func() (*socket, error) {
		l, err := lc.Listen(ctx, "tcp", addr)
		if err != nil {
			return nil, fmt.Errorf("%s: listen on %s: %w; free the port, or set another", field, addr, err)
		}
		tcp, ok := l.(*net.TCPListener)
		if !ok {
			return nil, errors.Join(fmt.Errorf("%s: %s is no TCP address: %w", field, addr, bottle.ErrInvalid), l.Close())
		}
		raw, err := tcp.SyscallConn()
		if err != nil {
			return nil, errors.Join(err, l.Close())
		}
		return bare(l, raw)
	})
	if err != nil {
		return nil, err
	}
	s.open = func(ctx context.Context) (*socket, error) { return listenTCP(ctx, field, s.addr) }
	return s, nil
}

// listenUnix makes the socket at path. A stale one, which refuses connections, is replaced; one
// that a live server answers on is not ([bottle.ErrLocked]), and neither is anything else.
//
// The mode comes from the umask and not from a chmod afterwards, which would leave a moment
// in which anybody may connect. So nothing else in the process may make files meanwhile.
func listenUnix(ctx context.Context, path string, umask int) (*socket, error) {
	s, err := patiently(ctx, func() (*socket, error) {
		if err := removeStale(ctx, path); err != nil {
			return nil, err
		}
		old := unix.Umask(umask)
		l, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
		unix.Umask(old)
		if err != nil {
			return nil, err
		}
		u, ok := l.(*net.UnixListener)
		if !ok {
			return nil, errors.Join(fmt.Errorf("%s: not a unix socket: %w", path, bottle.ErrInvalid), l.Close())
		}
		u.SetUnlinkOnClose(false)
		raw, err := u.SyscallConn()
		if err != nil {
			return nil, errors.Join(err, l.Close())
		}
		return bare(l, raw)
	})
	if err != nil {
		return nil, err
	}
	s.open = func(ctx context.Context) (*socket, error) { return listenUnix(ctx, path, umask) }
	return s, nil
}

func removeStale(ctx context.Context, path string) error {
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case fi.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("socket path %s: there is something that is not a socket; move it away: %w", path, bottle.ErrInvalid)
	}
	c, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", path)
	if err == nil {
		_ = c.Close()
		return fmt.Errorf("socket path %s: a live server answers there; stop it first: %w", path, bottle.ErrLocked)
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("socket path %s: can't tell whether a server lives there: %w", path, err)
	}
	return remove(path)
}

// flush ends the connections that wait in the backlog of a socket that nobody will accept
// from any more: whoever made them is told now, and tries again elsewhere.
func (s *socket) flush() {
	// The flag is the socket's and not the descriptor's, so a daemon that was taken over can
	// clear it, and have init wait here.
	if unix.SetNonblock(s.fd, true) != nil {
		return
	}
	for range maxFlush {
		fd, _, err := unix.Accept4(s.fd, unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNABORTED) {
			continue
		}
		if err != nil {
			return
		}
		_ = unix.Close(fd)
	}
}
