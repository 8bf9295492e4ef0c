package keep

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"bottle/bottle"
	"bottle/bottle/audit"
)

// How often tokens are handed over. What says that egress needs them is egress' status, which any daemon of the bundle
// can forge, and each handover is a line of the audit trail. An egress that crashes a few times is served at once.
const (
	handBurst = 3
	firstHand = time.Second
	lastHand  = time.Minute
	handCalm  = 10 * time.Minute // without a handover, after which the burst is there again
)

// A pace slows down what happens too often: after a burst, each pause is twice the last.
type pace struct {
	n    int
	last time.Time
}

// next returns when it may happen again.
func (p *pace) next(now time.Time) time.Time {
	if p.n < handBurst || now.Sub(p.last) >= handCalm {
		return now
	}
	return p.last.Add(min(firstHand<<min(p.n-handBurst, 10), lastHand))
}

// did notes that it happened.
func (p *pace) did(now time.Time) {
	if now.Sub(p.last) >= handCalm {
		p.n = 0
	}
	p.n++
	p.last = now
}

// credentials hands the tokens to an egress that has just started, or says that it needs
// some. Which names were handed over is audited, what they stand for is not.
func (k *Keeper) credentials(ctx context.Context) error {
	if len(k.cfg.Credentials) == 0 {
		return nil
	}
	delete(k.problems, "credentials")
	for _, name := range slices.Sorted(maps.Keys(k.unset)) {
		k.problems["credentials"] = append(k.problems["credentials"],
			fmt.Sprintf("credential %s: the environment variable %s is not set where the keeper was started; set it and run bottle restart %s", name, k.unset[name], k.cfg.Dir.Name()))
	}
	if err := k.tellHanded(ctx); err != nil {
		return err
	}
	var st bottle.DaemonStatus
	err := bottle.ReadJSON(k.cfg.Dir.DaemonStatus(bottle.DaemonEgress), 0, &st)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil // it will be
	case err != nil:
		return fmt.Errorf("egress' status: %w", err)
	}
	needs := slices.ContainsFunc(st.Needs, func(name string) bool { return k.tokens[name] != "" })
	if len(k.tokens) == 0 || st.Instance == k.handed && !needs {
		return nil
	}
	now := time.Now()
	if at := k.pace.next(now); at.After(now) {
		k.step("credentials").at = at
		return nil
	}
	// A failure costs no more than a try at a socket, and says nothing of a start. Only what was handed over is audited.
	handing, cancel := context.WithTimeout(ctx, handWait)
	defer cancel()
	if err := k.cfg.Keys.Hand(handing, maps.Clone(k.tokens)); err != nil {
		return fmt.Errorf("hand credentials to egress: %w", err)
	}
	k.pace.did(now)
	k.handed, k.untold = st.Instance, st.Instance
	return k.tellHanded(ctx)
}

// tellHanded audits a handover. Until that is done there is no other.
func (k *Keeper) tellHanded(ctx context.Context) error {
	if k.untold == "" {
		return nil
	}
	names := strings.Join(slices.Sorted(maps.Keys(k.tokens)), ", ")
	_, err := k.cfg.Trail.RecordOnce(ctx, bottle.Event{
		Name: string(audit.CredentialHanded), Change: "egress:" + string(bottle.Sum([]byte(k.untold))), Detail: names,
	})
	if err != nil {
		return fmt.Errorf("credentials were handed to egress, which could not be audited: %w", err)
	}
	k.untold = ""
	k.cfg.Logger.Info("handed credentials to egress", "credentials", names)
	return nil
}
