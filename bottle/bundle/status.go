package bundle

import (
	"fmt"
	"os"
	"reflect"
	"time"

	"bottle/bottle"
)

// initStatus is the state as the host may see it.
func (s *Supervisor) initStatus() bottle.InitStatus {
	st := bottle.InitStatus{
		Schema: bottle.Schema, Ready: !s.stopping && len(s.daemons) > 0, PID: os.Getpid(), StartedAt: s.started,
		Daemons: map[string]bottle.ChildStatus{}, Files: map[string]bottle.MountedFile{},
	}
	for _, d := range s.daemons {
		st.Daemons[d.name] = d.childStatus()
		if d.cur == nil || d.cur.serving.IsZero() {
			st.Ready = false
		}
		if d.cur == nil && !d.hasConfig() && d.file.refused != nil {
			st.Error = fmt.Sprintf("%s is not started until %s is valid: %s", d.name, d.file.name, d.file.refused.Error)
		}
	}
	for name, f := range s.files {
		st.Files[name] = f.status()
	}
	if s.failure != nil {
		st.Error = s.failure.Error()
	}
	return st
}

// writeStatus writes what changed in status/: each daemon's, then init's own, which says that
// they are ready.
func (s *Supervisor) writeStatus(now time.Time) {
	if now.Before(s.statusAt) {
		return
	}
	if err := s.writeChanged(now); err != nil {
		if s.statusErr == nil || s.statusErr.Error() != err.Error() {
			s.log.Error("status could not be written", "error", err)
		}
		s.statusErr, s.statusAt = err, now.Add(retryStatus)
		return
	}
	s.statusErr, s.statusAt = nil, time.Time{}
}

func (s *Supervisor) writeChanged(now time.Time) error {
	for _, d := range s.daemons {
		st, up := d.status()
		if reflect.DeepEqual(st, d.written) {
			continue
		}
		path := s.cfg.Dir.DaemonStatus(d.name)
		if !up {
			// What does not run has nothing in force.
			if err := remove(path); err != nil {
				return err
			}
		} else if err := bottle.WriteStatus(path, st); err != nil {
			return err
		}
		d.written = st
	}
	st := s.initStatus()
	if reflect.DeepEqual(st, s.written) {
		return nil
	}
	if err := bottle.WriteStatus(s.cfg.Dir.InitStatus(), st); err != nil {
		return err
	}
	if st.Ready && !s.written.Ready {
		s.log.Info("ready", "took", now.Sub(s.started).Round(time.Millisecond))
	}
	s.written = st
	return nil
}
