package apply

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"bottle/bottle"
)

// A Recovered says what recovery found and did.
type Recovered struct {
	Change  string   // change ID; empty for a config file
	Kind    string   // approve, revoke, expire, edit; or hand-edit, torn
	Request string   // short IDs
	File    string   // of a hand edit or a torn file
	Outcome string   // applied, failed; of a file: kept, rebuilt
	Detail  string   // for people
	Diff    []string // of a hand edit: "+ line" and "- line" against what should be there
}

// narrowingOrder is the order in which files are written when less is to be reachable: egress, which can cut what it
// forbids, goes first. Widening goes the other way, so that egress never sends where pipelock does not let it.
var narrowingOrder = [...]string{bottle.RoutesFile, bottle.PipelockFile}

// Recover finishes or undoes what killed processes and power cuts left, and looks after config files that are not
// whole. It may be called at any time, with or without a running bundle, and any number of times. It takes the lock.
//
// A change that was left behind is completed if all of it is in force, rolled forward if it only narrows, and else
// taken back. A request that was approved but never written down to the journal fails.
func (a *Applier) Recover(ctx context.Context) ([]Recovered, error) {
	unlock, err := a.cfg.Dir.Lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	return a.recover(ctx)
}

func (a *Applier) recover(ctx context.Context) ([]Recovered, error) {
	_ = a.keepReserve() // a full disk is no reason not to recover
	out, err := a.recoverJournals(ctx)
	if err != nil {
		return out, err
	}
	lost, err := a.failInterrupted(ctx)
	out = append(out, lost...)
	if err != nil {
		return out, err
	}
	files, err := a.repairFiles(ctx)
	return append(out, files...), err
}

func (a *Applier) recoverJournals(ctx context.Context) ([]Recovered, error) {
	left, err := a.leftJournals()
	if err != nil {
		return nil, err
	}
	var out []Recovered
	for _, c := range left {
		if err := a.settle(ctx, c); err != nil {
			return out, fmt.Errorf("finish change %s (%s %s): %w", c.ID, c.Kind, c.shorts(), err)
		}
		out = append(out, Recovered{Change: c.ID, Kind: c.Kind, Request: c.shorts(), Outcome: c.Outcome, Detail: c.Error})
	}
	return out, nil
}

// clearWay is the recovery that a narrowing begins with. What was left behind is finished, or the files would be
// anywhere; but a change that lacks only its bookkeeping may go on lacking it (late says why), for the next recovery.
func (a *Applier) clearWay(ctx context.Context) (late, err error) {
	left, err := a.leftJournals()
	if err != nil {
		return nil, err
	}
	for _, c := range left {
		err := a.settle(ctx, c)
		var books *booksError
		switch {
		case errors.As(err, &books):
			late = errors.Join(late, err)
		case err != nil:
			return late, fmt.Errorf("finish change %s (%s %s): %w", c.ID, c.Kind, c.shorts(), err)
		}
	}
	return late, nil
}

// settle brings the files of a change to where they belong and its books up to date. A crash in it leaves the journal,
// and the next call does the same again.
func (a *Applier) settle(ctx context.Context, c *change) error {
	if c.Outcome != "" {
		return a.keepBooks(ctx, c)
	}
	v := a.view(ctx)
	c.Recovered = true
	goal := c.undone()
	c.Outcome = outcomeApplied
	switch {
	case v.up && a.inForce(c.last()) && (!c.widens() || a.decided(ctx, c)):
		goal = c.last()
	case c.widens():
		c.Outcome, c.Widened = outcomeFailed, true
		c.Error = "interrupted before it was confirmed in force, and taken back; ask again"
	}
	edited, err := a.restore(ctx, c, goal)
	if err != nil {
		return err
	}
	c.Narrowed = len(edited) == 0
	if len(edited) > 0 {
		c.Outcome = outcomeFailed
		c.Error = fmt.Sprintf("interrupted, and %s was edited by hand meanwhile, which was left as it is; run bottle routes edit, then decide again", strings.Join(edited, " and "))
	}
	if v.up {
		a.enforce(ctx, c, goal, edited)
	}
	return a.finish(ctx, c)
}

// decided reports whether the record says that the request was approved: whether it may be was looked into then, and
// until then the widening did not count.
func (a *Applier) decided(ctx context.Context, c *change) bool {
	if c.Kind != kindApprove {
		return true
	}
	rec, err := a.cfg.Records.Find(ctx, c.Requests[0].ID)
	return err == nil && rec.State.Status() != bottle.Pending
}

