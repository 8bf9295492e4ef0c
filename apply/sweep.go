package apply

import (
	"slices"
	"time"

	"bottle/bottle"
)

// maxSpent bounds status/spent.json in bytes; the bundle writes it.
const maxSpent = 1 << 20

// ended reports whether nothing is let through by the grant any more. The bundle's word that a grant is spent counts
// for once grants alone: about any other it could only be a lie, if a harmless one.
func ended(g *bottle.Grant, env Env) bool {
	if g == nil {
		return false
	}
	if g.Duration.Kind == bottle.Once {
		_, spent := env.Spent[g.Request]
		return spent
	}
	return g.Ended(env.At, env.BootID, env.Boot)
}

// sweep takes out the routes whose grants are to go, and from pipelock the hosts that only they named. It returns the
// short IDs of those grants, and the base itself if there are none.
func sweep(base Base, env Env, gone func(*bottle.Grant) bool) (Base, []string, error) {
	doc, err := bottle.ParseRoutes(base.Routes)
	if err != nil {
		return base, nil, err
	}
	var shorts []string
	for i, r := range slices.Backward(doc.Routes()) {
		if r.Grant == nil || !gone(r.Grant) {
			continue
		}
		doc.Remove(i)
		shorts = append(shorts, r.Grant.Request)
	}
	if len(shorts) == 0 {
		return base, nil, nil
	}
	slices.Sort(shorts)
	less, err := render(doc, base.Pipelock, env.Pipelock)
	return less, slices.Compact(shorts), err
}

// env returns what plans of this moment depend on.
func (a *Applier) env(by bottle.Actor) Env {
	env := Env{Pipelock: a.cfg.Pipelock, Credentials: a.cfg.Credentials, By: by, At: a.cfg.Now()}
	id, boot, err := a.cfg.Boot()
	if err == nil { // else the wall clock ends grants alone
		env.BootID, env.Boot = id, boot
	}
	env.Spent = a.spent()
	return env
}

// spent reads which once grants are used up, and their request is over. A file that can't be read, for whatever reason,
// says nothing, and then egress, which wrote it, refuses those grants by itself; it must not keep others from ending.
func (a *Applier) spent() map[string]time.Time {
	var s bottle.Spent
	if err := bottle.ReadJSON(a.cfg.Dir.SpentFile(), maxSpent, &s); err != nil {
		return nil
	}
	for _, grant := range s.Open { // its request is still under way; taking the route out would cut it
		delete(s.Spent, grant)
	}
	return s.Spent
}
