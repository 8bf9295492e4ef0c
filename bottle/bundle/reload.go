package bundle

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"bottle/bottle"
)

// The signals. Each begins a pass over one file and says what follows when it verifies;
// nothing follows if it doesn't: the daemon keeps serving what it has.
//
// The signal is passed on even if the bytes are the published ones: the host signals
// again when a daemon stays silent, and that must reach it.

func (s *Supervisor) onReload() {
	s.reload(s.daemon(bottle.DaemonEgress), unix.SIGHUP)
}

func (s *Supervisor) onReloadPipelock() {
	s.reload(s.daemon(bottle.DaemonPipelock), unix.SIGUSR2)
}

func (s *Supervisor) reload(d *daemon, sig syscall.Signal) {
	if d == nil || s.stopping {
		return
	}
	s.forward[d] = sig
	d.file.begin(time.Now())
}

func (s *Supervisor) onReplacePipelock() {
	d := s.daemon(bottle.DaemonPipelock)
	if d == nil || s.stopping {
		return
	}
	s.replace = true
	d.file.begin(time.Now())
}

// onRestartEgress kills an egress that did not confirm a narrowing. It stays down until
// routes.yaml has verified once more: with a torn file the published revision is the
// wider one that was just revoked, and coming back on it would undo the revocation.
func (s *Supervisor) onRestartEgress() {
	d := s.daemon(bottle.DaemonEgress)
	if d == nil || s.stopping {
		return
	}
	d.fresh = true
	d.startAt = time.Now()
	d.file.begin(d.startAt)
	if d.proc != nil {
		d.replace = true
		s.reaper.signal(d.proc, unix.SIGKILL, true)
	}
}

// onVerified follows a pass that ended well.
func (s *Supervisor) onVerified(now time.Time, f *file) {
	for _, d := range s.daemons {
		if d.file != f {
			continue
		}
		d.fresh = false
		sig, forward := s.forward[d]
		delete(s.forward, d)
		replace := d.name == bottle.DaemonPipelock && s.replace
		if replace {
			s.replace = false
		}
		switch {
		case d.proc == nil:
			// It starts on the published file. The host asked for it now, so a backoff ends.
			if forward || replace {
				d.startAt = now
			}
		case replace:
			d.replace = true
			s.stop(d)
		case forward:
			d.pending = sig // sent in this turn if the daemon handles signals, else once it does
		}
	}
}

// dropActions forgets what a pass that failed was to do.
func (s *Supervisor) dropActions(f *file) {
	for d := range s.forward {
		if d.file == f {
			delete(s.forward, d)
		}
	}
	if f.name == bottle.PipelockFile {
		s.replace = false
	}
}