// inForce reports whether every file holds exactly these bytes and its daemon says so.
func (a *Applier) inForce(files map[string][]byte) bool {
	for name, b := range files {
		now, err := a.readConfig(name)
		if err != nil || !bytes.Equal(now, b) {
			return false
		}
		rev, err := bottle.CheckSeal(b)
		if r := a.look(name); err != nil || r.inForce != rev || r.published != rev {
			return false
		}
	}
	return true
}

// restore puts the goal into the files and makes it durable, even where it is there already: a killed process may have
// left bytes that a power cut would still lose. It returns the files that hold what no interrupted write of this change
// can have left, which are somebody's edit and not ours to overwrite. Whether the bundle has these files mounted is seen
// when it is to confirm them.
func (a *Applier) restore(ctx context.Context, c *change, goal map[string][]byte) (edited []string, err error) {
	for _, name := range narrowingOrder {
		want, touched := goal[name]
		if !touched {
			continue
		}
		a.cfg.Fault("restore " + name)
		now, err := a.readConfig(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			create := func() error { return bottle.WriteFile(a.cfg.Dir.Path("etc", name), want, 0o600) }
			if err := a.withReserve(create); err != nil {
				return edited, err
			}
			continue
		case err != nil:
			return edited, err
		case !explains(c, name, now):
			if err := a.keepAside(ctx, name, now); err != nil {
				return edited, err
			}
			edited = append(edited, name)
			continue
		}
		if err := a.overwrite(name, now, want); err != nil {
			return edited, err
		}
	}
	return edited, nil
}

func (a *Applier) overwrite(name string, now, want []byte) (err error) {
	t, err := a.openTarget(name, view{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.f.Close()) }()
	if bytes.Equal(now, want) {
		return t.f.Sync()
	}
	return a.withReserve(func() error { return t.write(want) })
}

// explains reports whether an interrupted write of the change can have left b: each byte is that of one of the file's
// versions in the same place, or zero (a page that never reached the disk).
func explains(c *change, name string, b []byte) bool {
	var versions [][]byte
	longest := 0
	for _, s := range c.Steps {
		for _, f := range s.Files {
			if f.File == name {
				versions = append(versions, f.Old, f.New, f.Was)
				longest = max(longest, len(f.Old), len(f.New), len(f.Was))
			}
		}
	}
	if len(b) > longest {
		return false
	}
	for i, x := range b {
		ok := x == 0
		for _, v := range versions {
			ok = ok || i < len(v) && v[i] == x
		}
		if !ok {
			return false
		}
	}
	return true
}

// enforce has the bundle take the goal, and kills what does not confirm it: every goal of a recovery is either in
// force already or narrower than what may be.
func (a *Applier) enforce(ctx context.Context, c *change, goal map[string][]byte, except []string) {
	for _, name := range narrowingOrder {
		b, touched := goal[name]
		if !touched || slices.Contains(except, name) {
			continue
		}
		rev, err := bottle.CheckSeal(b)
		if err == nil {
			err = a.confirm(ctx, name, rev, signalFor(name, c.replaces()), a.look(name), true)
		}
		if err == nil {
			continue
		}
		err = a.kill(ctx, c, fileChange{File: name, New: b}, err)
		if c.Error == "" {
			c.Error = err.Error()
		} else {
			c.Error += "; " + err.Error()
		}
		if c.stopped {
			return // it loads all of them when it starts
		}
	}
}

// failInterrupted ends requests that say approved although no journal carries them any more.
func (a *Applier) failInterrupted(ctx context.Context) ([]Recovered, error) {
	recs, err := a.cfg.Records.Approved(ctx)
	if err != nil {
		return nil, err
	}
	var out []Recovered
	for _, rec := range recs {
		if rec.State.Status() != bottle.Approved {
			continue
		}
		const why = "interrupted before anything was written; ask again"
		id := "interrupted-" + rec.Request.ID
		if rec.Decision != nil && rec.Decision.Change != "" {
			id = rec.Decision.Change
		}
		e := bottle.Event{Name: eventFailed, Change: id, Request: rec.Request.ID, Short: rec.Short, Outcome: outcomeFailed, Detail: why}
		if rec.Decision != nil {
			e.By, e.Digest, e.Edited = &rec.Decision.By, rec.Decision.Digest, rec.Decision.Edited
		}
		a.cfg.Fault("audit interrupted " + rec.Short)
		if _, err := a.cfg.Trail.RecordOnce(ctx, e); err != nil {
			return out, err
		}
		if err := rec.Transition(bottle.Failed, a.cfg.Now()); err != nil {
			return out, err
		}
		rec.Error = why
		a.cfg.Fault("record interrupted " + rec.Short)
		if err := a.cfg.Records.Save(ctx, rec); err != nil {
			return out, err
		}
		out = append(out, Recovered{Change: id, Kind: kindApprove, Request: rec.Short, Outcome: outcomeFailed, Detail: why})
	}
	return out, nil
}
