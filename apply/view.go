package apply

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"bottle/bottle"
)

// A view is what is known of the bundle when a change begins. Whether it is up is the host's own knowledge; the rest is
// the bundle's word. A widening needs that word. A narrowing is made without it: the bundle must not be able to keep
// what was revoked by saying nothing, or nonsense.
type view struct {
	up   bool               // or it may be: see lost
	lost error              // the host itself does not know whether it is up
	init *bottle.InitStatus // nil: it says nothing
	why  error              // why init is nil
}

func (a *Applier) view(ctx context.Context) view {
	up, err := a.cfg.Signaler.Running(ctx)
	if err != nil {
		err = fmt.Errorf("look for the bundle: %w", err)
		return view{up: true, lost: err, why: err}
	}
	if !up {
		return view{}
	}
	st, err := a.initStatus()
	return view{up: true, init: st, why: err}
}

func (a *Applier) initStatus() (*bottle.InitStatus, error) {
	var st bottle.InitStatus
	if err := bottle.ReadJSON(a.cfg.Dir.InitStatus(), maxStatus, &st); err != nil {
		return nil, err
	}
	return &st, nil
}

// stopped returns an ErrNotRunning if, by the host's own knowledge, nothing runs that a change could be in force in.
func (a *Applier) stopped(v view) error {
	switch {
	case v.lost != nil:
		return v.lost
	case !v.up:
		return fmt.Errorf("bottle %s is stopped, so nothing was changed; run bottle start, then decide again: %w", a.cfg.Dir.Name(), ErrNotRunning)
	}
	return nil
}

// unready returns an ErrNotRunning that says what to do unless the bundle says that it is ready.
func (a *Applier) unready(v view) error {
	if err := a.stopped(v); err != nil {
		return err
	}
	switch {
	case v.init == nil:
		return fmt.Errorf("bottle %[1]s does not say how it is (%[2]w), so nothing was changed; run bottle restart %[1]s: %[3]w", a.cfg.Dir.Name(), v.why, ErrNotRunning)
	case !v.init.Ready:
		why := v.init.Error
		if why == "" {
			why = "still starting, or a daemon is down"
		}
		return fmt.Errorf("bottle %[1]s is not ready (%[2]s), so nothing was changed; try again in a moment, or run bottle restart %[1]s: %[3]w", a.cfg.Dir.Name(), why, ErrNotRunning)
	}
	return nil
}

// doubt returns why the bundle may not have a file of ours mounted, or nil. An editor that writes by rename leaves a
// bundle on the old inode, where a write would then not be in force.
func (v view) doubt(name, path string, dev, ino uint64, bottleName string) error {
	if !v.up {
		return nil
	}
	if v.init == nil {
		return fmt.Errorf("write %s: the bundle does not say which file it has mounted (%w); run bottle restart %s: %w", path, v.why, bottleName, bottle.ErrCorrupt)
	}
	m, ok := v.init.Files[name]
	switch {
	case !ok:
		return fmt.Errorf("write %s: the bundle does not say which file it has mounted; run bottle restart %s: %w", path, bottleName, bottle.ErrCorrupt)
	case m.Dev != dev || m.Ino != ino:
		return fmt.Errorf("write %s: the bundle has another file mounted (inode %d, not %d; an editor replaced it?); run bottle restart %s: %w", path, m.Ino, ino, bottleName, bottle.ErrCorrupt)
	}
	return nil
}

// isOurs reports whether what the bundle has mounted is the file that is written here.
func (a *Applier) isOurs(name string, m bottle.MountedFile) bool {
	info, err := os.Lstat(a.cfg.Dir.Path("etc", name))
	if err != nil {
		return false
	}
	dev, ino, err := inodeOf(info)
	return err == nil && m.Dev == dev && m.Ino == ino
}

func inodeOf(info os.FileInfo) (dev, ino uint64, err error) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, errors.New("no inode known")
	}
	return uint64(st.Dev), st.Ino, nil //nolint:unconvert // the width of Dev differs between architectures
}
