package bundle

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"bottle/bottle"
)

// The names of the descriptors that a daemon of ours is started with, in LISTEN_FDNAMES.
// The first is 3, as sd_listen_fds(3) has it, of which this is a subset: init can't know the pid before the
// start, so LISTEN_PID is set by the launcher alone.
const (
	FDProxy     = "proxy"     // egress: the agent's proxy
	FDProxyUnix = "proxyunix" // egress: the same, for a sandbox without a network
	FDKeys      = "keys"      // egress: where the keeper hands tokens over
	FDMCP       = "mcp"       // supervise: the agent's MCP socket
	FDGate      = "gate"      // pipelock: one of its loopback ports
	FDHandover  = "handover"  // pipelock: one end of a socket pair that all of a bundle's share
	FDAdopt     = "adopt"     // pipelock: the other end
	FDPass      = "pass"      // pipelock: the end of another such pair, by which it passes connections to egress
	FDPassed    = "passed"    // egress: the other end; not there where pipelock is not ours
	FDAccess    = "access"    // egress: a pipe for its access log
	fdReport    = "report"    // all: where the status goes
)

const (
	envListenFDs   = "LISTEN_FDS"
	envListenNames = "LISTEN_FDNAMES"
	envListenPID   = "LISTEN_PID"
	firstFD        = 3
	maxInherited   = 16
)

// An Inheritance is what init started this process with: listening sockets, which outlive
// it, and a pipe for its status.
type Inheritance struct {
	files  map[string]*os.File
	report struct {
		sync.Mutex
		w *os.File
	}
}

// Inherit takes the descriptors over, once: the variables that name them are unset. A
// process that was not started by init inherits none, and is told so when it asks for one.
func Inherit() (*Inheritance, error) {
	in := &Inheritance{files: map[string]*os.File{}}
	count, names, pid := os.Getenv(envListenFDs), os.Getenv(envListenNames), os.Getenv(envListenPID)
	for _, k := range []string{envListenFDs, envListenNames, envListenPID} {
		if err := os.Unsetenv(k); err != nil {
			return nil, err
		}
	}
	if count == "" || pid != "" && pid != strconv.Itoa(os.Getpid()) { // meant for another process
		return in, nil
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 0 || n > maxInherited {
		return nil, fmt.Errorf("%s=%q: not a number up to %d: %w", envListenFDs, count, maxInherited, bottle.ErrInvalid)
	}
	list := strings.Split(names, ":")
	if len(list) != n {
		return nil, fmt.Errorf("%s=%q: %d names for %d descriptors: %w", envListenNames, names, len(list), n, bottle.ErrInvalid)
	}
	for i, name := range list {
		unix.CloseOnExec(firstFD + i)
		in.files[name] = os.NewFile(uintptr(firstFD+i), name)
	}
	in.report.w = in.files[fdReport]
	return in, nil
}

// File returns an inherited descriptor, whose owner the caller is from then on.
func (in *Inheritance) File(name string) (*os.File, error) {
	f, ok := in.files[name]
	if !ok {
		return nil, fmt.Errorf("no descriptor %q was inherited: the daemons are started by bottle-sidecars init: %w", name, bottle.ErrInvalid)
	}
	delete(in.files, name)
	return f, nil
}

// Listener returns an inherited socket. Closing it stops this process' listening; the socket
// itself lives on in init, and so does its backlog.
func (in *Inheritance) Listener(name string) (net.Listener, error) {
	f, err := in.File(name)
	if err != nil {
		return nil, err
	}
	defer f.Close() // FileListener duplicates it
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("inherited socket %q: %w", name, err)
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	return l, nil
}

// Has reports whether there is such a descriptor that nobody has taken yet.
func (in *Inheritance) Has(name string) bool { return in.files[name] != nil }

// UnixConn returns an inherited end of a socket pair.
func (in *Inheritance) UnixConn(name string) (*net.UnixConn, error) {
	f, err := in.File(name)
	if err != nil {
		return nil, err
	}
	defer f.Close() // FileConn duplicates it
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("inherited socket %q: %w", name, err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("inherited socket %q: not a unix socket: %w", name, bottle.ErrInvalid), c.Close())
	}
	return u, nil
}

// Pipe returns an inherited pipe. Writes to it obey deadlines, so that an end need not wait for
// who reads it.
func (in *Inheritance) Pipe(name string) (*os.File, error) {
	f, err := in.File(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		return nil, fmt.Errorf("inherited pipe %q: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Report tells init what this daemon's status is. init alone writes status/, so that no daemon can
// speak for another.
func (in *Inheritance) Report(st bottle.DaemonStatus) error {
	b, err := json.Marshal(st)
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	in.report.Lock()
	defer in.report.Unlock()
	if in.report.w == nil {
		return errors.New("report: no pipe to init was inherited")
	}
	if len(b) >= maxReport {
		return fmt.Errorf("report: %d bytes; at most %d", len(b), maxReport)
	}
	if _, err := in.report.w.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}
