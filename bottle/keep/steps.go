package keep

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"bottle/bottle"
)

// recover runs at the start, and again for each bundle that has come up: what could not be
// confirmed without one can be then.
func (k *Keeper) recover(ctx context.Context) error {
	var st bottle.InitStatus
	err := bottle.ReadJSON(k.cfg.Dir.InitStatus(), 0, &st)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		k.cfg.Logger.Warn("can't read the bundle's status", "error", err)
	}
	ready := "none"
	if err == nil && st.Ready {
		ready = fmt.Sprint(st.PID, " ", st.StartedAt.UnixNano())
	}
	if k.ready == ready || k.ready != "" && ready == "none" {
		return nil
	}
	did, err := k.cfg.Applier.Recover(ctx)
	for _, d := range did {
		k.cfg.Logger.Info("recovered", "what", d)
	}
	if err != nil {
		return err
	}
	k.ready = ready
	return nil
}

// healthy is how long a bundle must run for its next death to be the first.
const healthy = 10 * time.Second

// bundle starts the bundle if it does not run. One that keeps dying is left down for
// longer each time.
func (k *Keeper) bundle(ctx context.Context) error {
	now := time.Now()
	if now.Before(k.holdOff) {
		return nil
	}
	if k.deaths > 0 && now.Sub(k.started) >= healthy {
		k.deaths = 0
		delete(k.problems, "bundle")
	}
	started, err := k.cfg.Bundle.Ensure(ctx)
	if !started {
		return err
	}
	k.cfg.Logger.Info("started the bundle")
	if !k.started.IsZero() {
		k.deaths++
		k.holdOff = now.Add(min(firstPause<<min(k.deaths, 10), lastPause))
		k.problems["bundle"] = []string{fmt.Sprintf("the bundle died and was started again, %d times in a row; bottle logs %s may say why", k.deaths, k.cfg.Dir.Name())}
	}
	k.started = now
	return err
}

func (k *Keeper) queue(ctx context.Context) error {
	return k.locked(ctx, func(ctx context.Context) error {
		seen, problems, err := k.cfg.Desk.Intake(ctx)
		for _, rec := range seen {
			k.cfg.Logger.Info("new request", "short", rec.Short, "request", rec.Request.ID)
		}
		var texts []string
		for _, p := range problems {
			texts = append(texts, p.Error())
		}
		if !slices.Equal(texts, k.problems["queue"]) {
			for _, p := range texts {
				k.cfg.Logger.Warn("passed over", "problem", p)
			}
		}
		k.problems["queue"] = texts
		ended, err2 := k.cfg.Desk.ExpirePending(ctx)
		for _, rec := range ended {
			k.cfg.Logger.Info("expired undecided", "short", rec.Short)
		}
		return errors.Join(err, err2)
	})
}

// grants narrows the config when grants have ended. When that is, apply knows; this only
// knows when to ask: while there are grants that can end, every few seconds, and at once
// when one is spent or its time has come.
func (k *Keeper) grants(ctx context.Context) error {
	recs, err := k.cfg.Desk.Approved(ctx)
	if err != nil {
		return err
	}
	now := k.cfg.Now()
	canEnd := false
	var next time.Duration
	for _, rec := range recs {
		if rec.State.Status() != bottle.Applied || rec.Decision == nil {
			continue
		}
		switch rec.Decision.Duration.Kind {
		case bottle.Once:
			canEnd = true
		case bottle.TTL:
			canEnd = true
			if rec.GrantEnds != nil {
				if left := rec.GrantEnds.Sub(now); left > 0 && (next == 0 || left < next) {
					next = left
				}
			}
		case bottle.Session, bottle.Permanent:
		}
	}
	if !canEnd {
		return nil
	}
	if next > 0 {
		k.step("grants").at = time.Now().Add(next)
	}
	n, err := k.cfg.Applier.Expire(ctx)
	if n > 0 {
		k.cfg.Logger.Info("took ended grants out of the config", "grants", n)
	}
	return err
}

func (k *Keeper) step(name string) *step {
	i := slices.IndexFunc(k.steps, func(s *step) bool { return s.name == name })
	return k.steps[i]
}
