package apply

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"bottle/bottle"
)

// maxStatus bounds a status file in bytes; the bundle writes them.
const maxStatus = 256 << 10

// Polling of status files, which starts fast because a reload takes 2-3 ms, and slows down because a hung daemon
// takes seconds. A watch would save nothing: it too must read the file.
const (
	firstPoll = time.Millisecond
	lastPoll  = 20 * time.Millisecond
)

// A refusedError is a daemon's own word on why it did not take a config.
type refusedError struct {
	who string
	why string
}

func (e *refusedError) Error() string { return e.who + " refused the new config: " + e.why }
func (e *refusedError) Unwrap() error { return bottle.ErrUnconfirmed }

func daemonOf(file string) string {
	if file == bottle.PipelockFile {
		return bottle.DaemonPipelock
	}
	return bottle.DaemonEgress
}

// signalFor returns the one signal that makes the daemon of a file take it.
func signalFor(file string, replace bool) bottle.Signal {
	switch {
	case file == bottle.RoutesFile:
		return bottle.SignalReload
	case replace:
		return bottle.SignalReplacePipelock
	}
	return bottle.SignalReloadPipelock
}

// killFor returns the signal that stops a daemon which does not confirm a narrowing.
func killFor(file string) bottle.Signal {
	if file == bottle.RoutesFile {
		return bottle.SignalRestartEgress
	}
	return bottle.SignalRestartPipelock
}

// report is what the bundle says of one file at one time.
type report struct {
	inForce   bottle.Hash     // by the daemon
	published bottle.Hash     // by init
	ours      bool            // init has the file mounted that is written here
	daemon    *bottle.Refusal // the newest of each
	init      *bottle.Refusal
}

// look reads the bundle's status files. What is missing or damaged counts as silence: the bundle may be about to
// write it anew, and if not, the timeout says so.
func (a *Applier) look(file string) report {
	var r report
	var d bottle.DaemonStatus
	if err := bottle.ReadJSON(a.cfg.Dir.DaemonStatus(daemonOf(file)), maxStatus, &d); err == nil {
		r.inForce, r.daemon = d.Revision, d.Refused
	}
	if st, err := a.initStatus(); err == nil {
		m := st.Files[file]
		r.published, r.init, r.ours = m.Published, m.Refused, a.isOurs(file, m)
	}
	return r
}

// freshRefusal returns why rev was refused since before was taken, or nil. A refusal that was there before the signal
// is of an earlier try.
func (r report) freshRefusal(before report, file string, rev bottle.Hash) error {
	fresh := func(now, then *bottle.Refusal) bool {
		return now != nil && now.Revision == rev && (then == nil || *now != *then)
	}
	if fresh(r.daemon, before.daemon) {
		return &refusedError{daemonOf(file), r.daemon.Error}
	}
	if fresh(r.init, before.init) {
		return &refusedError{"the bundle's supervisor", r.init.Error}
	}
	return nil
}

