package mcp

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"bottle/bottle"
)

// maxSocketPath is what sun_path holds, less its final NUL (unix(7)).
const maxSocketPath = 107

// socketUmask makes a new socket 0660: for its owner and its group.
const socketUmask = 0o117

// Listen makes the socket at path, mode 0660. A stale socket, one that refuses connections,
// is replaced; one that a live server answers on is not ([bottle.ErrLocked]), and neither
// is anything that is not a socket.
//
// The mode is set by the process's umask and not by a chmod afterwards, which would leave a
// moment in which anybody may connect. So nothing else in the process may make files meanwhile.
func Listen(path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("mcp: socket path %s: %d bytes, but a socket's path has at most %d; use a shorter state directory: %w", path, len(path), maxSocketPath, bottle.ErrInvalid)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	old := syscall.Umask(socketUmask)
	defer syscall.Umask(old)
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("mcp: listen: %w", err)
	}
	return l, nil
}

func removeStale(path string) error {
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("mcp: socket: %w", err)
	case fi.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("mcp: socket path %s: there is something that is not a socket; move it away: %w", path, bottle.ErrInvalid)
	}
	c, err := (&net.Dialer{Timeout: time.Second}).DialContext(context.Background(), "unix", path)
	if err == nil {
		_ = c.Close()
		return fmt.Errorf("mcp: socket path %s: a live server answers there; stop it first: %w", path, bottle.ErrLocked)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("mcp: socket path %s: can't tell whether a server lives there: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("mcp: stale socket: %w", err)
	}
	return nil
}
