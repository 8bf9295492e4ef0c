package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"bottle/bottle"
	"bottle/bottle/audit"
	"bottle/bottle/prompt"
)

// acceptManifest shows how the manifest differs from the one accepted at the last start,
// and asks: it may lie where an agent can write. A first start accepts it unasked. Either is
// in the audit trail before anything of it is in force.
func (c *cell) acceptManifest(ctx context.Context, a *app, accept bool) error {
	old, err := loadAccepted(c.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return c.recordAccepted(ctx, nil, bottle.Event{Outcome: "first start"})
	}
	if err != nil {
		return err
	}
	old.Egress.Routes = ownRoutes(old)
	diff := bottle.ManifestDiff(old, c.manifest)
	if diff.Empty() {
		return nil
	}
	v := prompt.View{Proposal: &bottle.Proposal{Diffs: []bottle.FileDiff{diff}}, Color: wantColor(a.err), Width: widthOf(a.err)}
	fmt.Fprintln(a.err, "the manifest differs from the one that was accepted at the last start:")
	ev := bottle.Event{
		Digest: v.Proposal.Digest(), Outcome: "--accept",
		Before: map[string][]string{diff.File: diff.Remove}, After: map[string][]string{diff.File: diff.Add},
	}
	if accept {
		if err := v.RenderChange(a.err); err != nil {
			return err
		}
		return c.recordAccepted(ctx, old, ev)
	}
	con, done, err := a.console(ctx, "give --accept if this is what you want")
	if err != nil {
		return errors.Join(v.RenderChange(a.err), fmt.Errorf("the manifest changed: %w", err))
	}
	defer done()
	v.Color, v.Width = con.Color(), con.Width()
	err = con.ShowChange(v)
	yes := false
	if err == nil {
		yes, err = con.ConfirmView(v, "start with it?")
	}
	if err != nil || !yes {
		return errors.Join(errors.New("not started; the accepted manifest stands"), ignoreEOF(err))
	}
	ev.Outcome = "confirmed at a terminal"
	return c.recordAccepted(ctx, old, ev)
}

// inPlaceOf is before the revision of the manifest that an accepted one replaces.
const inPlaceOf = "in place of "

// recordAccepted writes to the audit trail which manifest is accepted, and in place of which. A
// revision is the hash of the canonical form, without permanent grants.
func (c *cell) recordAccepted(ctx context.Context, old *bottle.Manifest, ev bottle.Event) error {
	now, err := c.manifest.Encode()
	if err != nil {
		return err
	}
	ev.Name, ev.By = string(audit.ManifestAccepted), actor()
	ev.Revision = map[string]bottle.Hash{bottle.ManifestFile: bottle.Sum(now)}
	if old != nil {
		before, err := old.Encode()
		if err != nil {
			return err
		}
		ev.Detail = inPlaceOf + string(bottle.Sum(before))
	}
	return c.trail.Record(ctx, ev)
}
