package apply

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"bottle/bottle"
)

// clock is who ends grants that nobody revoked.
func clock() bottle.Actor { return bottle.Actor{UID: os.Getuid(), Name: "bottle"} }

// Revoke ends a grant: its routes go, what they alone opened is cut, and its request becomes revoked. grant is the
// request's short ID or UUID. It needs no running bundle.
//
// The narrower files stay whatever happens. If a daemon does not confirm them it is killed, or the whole bundle is
// stopped if its word can't be relied on, and the error wraps [bottle.ErrUnconfirmed]; the request is revoked all the
// same. No word of the bundle, or the lack of one, keeps a grant in force.
func (a *Applier) Revoke(ctx context.Context, grant string, by bottle.Actor) (Outcome, error) {
	unlock, err := a.cfg.Dir.Lock(ctx)
	if err != nil {
		return Outcome{}, err
	}
	defer unlock()
	late, err := a.clearWay(ctx)
	if err != nil {
		return Outcome{}, err
	}
	short := grant
	rec, err := a.cfg.Records.Find(ctx, grant)
	if err == nil {
		short = rec.Short
	}
	out, shorts, err := a.end(ctx, kindRevoke, by, bottle.Revoked, func(g *bottle.Grant, _ Env) bool { return g.Request == short })
	if err == nil && len(shorts) == 0 {
		if rec != nil && rec.State.Status() != bottle.Applied {
			return out, fmt.Errorf("request %s is %s, so there is no grant to revoke: %w", rec.Short, rec.State.Status(), bottle.ErrState)
		}
		return out, fmt.Errorf("grant %q: no route carries it (bottle routes lists those that do): %w", grant, bottle.ErrNotFound)
	}
	if late != nil {
		out.Detail = strings.TrimPrefix(out.Detail+"; an earlier change is not written down completely yet: "+late.Error(), "; ")
	}
	return out, err
}

// Expire takes out the routes of TTL grants that have ended and of once grants that are spent, and narrows pipelock to
// match. egress refuses them by itself at the moment they end; this is the tidying after it. It returns how many
// grants ended.
func (a *Applier) Expire(ctx context.Context) (int, error) {
	unlock, err := a.cfg.Dir.Lock(ctx)
	if err != nil {
		return 0, err
	}
	defer unlock()
	if _, err := a.clearWay(ctx); err != nil {
		return 0, err
	}
	_ = a.keepReserve() // if it was used up, and there is space again
	return a.expire(ctx, ended)
}

// EndSession ends the grants that last until the bottle stops, and those for one request, with their records. It is
// for the stop of a bottle, or for its next start, and needs no running bundle; without one a file that is damaged or
// was edited by hand is no obstacle, since the next start writes it anew (see [Applier.Expected]).
func (a *Applier) EndSession(ctx context.Context) (int, error) {
	over := func(g *bottle.Grant, env Env) bool {
		return g.Duration.Kind == bottle.Session || g.Duration.Kind == bottle.Once || ended(g, env)
	}
	unlock, err := a.cfg.Dir.Lock(ctx)
	if err != nil {
		return 0, err
	}
	defer unlock()
	if _, err := a.clearWay(ctx); err != nil {
		return 0, err
	}
	n, err := a.expire(ctx, over)
	if err != nil {
		running, rerr := a.cfg.Signaler.Running(ctx)
		if rerr != nil || running || !errors.Is(err, ErrHandEdited) && !errors.Is(err, bottle.ErrCorrupt) {
			return n, errors.Join(err, rerr)
		}
	}
	more, err := a.endRecords(ctx, over)
	return n + more, err
}

// endRecords ends the records of grants that are over and of which the routes file has no trace, or can't be read.
func (a *Applier) endRecords(ctx context.Context, over func(*bottle.Grant, Env) bool) (int, error) {
	recs, err := a.cfg.Records.Approved(ctx)
	if err != nil {
		return 0, err
	}
	env := a.env(clock())
	n := 0
	for _, rec := range recs {
		d := rec.Decision
		if rec.State.Status() != bottle.Applied || d == nil || len(d.Add) == 0 {
			continue
		}
		if !over(&bottle.Grant{Request: rec.Short, Duration: d.Duration, ExpiresAt: rec.GrantEnds}, env) {
			continue
		}
		e := bottle.Event{Name: eventExpired, Change: "ended-" + rec.Request.ID, Request: rec.Request.ID, Short: rec.Short, By: &env.By}
		if _, err := a.cfg.Trail.RecordOnce(ctx, e); err != nil {
			return n, err
		}
		if err := a.recordEnd(ctx, subject{ID: rec.Request.ID, Short: rec.Short, To: bottle.Expired}); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// expire is the part of Expire under the lock.
func (a *Applier) expire(ctx context.Context, gone func(*bottle.Grant, Env) bool) (int, error) {
	_, shorts, err := a.end(ctx, kindExpire, clock(), bottle.Expired, gone)
	return len(shorts), err
}

// end narrows the grants that gone picks out of both files. Without any it changes nothing.
func (a *Applier) end(ctx context.Context, kind string, by bottle.Actor, to bottle.Status, gone func(*bottle.Grant, Env) bool) (Outcome, []string, error) {
	began := time.Now()
	base, err := a.base()
	if err != nil {
		return Outcome{}, nil, err
	}
	env := a.env(by)
	less, shorts, err := sweep(base, env, func(g *bottle.Grant) bool { return gone(g, env) })
	if err != nil || len(shorts) == 0 {
		return Outcome{}, nil, err
	}
	p, err := planBetween(env, base, less, kind)
	if err != nil {
		return Outcome{}, nil, err
	}
	c, err := a.newChange(kind, by, p, began)
	if err != nil {
		return Outcome{}, nil, err
	}
	c.Requests = a.subjectsOf(ctx, shorts, to)
	out, err := a.perform(ctx, c, a.view(ctx))
	out.Plan = p
	return out, shorts, err
}

// planBetween is the plan of a change that only narrows.
func planBetween(env Env, from, to Base, kind string) (*Plan, error) {
	before, err := bottle.ParseRoutes(from.Routes)
	if err != nil {
		return nil, err
	}
	after, err := bottle.ParseRoutes(to.Routes)
	if err != nil {
		return nil, err
	}
	p := &Plan{}
	if err := p.step(env.Pipelock, true, from, to); err != nil {
		return nil, err
	}
	diffs, err := diff(env.Pipelock, from, to, before.Routes(), after.Routes())
	p.Proposal = bottle.Proposal{Kind: kind, Diffs: diffs}
	p.Digest = p.Proposal.Digest()
	return p, err
}