// confirm signals and waits until the daemon says that rev is in force, signalling again on silence (pipelock drops
// the newest of several rapid signals). An error wraps bottle.ErrUnconfirmed.
//
// A strict confirmation also waits until init has published rev, from the very file that is written here. It is for
// going back to a revision that the daemon may still be reporting from before the change, while the one to be undone is
// on its way to it; and for a bundle whose word left a doubt. An init that has not said anything yet may be about to
// start, when a signal would kill it, so it is not signalled at once.
func (a *Applier) confirm(ctx context.Context, file string, rev bottle.Hash, sig bottle.Signal, before report, strict bool) error {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.ConfirmTimeout)
	defer cancel()
	replaced := a.child(daemonOf(file)).PID
	a.cfg.Fault("signal " + file)
	if !strict || !a.initIsMute() {
		if err := a.cfg.Signaler.Signal(ctx, sig); err != nil {
			return fmt.Errorf("signal the bundle (%s): %w: %w", sig, err, bottle.ErrUnconfirmed)
		}
	}
	a.cfg.Fault("confirm " + file)
	resignal := time.NewTicker(a.cfg.ResignalEvery)
	defer resignal.Stop()
	wait := firstPoll
	poll := time.NewTimer(wait)
	defer poll.Stop()
	for {
		select {
		case <-ctx.Done():
			if err := context.Cause(ctx); !errors.Is(err, context.DeadlineExceeded) {
				return fmt.Errorf("%s: interrupted before %s confirmed %s: %w", file, daemonOf(file), rev.Short(), bottle.ErrUnconfirmed)
			}
			if a.look(file).inForce == rev { // but init, which a strict confirmation needs too, has no such word
				return fmt.Errorf("%s: the bundle's supervisor did not say within %s that it has published %s from this file: %w", file, a.cfg.ConfirmTimeout, rev.Short(), bottle.ErrUnconfirmed)
			}
			return fmt.Errorf("%s: %s did not say within %s that %s is in force%s: %w", file, daemonOf(file), a.cfg.ConfirmTimeout, rev.Short(), a.lastWord(file), bottle.ErrUnconfirmed)
		case <-resignal.C:
			if strict && a.initIsMute() {
				continue // it may be about to start, when a signal would kill it
			}
			if sig == bottle.SignalReplacePipelock && a.child(daemonOf(file)).PID != replaced {
				continue // it was, and another replacement would only make another process
			}
			// That it fails now may be a bundle that is being started anew, which then reads the new file.
			_ = a.cfg.Signaler.Signal(ctx, sig)
		case <-poll.C:
			r := a.look(file)
			if r.inForce == rev && (!strict || r.published == rev && r.ours) {
				return nil
			}
			if err := r.freshRefusal(before, file, rev); err != nil {
				return err
			}
			wait = min(wait*5/4+time.Microsecond, lastPoll)
			poll.Reset(wait)
		}
	}
}

func (a *Applier) initIsMute() bool {
	_, err := a.initStatus()
	return errors.Is(err, fs.ErrNotExist)
}

// lastWord is what the daemon says of itself instead, for the error.
func (a *Applier) lastWord(file string) string {
	var d bottle.DaemonStatus
	err := bottle.ReadJSON(a.cfg.Dir.DaemonStatus(daemonOf(file)), maxStatus, &d)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return " (it has written no status)"
	case err != nil:
		return fmt.Sprintf(" (its status can't be read: %v)", err)
	case d.Error != "":
		return fmt.Sprintf(" (it says: %s)", d.Error)
	}
	return fmt.Sprintf(" (it is on %s)", d.Revision.Short())
}

// A direction is which way a file is changed. What narrows may use the reserve, and going back is confirmed strictly.
type direction int

const (
	widening direction = iota
	narrowing
	goingBack
)

// install puts bytes into an open config file and, if there is a bundle, has them confirmed.
func (a *Applier) install(ctx context.Context, ts *targets, f fileChange, way direction) error {
	confirm, err := a.write(ts, f, way)
	if err != nil {
		return err
	}
	return confirm(ctx)
}

// write puts bytes into an open config file. What it returns has them confirmed, if there is a bundle.
func (a *Applier) write(ts *targets, f fileChange, way direction) (confirm func(context.Context) error, err error) {
	before := a.look(f.File)
	rev, err := bottle.CheckSeal(f.New)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.File, err)
	}
	t := ts.open[f.File]
	spend := a.withReserve
	if way == widening {
		spend = spare
	}
	if err := spend(func() error { return t.write(f.New) }); err != nil {
		return nil, err
	}
	if !ts.live {
		return func(context.Context) error { return nil }, nil
	}
	return func(ctx context.Context) error {
		err := a.confirm(ctx, f.File, rev, signalFor(f.File, f.Replace), before, way == goingBack || t.doubt != nil)
		if err != nil && t.doubt != nil {
			return fmt.Errorf("%w (%w)", err, t.doubt)
		}
		return err
	}, nil
}
