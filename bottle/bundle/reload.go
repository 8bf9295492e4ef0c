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

func (s *Supervisor) onReload() { s.reload(s.daemon(bottle.DaemonEgress)) }

func (s *Supervisor) onReloadPipelock() { s.reload(s.daemon(bottle.DaemonPipelock)) }

func (s *Supervisor) reload(d *daemon) {
	if d == nil || s.stopping {
		return
	}
	s.forward[d] = true
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

// onRestart kills a daemon that did not confirm a narrowing, all instances of it. It stays down until
// its file has verified once more: with a torn file the published revision is the
// wider one that was just revoked, and coming back on it would undo the revocation.
func (s *Supervisor) onRestart(name string) {
	d := s.daemon(name)
	if d == nil || s.stopping {
		return
	}
	d.fresh, d.replace = true, false
	d.startAt = time.Now()
	d.file.begin(d.startAt)
	if d.next != nil {
		s.dropNext(d)
	}
	for _, i := range d.instances() {
		i.expected = true
		s.kill(i)
	}
}

// onVerified follows a pass that ended well.
func (s *Supervisor) onVerified(now time.Time, f *file) {
	for _, d := range s.daemons {
		if d.file != f {
			continue
		}
		d.fresh = false
		forward := s.forward[d]
		delete(s.forward, d)
		replace := d.name == bottle.DaemonPipelock && s.replace
		if replace {
			s.replace = false
		}
		if d.cur == nil && d.next == nil {
			// It starts on the published file. The host asked for it now, so a backoff ends.
			if forward || replace {
				d.startAt = now
			}
			continue
		}
		if forward {
			s.wake(d)
		}
		if replace {
			// One that comes up on these very bytes is what is asked for, and signals that come
			// fast must not keep it from that.
			if d.next != nil && d.next.loads == f.published {
				continue
			}
			if d.next != nil {
				s.dropNext(d)
			}
			d.replace = true
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

// wake has every instance of a daemon reload; the signal is sent in this turn to those that
// handle it, to the others once they do.
func (s *Supervisor) wake(d *daemon) {
	for _, i := range d.instances() {
		i.pending = reloadSignal(i)
	}
}

func reloadSignal(i *instance) syscall.Signal {
	if i.d.name == bottle.DaemonPipelock && !i.foreign {
		return unix.SIGUSR2
	}
	return unix.SIGHUP
}

// drainSignal tells one that was taken over from. Of one that is not ours SIGUSR1 is the kill switch.
func drainSignal(i *instance) syscall.Signal {
	if i.foreign {
		return reloadSignal(i)
	}
	return unix.SIGUSR1
}
