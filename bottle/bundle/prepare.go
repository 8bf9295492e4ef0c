package bundle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"bottle/bottle"
)

// The modes of the sockets, as umasks: those of the agent's are for the owner and the group, the keeper's
// for the owner alone.
const (
	umaskAgent = 0o117
	umaskKeys  = 0o177
)

// prepare reads what the host wrote, clears what an earlier init left (its published files, which the
// host may have narrowed since, and its status files, since pids repeat), and opens the sockets.
func (s *Supervisor) prepare(ctx context.Context) error {
	dir := s.cfg.Dir
	if os.Getpid() != 1 {
		// PID 1 gets the orphans anyway; a child has to ask for them.
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("become the subreaper: %w", err)
		}
	}
	unix.Umask(0o077)
	// A descriptor that somebody leaked to this process is not for the daemons.
	if err := closeOnExec(0); err != nil {
		return err
	}
	var err error
	if s.bundle, err = loadConfig(dir.BundleConfig()); err != nil {
		return err
	}
	names, err := pickDaemons(lookup(s.cfg.Environ, EnvDaemons), s.bundle.Daemons)
	if err != nil {
		return err
	}
	s.env = childEnv(s.cfg.Environ, s.bundle.Credentials)
	now := time.Now()
	for _, n := range names {
		d := &daemon{name: n}
		switch n {
		case bottle.DaemonEgress:
			d.file = s.addFile(bottle.RoutesFile, dir.Routes())
		case bottle.DaemonPipelock:
			d.file = s.addFile(bottle.PipelockFile, dir.Pipelock())
		}
		if d.file != nil {
			if err := remove(d.file.live); err != nil {
				return err
			}
			d.file.begin(now)
		}
		if err := remove(dir.DaemonStatus(n)); err != nil {
			return err
		}
		s.daemons = append(s.daemons, d)
	}
	if err := s.openSockets(ctx, names); err != nil {
		return err
	}
	return s.writeConfigs(names)
}

func (s *Supervisor) addFile(name, mounted string) *file {
	f := &file{name: name, mounted: mounted, live: s.cfg.Dir.Live(name)}
	s.files[name] = f
	return f
}

// openSockets listens for the daemons. The addresses in the config become concrete.
func (s *Supervisor) openSockets(ctx context.Context, names []string) (err error) {
	if slices.Contains(names, bottle.DaemonPipelock) {
		if s.slots, err = openSlots(ctx, s.bundle.Pipelock, s.bundle.Binary == ""); err != nil {
			return err
		}
		if s.bundle.Binary == "" {
			if s.handover, err = newPair(); err != nil {
				return fmt.Errorf("socket pair of the pipelocks: %w", err)
			}
			if s.passing, err = newPair(); err != nil {
				return fmt.Errorf("socket pair of pipelock and egress: %w", err)
			}
			// Nobody would read what egress sends.
			if err = unix.Shutdown(s.passing[1], unix.SHUT_WR); err != nil {
				return fmt.Errorf("socket pair of pipelock and egress: %w", err)
			}
		}
		s.bundle.Pipelock = nil
		for _, sl := range s.slots {
			s.bundle.Pipelock = append(s.bundle.Pipelock, sl.addr)
		}
	}
	if slices.Contains(names, bottle.DaemonEgress) {
		if s.proxy, err = listenTCP(ctx, "egress.listen", s.bundle.Egress); err != nil {
			return err
		}
		s.bundle.Egress = s.proxy.addr
		if s.inside, err = listenUnix(ctx, s.cfg.Dir.ProxySocket(), umaskAgent); err != nil {
			return fmt.Errorf("proxy socket: %w", err)
		}
		if s.keys, err = listenUnix(ctx, s.cfg.Dir.KeySocket(), umaskKeys); err != nil {
			return fmt.Errorf("key socket: %w", err)
		}
	}
	if slices.Contains(names, bottle.DaemonSupervise) {
		if s.mcp, err = listenUnix(ctx, s.cfg.Dir.MCPSocket(), umaskAgent); err != nil {
			return fmt.Errorf("MCP socket: %w", err)
		}
	}
	return nil
}

// A pair is two sockets that are connected to each other, of the kind that keeps messages
// apart, each of which carries a connection or two. Nil is none.
type pair []int

func newPair() (pair, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	return fds[:], nil
}

func (p pair) close() {
	for _, fd := range p {
		_ = unix.Close(fd)
	}
}

// closeSockets removes the socket files too: a client that comes later is refused at once.
func (s *Supervisor) closeSockets() {
	closeSlots(s.slots)
	s.handover.close()
	s.passing.close()
	for _, sock := range []*socket{s.proxy, s.inside, s.keys, s.mcp} {
		if sock == nil {
			continue
		}
		if filepath.IsAbs(sock.addr) {
			_ = remove(sock.addr) // its server is gone: who finds it is refused anyway
		}
		sock.close()
	}
}

// writeConfigs gives each daemon, in a directory that it alone reads, its part of the
// config, and egress the address of the first pipelock.
func (s *Supervisor) writeConfigs(names []string) error {
	dir := s.cfg.Dir
	for _, n := range names {
		for _, d := range []string{filepath.Dir(dir.DaemonConfig(n)), filepath.Dir(dir.SpentFile())} {
			if err := os.MkdirAll(d, 0o700); err != nil {
				return err
			}
		}
		if err := bottle.WriteStatus(dir.DaemonConfig(n), part(n, s.bundle)); err != nil {
			return err
		}
	}
	if len(s.slots) == 0 {
		return nil
	}
	s.hop = s.slots[0].addr
	if !slices.Contains(names, bottle.DaemonEgress) {
		return nil
	}
	return bottle.WriteStatus(dir.HopFile(), bottle.Hop{Schema: bottle.Schema, Pipelock: s.hop})
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
