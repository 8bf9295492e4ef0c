package apply

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"

	"bottle/bottle"
)

// Preview says what a yes to the intent would do now. It changes nothing and takes no lock: what it returns is bound
// to the approval by its digest alone.
func (a *Applier) Preview(ctx context.Context, in Intent) (*Plan, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return a.propose(in, bottle.Actor{})
}

func (a *Applier) propose(in Intent, by bottle.Actor) (*Plan, error) {
	base, err := a.base()
	if err != nil {
		return nil, err
	}
	return Propose(base, in, a.env(by))
}

// Approve decides a pending request: it applies the intent if that comes to the plan with the digest, and says how it
// went. rec becomes the record as it is afterwards.
//
// Until the change is in the journal nothing has happened, and the request stays pending: [bottle.ErrChanged] (the
// plan as it would be now is in the outcome), [bottle.ErrState] (somebody else decided), [bottle.ErrInvalid],
// [ErrNotRunning], [ErrHandEdited], a file that is not what the bundle has mounted, an audit trail that can't be
// written. After it the request is applied or failed; an error that wraps [bottle.ErrUnconfirmed] carries the daemon's
// own words. If even the way back is barred (a full disk), the journal stays for [Applier.Recover].
func (a *Applier) Approve(ctx context.Context, rec *bottle.Record, in Intent, by bottle.Actor, digest bottle.Hash, note string) (Outcome, error) {
	switch {
	case digest == "":
		return Outcome{}, fmt.Errorf("digest: required; an approval names what was shown: %w", bottle.ErrInvalid)
	case in.Request != rec.Request.ID || in.Short != rec.Short:
		return Outcome{}, fmt.Errorf("intent: it is for request %s (%s), not for %s: %w", in.Short, in.Request, rec.Short, bottle.ErrInvalid)
	case len(note) > bottle.MaxReason:
		return Outcome{}, fmt.Errorf("note: %d bytes; at most %d: %w", len(note), bottle.MaxReason, bottle.ErrLimit)
	}
	a.cfg.Fault("lock")
	unlock, err := a.cfg.Dir.Lock(ctx)
	if err != nil {
		return Outcome{}, err
	}
	defer unlock()
	if _, err := a.recoverJournals(ctx); err != nil {
		return Outcome{}, err
	}
	out, err := a.approve(ctx, rec.Request.ID, in, by, digest, note)
	if now, ferr := a.cfg.Records.Find(context.WithoutCancel(ctx), rec.Request.ID); ferr == nil {
		*rec = *now
		out.Status = rec.State.Status()
	}
	return out, err
}

func (a *Applier) approve(ctx context.Context, id string, in Intent, by bottle.Actor, digest bottle.Hash, note string) (Outcome, error) {
	began := time.Now()
	rec, err := a.cfg.Records.Find(ctx, id)
	if err != nil {
		return Outcome{}, err
	}
	if s := rec.State.Status(); s != bottle.Pending {
		return Outcome{}, decidedError(rec)
	}
	in.Reason = rec.Request.Ask.Reason // the first one, whoever tells it
	if err := a.stopped(a.view(ctx)); err != nil {
		return Outcome{}, err
	}
	p, err := a.propose(in, by)
	if unready := a.unready(a.view(ctx)); unready != nil && (err != nil || p.widens()) {
		return Outcome{}, unready
	}
	if err != nil {
		return Outcome{}, err
	}
	// What has ended goes first, as a change of its own: it is not what the operator was asked about.
	n, err := a.expire(ctx, ended)
	if err != nil && !errors.Is(err, bottle.ErrUnconfirmed) {
		return Outcome{}, err
	}
	if n > 0 {
		if p, err = a.propose(in, by); err != nil {
			return Outcome{}, err
		}
	}
	if p.Digest != digest {
		return Outcome{Plan: p}, fmt.Errorf("request %s: it now comes to %s, and you were shown %s: %w", rec.Short, p.Digest.Short(), digest.Short(), bottle.ErrChanged)
	}
	a.cfg.Fault("planned")
	c, err := a.newChange(kindApprove, by, p, began)
	if err != nil {
		return Outcome{}, err
	}
	c.Requests = []subject{{ID: rec.Request.ID, Short: rec.Short, To: bottle.Applied}}
	gone, err := c.goneWith()
	if err != nil {
		return Outcome{}, err
	}
	c.Gone = a.subjectsOf(ctx, gone, bottle.Revoked)
	c.GrantEnds = p.GrantEnds
	c.Decision = &bottle.Decision{
		By: by, At: c.At, Digest: digest, Add: p.Proposal.Add, Remove: p.Proposal.Remove, Credential: p.Proposal.Credential,
		Duration: p.Proposal.Duration, Edited: edited(p.Proposal, rec.Request.Ask), Note: note, Change: c.ID,
	}
	v := a.view(ctx)
	if err := a.unready(v); err != nil && c.widens() { // it may have been stopped just now
		return Outcome{Plan: p}, err
	}
	out, err := a.perform(ctx, c, v)
	out.Plan = p
	return out, err
}

