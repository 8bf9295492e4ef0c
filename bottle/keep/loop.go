package keep

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"bottle/bottle"
)

// Pauses after failures, and the least pause between two runs of a step.
const (
	firstPause = 250 * time.Millisecond
	lastPause  = 30 * time.Second
	leastPause = 10 * time.Millisecond
	// patience is how often in a row the lock may be taken until that is worth a word.
	patience = 4
)

// A step is one of the keeper's jobs. Steps are run one after another.
type step struct {
	name  string
	do    func(context.Context) error
	every time.Duration // at least so often; 0: only when told to
	watch []string      // paths whose change makes it due

	due   bool
	at    time.Time // when it is due by itself; zero: never
	pause time.Time // not before
	fails int
	marks []mark // of watch
}

// when returns the earliest time at which the step is to be run.
func (s *step) when() (time.Time, bool) {
	switch {
	case s.due:
		return s.pause, true
	case s.at.IsZero():
		return time.Time{}, false
	case s.at.Before(s.pause):
		return s.pause, true
	}
	return s.at, true
}

// A mark tells whether something was written to a file, or renamed into a directory.
type mark struct {
	ino          uint64
	size         int64
	mtime, ctime unix.Timespec
}

func markOf(path string) mark {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return mark{} // not there, which is a state as well
	}
	return mark{st.Ino, st.Size, st.Mtim, st.Ctim}
}

// look makes due the steps whose files changed. It is the backstop of the watch, which the
// kernel may refuse, and which follows a directory that was moved away.
func (k *Keeper) look() {
	for _, s := range k.steps {
		for i, path := range s.watch {
			if m := markOf(path); m != s.marks[i] {
				s.marks[i], s.due = m, true
			}
		}
	}
}

// notice makes due the step that an event is about.
func (k *Keeper) notice(path string) {
	if strings.HasPrefix(filepath.Base(path), ".") {
		return // a file that has not got its name yet
	}
	for _, s := range k.steps {
		for _, w := range s.watch {
			if path == w || filepath.Dir(path) == w {
				s.due = true
			}
		}
	}
}

func (k *Keeper) loop(ctx context.Context) {
	d := k.cfg.Dir
	var events <-chan fsnotify.Event
	var errs <-chan error
	w, err := fsnotify.NewWatcher()
	if err == nil {
		defer w.Close()
		err = errors.Join(w.Add(d.Requests()), w.Add(d.Cancels()), w.Add(filepath.Dir(d.InitStatus())), w.Add(filepath.Dir(d.SpentFile())))
		events, errs = w.Events, w.Errors
	}
	if err != nil {
		k.cfg.Logger.Warn("can't watch the bundle's files; looking at intervals instead", "every", k.cfg.Every, "error", err)
	}
	for _, s := range k.steps {
		s.marks = make([]mark, len(s.watch))
	}
	tick := time.NewTicker(k.cfg.Every)
	defer tick.Stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			k.look()
		case ev, ok := <-events:
			if !ok {
				events = nil
				continue
			}
			k.notice(ev.Name)
		case err, ok := <-errs:
			if !ok {
				errs = nil
				continue
			}
			k.cfg.Logger.Warn("watch the bundle's files", "error", err)
			k.look()
		case <-timer.C:
		}
		for _, s := range k.steps {
			if at, ok := s.when(); ok && !at.After(time.Now()) && ctx.Err() == nil {
				k.run(ctx, s)
			}
		}
		k.tell()
		if next, ok := k.next(); ok {
			timer.Reset(time.Until(next))
		}
	}
}

func (k *Keeper) next() (next time.Time, ok bool) {
	for _, s := range k.steps {
		if at, some := s.when(); some && (!ok || at.Before(next)) {
			next, ok = at, true
		}
	}
	return next, ok
}

// run does a step and says when it is to be done again.
func (k *Keeper) run(ctx context.Context, s *step) {
	for i, path := range s.watch { // before it looks, so that what comes later counts
		s.marks[i] = markOf(path)
	}
	s.due, s.at = false, time.Time{}
	start := time.Now()
	err := guard(ctx, s.do)
	if errors.Is(err, bottle.ErrLocked) && s.fails < patience && ctx.Err() == nil {
		s.fails++
		s.due, s.pause = true, time.Now().Add(firstPause)
		return
	}
	end := time.Now()
	if s.every > 0 && (s.at.IsZero() || s.at.After(end.Add(s.every))) {
		s.at = end.Add(s.every)
	}
	if err == nil || ctx.Err() != nil {
		if s.fails > 0 {
			k.cfg.Logger.Info("works again", "step", s.name)
		}
		s.fails = 0
		delete(k.problems, s.name+"/error")
		// A flood of events gets half of the time, at most.
		s.pause = end.Add(max(leastPause, end.Sub(start)))
		return
	}
	pause := min(firstPause<<min(s.fails, 10), lastPause)
	s.fails++
	s.due, s.pause = true, end.Add(pause)
	k.problems[s.name+"/error"] = []string{s.name + ": " + err.Error()}
	k.cfg.Logger.Error("failed; trying again", "step", s.name, "in", pause, "failures", s.fails, "error", err)
}

// guard bounds a step's time, and makes an error of a panic.
func guard(ctx context.Context, do func(context.Context) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, stepLimit)
	defer cancel()
	return do(ctx)
}
