package apply

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"bottle/bottle"
	"bottle/bottle/allow"
)

// An acceptedEdit is kept/last-edit.json: the files as an operator's edit left them, which is where a rebuild begins
// instead of the manifest. It counts until the bottle's next start.
type acceptedEdit struct {
	Schema   int       `json:"schema"`
	At       time.Time `json:"at"`
	Change   string    `json:"change"`
	Routes   []byte    `json:"routes"`
	Pipelock []byte    `json:"pipelock"`
}

func (a *Applier) lastEditPath() string { return a.cfg.Dir.Path("kept", "last-edit.json") }

// rememberEdit is part of the bookkeeping of an edit that is in force.
func (a *Applier) rememberEdit(c *change) error {
	e := acceptedEdit{Schema: bottle.Schema, At: c.At, Change: c.ID}
	for name, dst := range map[string]*[]byte{bottle.RoutesFile: &e.Routes, bottle.PipelockFile: &e.Pipelock} {
		b, ok := c.last()[name]
		if !ok {
			var err error
			if b, err = a.readConfig(name); err != nil {
				return err
			}
		}
		*dst = b
	}
	return bottle.WriteJSON(a.lastEditPath(), e)
}

// Expected returns both files as they should be by what the host knows: the routes of the manifest (or of the last
// accepted edit), and on top of them, in order, what the records say was approved. It is what a torn file is rebuilt
// from, and what a bottle that starts again with its old records may begin with.
//
// What a request opened counts for as long as its grant is in force. What it closed stays closed when the grant ends,
// by itself or by a revocation, which takes back what was given and gives nothing back; and also if the request failed
// after that part of it was in force.
func (a *Applier) Expected(ctx context.Context) (Base, error) {
	started := time.Time{}
	meta, err := a.cfg.Dir.LoadMetadata()
	switch {
	case err == nil:
		started = meta.StartedAt
	case !errors.Is(err, bottle.ErrNotFound):
		return Base{}, err
	}
	doc, pipelock, since, err := a.rebuildBase(started)
	if err != nil {
		return Base{}, err
	}
	recs, err := a.cfg.Records.Granted(ctx)
	if err != nil {
		return Base{}, err
	}
	env := a.env(bottle.Actor{})
	recs = slices.DeleteFunc(recs, func(r *bottle.Record) bool { return r.Decision == nil || !wasInForce(r) })
	slices.SortStableFunc(recs, func(x, y *bottle.Record) int { return x.Decision.At.Compare(y.Decision.At) })

	dropEnded(doc, recs, env)
	for _, rec := range recs {
		if !rec.Decision.At.After(since) {
			continue // in the edit already, or taken out by it
		}
		if err := replay(doc, rec, started, env); err != nil {
			return Base{}, fmt.Errorf("record of %s: %w", rec.Short, err)
		}
	}
	return render(doc, pipelock, a.cfg.Pipelock)
}

// rebuildBase returns what a rebuild starts from, and the time up to which records are in it.
func (a *Applier) rebuildBase(started time.Time) (doc *bottle.RoutesDoc, pipelock []byte, since time.Time, err error) {
	var e acceptedEdit
	err = bottle.ReadJSON(a.lastEditPath(), maxJournal, &e)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, since, err
	}
	if err == nil && e.At.After(started) {
		doc, err = bottle.ParseRoutes(e.Routes)
		return doc, e.Pipelock, e.At, err
	}
	if a.cfg.BaseRoutes == nil {
		return nil, nil, since, fmt.Errorf("no manifest at hand to rebuild the config from: %w", bottle.ErrNotFound)
	}
	routes, err := a.cfg.BaseRoutes()
	if err != nil {
		return nil, nil, since, fmt.Errorf("routes of the manifest: %w", err)
	}
	if a.cfg.BasePipelock != nil {
		if pipelock, err = a.cfg.BasePipelock(); err != nil {
			return nil, nil, since, fmt.Errorf("pipelock.yaml of the manifest: %w", err)
		}
	}
	doc, err = bottle.NewRoutes(routes)
	return doc, pipelock, since, err
}

// wasInForce reports whether something of what was approved ever was in force.
func wasInForce(rec *bottle.Record) bool {
	switch rec.State.Status() {
	case bottle.Applied, bottle.Expired, bottle.Revoked:
		return true
	case bottle.Failed:
		return len(rec.Revision) > 0
	}
	return false
}

// dropEnded takes grants out of an edited base that are over by now.
func dropEnded(doc *bottle.RoutesDoc, recs []*bottle.Record, env Env) {
	for i, r := range slices.Backward(doc.Routes()) {
		if r.Grant == nil {
			continue
		}
		lives := slices.ContainsFunc(recs, func(rec *bottle.Record) bool {
			return rec.Short == r.Grant.Request && rec.State.Status() == bottle.Applied
		})
		if !lives || ended(r.Grant, env) {
			doc.Remove(i)
		}
	}
}

// replay does to the routes what a decision did.
func replay(doc *bottle.RoutesDoc, rec *bottle.Record, started time.Time, env Env) error {
	d := rec.Decision
	for _, e := range d.Remove {
		// One by one: what an entry touched then may be gone by other means.
		kept, err := allow.Subtract(doc.Routes(), []bottle.Entry{e})
		if errors.Is(err, bottle.ErrInvalid) {
			continue
		}
		if err != nil {
			return err
		}
		if err := keep(doc, kept); err != nil {
			return err
		}
	}
	if rec.State.Status() != bottle.Applied {
		return nil
	}
	if k := d.Duration.Kind; (k == bottle.Session || k == bottle.Once) && d.At.Before(started) {
		return nil // it lasted until the bottle stopped, which has started anew since
	}
	then := env
	then.At, then.By, then.BootID = d.At, d.By, "" // of which boot it was is not known any more
	in := Intent{Short: rec.Short, Add: d.Add, Credential: d.Credential, Duration: d.Duration}
	for _, r := range grantRoutes(in, then) {
		if rec.GrantEnds != nil {
			r.Grant.ExpiresAt = rec.GrantEnds
		}
		if ended(r.Grant, env) || checkCredentials([]bottle.Route{r}, env.Credentials) != nil {
			continue // over, or the manifest has changed and no longer defines what it needs
		}
		if err := doc.Append(r); err != nil {
			return err
		}
	}
	return nil
}