func decidedError(rec *bottle.Record) error {
	who := ""
	if rec.Decision != nil {
		who = ", by " + rec.Decision.By.Who()
	}
	return fmt.Errorf("request %s is %s since %s%s: %w", rec.Short, rec.State.Status(), rec.State.Since().Format("2006-01-02T15:04:05Z"), who, bottle.ErrState)
}

// newChange makes the change that carries out a plan, and which began when it was locked for.
func (a *Applier) newChange(kind string, by bottle.Actor, p *Plan, began time.Time) (*change, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("change ID: %w", err)
	}
	c := &change{
		Schema: bottle.Schema, ID: id.String(), Kind: kind, At: a.cfg.Now().UTC(), By: by, Digest: p.Digest, Steps: p.steps,
		Before: map[string][]string{}, After: map[string][]string{}, began: began,
	}
	for _, d := range p.Proposal.Diffs {
		if len(d.Remove) > 0 {
			c.Before[d.File] = d.Remove
		}
		if len(d.Add) > 0 {
			c.After[d.File] = d.Add
		}
	}
	return c, nil
}

// subjectsOf finds the requests of grants. A grant may have no record: then the routes file is the only trace of it.
func (a *Applier) subjectsOf(ctx context.Context, shorts []string, to bottle.Status) []subject {
	var out []subject
	for _, short := range shorts {
		s := subject{Short: short, To: to}
		if rec, err := a.cfg.Records.Find(ctx, short); err == nil {
			s.ID = rec.Request.ID
		}
		out = append(out, s)
	}
	return out
}

// goneWith returns the grants that the change takes the last route of.
func (c *change) goneWith() ([]string, error) {
	before, err := grantsIn(c.first())
	if err != nil {
		return nil, err
	}
	after, err := grantsIn(c.last())
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(before, func(s string) bool { return slices.Contains(after, s) }), nil
}

// grantsIn returns the short IDs of the grants in a routes file, if it is among the files.
func grantsIn(files map[string][]byte) ([]string, error) {
	b, ok := files[bottle.RoutesFile]
	if !ok {
		return nil, nil
	}
	doc, err := bottle.ParseRoutes(b)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, r := range doc.Routes() {
		if r.Grant != nil && !slices.Contains(out, r.Grant.Request) {
			out = append(out, r.Grant.Request)
		}
	}
	return out, nil
}

// base reads both files and refuses those that are not whole.
func (a *Applier) base() (Base, error) {
	files := map[string][]byte{}
	for _, name := range narrowingOrder {
		b, err := a.readConfig(name)
		if err != nil {
			return Base{}, err
		}
		if _, err := bottle.CheckSeal(b); err != nil {
			return Base{}, a.brokenError(name, b, err)
		}
		files[name] = b
	}
	return Base{Routes: files[bottle.RoutesFile], Pipelock: files[bottle.PipelockFile]}, nil
}

// touched lists the files that a change writes.
func (c *change) touched() []string { return slices.Sorted(maps.Keys(c.first())) }
