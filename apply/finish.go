package apply

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"bottle/bottle"
)

// The names of the audit lines that this package writes. Together with the change ID they identify a line.
const (
	eventStarted     = "apply-started"
	eventApplied     = "applied"
	eventFailed      = "failed"
	eventRolledBack  = "rolled-back"
	eventUnconfirmed = "narrowing-unconfirmed"
	eventRevoked     = "revoked"
	eventExpired     = "expired"
	eventEdited      = "edited"
	eventRecovered   = "recovered"
	eventKept        = "config-kept-aside"
	eventRebuilt     = "config-rebuilt"
)

// event returns a line of this change.
func (c *change) event(name string) bottle.Event {
	by := c.By
	e := bottle.Event{Name: name, Change: c.ID, By: &by, Digest: c.Digest}
	if len(c.Requests) == 1 {
		e.Request, e.Short = c.Requests[0].ID, c.Requests[0].Short
	} else if len(c.Requests) > 1 {
		e.Detail = "requests " + c.shorts()
	}
	if c.Decision != nil {
		e.Edited = c.Decision.Edited
	}
	return e
}

func (c *change) started() bottle.Event {
	e := c.event(eventStarted)
	e.Before, e.After = c.Before, c.After
	return e
}

// recordApproved makes the decision durable in the record, which the agent sees as "approved".
func (a *Applier) recordApproved(ctx context.Context, c *change) error {
	if c.Kind != kindApprove {
		return nil
	}
	a.cfg.Fault("record approved")
	rec, err := a.cfg.Records.Find(ctx, c.Requests[0].ID)
	if err != nil {
		return err
	}
	if d := rec.Decision; rec.State.Status() == bottle.Approved && d != nil && d.Change == c.ID {
		return a.cfg.Records.Save(ctx, rec) // the second try: the record was written, and the agent not told
	}
	rec.Decision = c.Decision
	if err := rec.Transition(bottle.Approved, c.At); err != nil {
		return err
	}
	return a.cfg.Records.Save(ctx, rec)
}

// finish makes the outcome durable, then does the bookkeeping that follows from it, each part of which may be done
// twice, and drops the journal.
func (a *Applier) finish(ctx context.Context, c *change) error {
	a.cfg.Fault("outcome")
	if err := a.withReserve(func() error { return a.saveJournal(c) }); err != nil {
		return err
	}
	return a.keepBooks(ctx, c)
}

// A booksError is a change whose files are settled, durably, and which lacks but the bookkeeping. It keeps nobody from
// narrowing further.
type booksError struct{ err error }

func (e *booksError) Error() string { return e.err.Error() }
func (e *booksError) Unwrap() error { return e.err }

// keepBooks is the part of finish that recovery repeats. Nothing of it looks at what the bundle writes.
func (a *Applier) keepBooks(ctx context.Context, c *change) error {
	if err := a.withReserve(func() error { return a.writeBooks(ctx, c) }); err != nil {
		return &booksError{err}
	}
	return nil
}

func (a *Applier) writeBooks(ctx context.Context, c *change) error {
	for _, e := range c.events() {
		a.cfg.Fault("audit " + e.Name)
		if _, err := a.cfg.Trail.RecordOnce(ctx, e); err != nil {
			return err
		}
	}
	for _, s := range c.Requests {
		a.cfg.Fault("record outcome " + s.Short)
		if err := a.recordOutcome(ctx, c, s); err != nil {
			return err
		}
	}
	left, err := grantsIn(c.after())
	if err != nil {
		return err
	}
	for _, s := range c.Gone {
		if slices.Contains(left, s.Short) {
			continue
		}
		a.cfg.Fault("record gone " + s.Short)
		if err := a.recordEnd(ctx, s); err != nil {
			return err
		}
	}
	if c.Kind == kindEdit && c.Outcome == outcomeApplied {
		if err := a.rememberEdit(c); err != nil {
			return err
		}
	}
	a.cfg.Fault("drop journal")
	return a.dropJournal(c)
}

// events returns every line that a finished change leaves in the audit trail, in order; apply-started is among them
// because a kill may have come before it.
func (c *change) events() []bottle.Event {
	out := []bottle.Event{c.started()}
	if c.Recovered {
		e := c.event(eventRecovered)
		e.Outcome, e.Detail = c.Outcome, c.Error
		out = append(out, e)
	}
	if len(c.Unconfirmed) > 0 {
		e := c.event(eventUnconfirmed)
		e.Detail = c.Error
		out = append(out, e)
	}
	if c.Outcome == outcomeFailed && c.Widened {
		e := c.event(eventRolledBack)
		e.Revision = c.revisions()
		out = append(out, e)
	}
	name := eventFailed
	if c.Outcome == outcomeApplied {
		name = map[string]string{kindApprove: eventApplied, kindRevoke: eventRevoked, kindExpire: eventExpired, kindEdit: eventEdited}[c.Kind]
	}
	e := c.event(name)
	e.Before, e.After, e.Revision, e.Outcome = c.Before, c.After, c.revisions(), c.Outcome
	for _, s := range c.Gone {
		e.Detail = strings.TrimPrefix(e.Detail+"; nothing is left of "+s.Short, "; ")
	}
	if c.Error != "" {
		e.Detail = c.Error
	}
	return append(out, e)
}

// recordOutcome brings a request's record to where the outcome says. It may be there already.
func (a *Applier) recordOutcome(ctx context.Context, c *change, s subject) error {
	to := s.To
	if c.Outcome == outcomeFailed {
		if c.Kind != kindApprove {
			return nil // a grant that could not be ended is still in force, and so is its record
		}
		to = bottle.Failed
	}
	if s.ID == "" {
		return nil // a grant without a record: the routes file was the only trace of it
	}
	rec, err := a.cfg.Records.Find(ctx, s.ID)
	if errors.Is(err, bottle.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if c.Kind == kindApprove {
		if rec.State.Status() == bottle.Pending {
			if c.Refused {
				return nil // nothing was opened, and it stays undecided
			}
			rec.Decision = c.Decision
			if err := rec.Transition(bottle.Approved, c.At); err != nil {
				return fmt.Errorf("record of %s: %w", s.Short, err)
			}
		}
		rec.Error, rec.GrantEnds, rec.Revision = c.Error, nil, nil
		if to == bottle.Applied {
			rec.GrantEnds = c.GrantEnds
		}
		if to == bottle.Applied || c.Narrowed {
			rec.Revision = c.revisions() // of a failed one: what it closed stays closed, see Expected
		}
	}
	if rec.State.Status() != to {
		if err := rec.Transition(to, a.cfg.Now()); err != nil {
			if errors.Is(err, bottle.ErrState) && rec.State.Status().Final() {
				return nil // ended otherwise between a kill and the recovery: that stands, and nothing is in force
			}
			return fmt.Errorf("record of %s: %w", s.Short, err)
		}
	}
	return a.cfg.Records.Save(ctx, rec)
}

// recordEnd ends the record of a grant that another change took away. It may have ended otherwise.
func (a *Applier) recordEnd(ctx context.Context, s subject) error {
	if s.ID == "" {
		return nil
	}
	rec, err := a.cfg.Records.Find(ctx, s.ID)
	if errors.Is(err, bottle.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if rec.State.Status() == bottle.Applied {
		if err := rec.Transition(s.To, a.cfg.Now()); err != nil {
			return err
		}
	}
	return a.cfg.Records.Save(ctx, rec)
}
