package launch

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// A relayTTY gives the agent a terminal of its own and shows it on the operator's. The agent never holds
// the operator's: it could type into it (TIOCSTI), read what is typed once it has ended, or leave it
// in a mode in which the next prompt lies. What it prints does get there, escapes included.
type relayTTY struct {
	in, out    *os.File
	master     *os.File
	restore    func() error
	stopReader *os.File // closing it ends the copy from in
	resized    chan os.Signal
	wg         sync.WaitGroup
}

// newRelayTTY returns the relay and the agent's side, which the caller closes once the agent has it.
func newRelayTTY(in, out *os.File) (*relayTTY, *os.File, error) {
	master, slave, err := pty.Open()
	if err != nil {
		return nil, nil, fmt.Errorf("a terminal for the agent: %w", err)
	}
	r := &relayTTY{in: in, out: out, master: master, resized: make(chan os.Signal, 1)}
	_ = pty.InheritSize(in, master) // else it is 0 by 0, as on a serial line
	return r, slave, nil
}

// run starts the copying; stop ends it.
func (r *relayTTY) run() error {
	fd := int(r.in.Fd())
	old, err := term.MakeRaw(fd)
	if err != nil {
		return fmt.Errorf("the terminal: %w", err)
	}
	r.restore = func() error { return term.Restore(fd, old) }
	stopped, stop, err := os.Pipe()
	if err != nil {
		return errors.Join(err, r.restore())
	}
	r.stopReader = stop
	signal.Notify(r.resized, unix.SIGWINCH)
	r.wg.Go(func() {
		for range r.resized {
			_ = pty.InheritSize(r.in, r.master)
		}
	})
	r.wg.Go(func() {
		defer stopped.Close()
		r.copyIn(fd, stopped)
	})
	r.wg.Go(func() { _, _ = io.Copy(r.out, r.master) }) // ends with EIO when the last of the agent's processes has closed its side
	return nil
}

// copyIn ends when the other end of stopped is closed. A plain read would keep waiting, and take
// from the operator what is typed next.
func (r *relayTTY) copyIn(fd int, stopped *os.File) {
	buf := make([]byte, 4<<10)
	for {
		p := []unix.PollFd{
			{Fd: int32(fd), Events: unix.POLLIN},           //nolint:gosec // G115: a descriptor
			{Fd: int32(stopped.Fd()), Events: unix.POLLIN}, //nolint:gosec // G115: a descriptor
		}
		if _, err := unix.Poll(p, -1); errors.Is(err, unix.EINTR) {
			continue
		} else if err != nil || p[1].Revents != 0 {
			return
		}
		n, err := unix.Read(fd, buf)
		if n > 0 {
			if _, err := r.master.Write(buf[:n]); err != nil {
				return
			}
		}
		if n == 0 || err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return // the operator's terminal is gone: so will we be, by SIGHUP
		}
	}
}

// stop waits for the last of the output, and gives the terminal back as it was.
func (r *relayTTY) stop() error {
	if r.restore == nil {
		return r.master.Close()
	}
	_ = r.stopReader.Close()
	signal.Stop(r.resized)
	close(r.resized)
	r.wg.Wait()
	return errors.Join(r.master.Close(), r.restore())
}
