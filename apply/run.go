package apply

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"bottle/bottle"
)

// perform carries out a change; a widening needs a bundle that is ready. On return either the change is finished, or an error says what
// is left, and a journal from which [Applier.Recover] finishes it.
//
// The caller holds the lock, and has compared what the operator saw with what this change does.
func (a *Applier) perform(ctx context.Context, c *change, v view) (Outcome, error) {
	out := Outcome{Change: c.ID}
	ts, err := a.openTargets(c, v)
	if err != nil {
		return out, err
	}
	defer ts.close()

	// A widening may not use what is kept in reserve for taking it back.
	spend := a.withReserve
	if c.widens() {
		if err := a.keepReserve(); err != nil {
			return out, fmt.Errorf("journal: nothing was changed, because no space can be kept for taking it back: %w", err)
		}
		spend = spare
	}
	a.cfg.Fault("journal")
	if err := spend(func() error { return a.saveJournal(c) }); err != nil {
		return out, err
	}
	a.cfg.Fault("audit apply-started")
	if err := spend(func() error { return a.cfg.Trail.Record(ctx, c.started()) }); err != nil {
		return out, errors.Join(fmt.Errorf("nothing was changed, because the audit trail can't be written: %w", err), a.dropJournal(c))
	}
	// From here on an interrupt only shortens the wait for a widening, which is then taken back.
	whole := context.WithoutCancel(ctx)
	// The journal holds the decision, so the record of it need not be waited for before the files are written, but
	// before a widening counts: it is refused if the request was tampered with.
	saved := make(chan error, 1)
	go func() { saved <- spend(func() error { return a.recordApproved(whole, c) }) }()
	record := sync.OnceValue(func() error { return <-saved })
	failure, err := a.runSteps(ctx, c, ts, record)
	// It is waited for in any case; its error counted where it had to, or finish meets it again.
	c.Refused = errors.Is(record(), bottle.ErrTampered)
	out.Took = time.Since(c.began)
	if err != nil { // a file could be neither written nor restored; the journal stays
		return out, fmt.Errorf("%w; it is written down in the journal and will be finished by the keeper or by the next command", err)
	}
	c.Outcome = outcomeApplied
	if failure != nil && c.Kind != kindRevoke && c.Kind != kindExpire && c.failedWidening(failure) {
		c.Outcome = outcomeFailed
	}
	if failure != nil {
		c.Error = failure.Error()
	}
	out.Detail, out.Status, out.Revision = c.Error, c.status(), c.revisions()
	if err := a.finish(whole, c); err != nil {
		return out, fmt.Errorf("the change is %s, but its record is not complete (the keeper or the next command will complete it): %w", c.Outcome, err)
	}
	if failure != nil {
		return out, failure
	}
	return out, nil
}

// A stepError says which way a step went wrong.
type stepError struct {
	narrows bool
	err     error
}

func (e *stepError) Error() string { return e.err.Error() }
func (e *stepError) Unwrap() error { return e.err }

// failedWidening reports whether the change as a whole did not come about. A narrowing that was not confirmed did: its
// bytes are in the file and its daemon is down until it has loaded them. But a widening is not begun on top of it.
func (c *change) failedWidening(failure error) bool {
	var se *stepError
	return c.widens() || !errors.As(failure, &se) || !se.narrows
}

// runSteps returns a failure that was dealt with (rolled back, or its daemon killed), or an error that was not.
// record waits for the record to say that the request is approved.
func (a *Applier) runSteps(ctx context.Context, c *change, ts *targets, record func() error) (failure, err error) {
	for _, s := range c.Steps {
		if s.Narrows {
			if err := record(); err != nil {
				return &stepError{false, fmt.Errorf("nothing was changed, because the record can't be written: %w", err)}, nil
			}
			failure, err = a.narrow(context.WithoutCancel(ctx), c, s, ts)
		} else {
			failure, err = a.widen(ctx, c, s, ts, record)
		}
		if failure != nil || err != nil {
			return failure, err
		}
	}
	return nil, nil
}

// narrow writes each file, whatever becomes of the one before: less is never undone. A daemon that does not confirm
// is killed.
func (a *Applier) narrow(ctx context.Context, c *change, s step, ts *targets) (failure, err error) {
	c.Narrowed = true
	for _, f := range s.Files {
		problem := a.install(ctx, ts, f, narrowing)
		switch {
		case problem == nil:
		case errors.Is(problem, bottle.ErrUnconfirmed):
			failure = errors.Join(failure, a.kill(ctx, c, f, problem))
			ts.live = ts.live && !c.stopped // then what comes next waits for the start
		default:
			err = errors.Join(err, problem)
		}
	}
	if failure != nil {
		failure = &stepError{true, failure}
	}
	return failure, err
}

// widen takes all files back if one is not confirmed, or the approval not recorded.
func (a *Applier) widen(ctx context.Context, c *change, s step, ts *targets, record func() error) (failure, err error) {
	c.Widened = true
	written, failure := a.open(ctx, s.Files, ts)
	if failure == nil {
		if err := record(); err != nil {
			failure = fmt.Errorf("taken back, because the record can't be written: %w", err)
		}
	}
	if failure == nil {
		return nil, nil
	}
	return &stepError{false, failure}, a.rollBack(context.WithoutCancel(ctx), c, written, ts)
}

// open writes the files in order, and returns those that it came to. Their daemons take them side by side: a request
// passes only where all of them allow it, so none opens anything alone.
func (a *Applier) open(ctx context.Context, files []fileChange, ts *targets) (written []fileChange, err error) {
	others, ctx := errgroup.WithContext(ctx)
	for i, f := range files {
		confirm, err := a.write(ts, f, widening)
		if err == nil && i < len(files)-1 {
			others.Go(func() error { return confirm(ctx) })
			continue
		}
		if err == nil {
			err = confirm(ctx)
		}
		others.Go(func() error { return err }) // which, if there is one, ends the wait for the others
		return files[:i+1], others.Wait()
	}
	return nil, nil
}

// rollBack restores the old bytes of files, the last one written first: taking back a widening is a narrowing.
func (a *Applier) rollBack(ctx context.Context, c *change, files []fileChange, ts *targets) error {
	var bad error
	for _, f := range slices.Backward(files) {
		a.cfg.Fault("roll back " + f.File)
		back := fileChange{File: f.File, New: f.Old, Replace: f.Replace}
		err := a.install(ctx, ts, back, goingBack)
		if errors.Is(err, bottle.ErrUnconfirmed) {
			_ = a.kill(ctx, c, back, err) // the failure itself is what is reported
			ts.live = ts.live && !c.stopped
			continue
		}
		bad = errors.Join(bad, err)
	}
	if bad != nil {
		return fmt.Errorf("taking the change back: %w", bad)
	}
	return nil
}

// status returns what a request's record becomes.
func (c *change) status() bottle.Status {
	if c.Outcome == outcomeFailed {
		if c.Kind == kindApprove {
			return bottle.Failed
		}
		return ""
	}
	if len(c.Requests) == 0 {
		return ""
	}
	return c.Requests[0].To
}

// revisions returns the revision that each touched file has after the outcome.
func (c *change) revisions() map[string]bottle.Hash {
	out := map[string]bottle.Hash{}
	for name, b := range c.after() {
		if rev, err := bottle.CheckSeal(b); err == nil {
			out[name] = rev
		}
	}
	return out
}

func (c *change) shorts() string {
	var s []string
	for _, r := range c.Requests {
		s = append(s, r.Short)
	}
	return strings.Join(s, ", ")
}
