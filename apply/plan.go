package apply

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"bottle/bottle"
	"bottle/bottle/allow"
)

// An Intent is what an operator is about to decide: a request as asked, or with the operator's edits.
type Intent struct {
	Request    string // UUID
	Short      string // short ID; it becomes the grant's name
	Kind       string // bottle.KindAccess
	Add        []bottle.Entry
	Remove     []bottle.Entry
	Credential string          // by name; goes with what is added
	Duration   bottle.Duration // of what is added; required if anything is
	Reason     string          // the first one that the agent gave
}

// FromRecord returns the intent to grant a request as it was asked. An ask without a ttl gets def.
func FromRecord(rec *bottle.Record, def bottle.Duration) (Intent, error) {
	ask := rec.Request.Ask
	in := Intent{
		Request: rec.Request.ID, Short: rec.Short, Kind: ask.Kind,
		Add: ask.Add, Remove: ask.Remove, Credential: ask.Credential, Duration: def, Reason: ask.Reason,
	}
	if ask.TTLSeconds != 0 {
		d, err := bottle.ForTTL(time.Duration(ask.TTLSeconds) * time.Second)
		if err != nil {
			return Intent{}, fmt.Errorf("request %s: ttl_seconds: %w", rec.Short, err)
		}
		in.Duration = d
	}
	return in, nil
}

// edited names the fields in which a plan differs from what was asked.
func edited(p bottle.Proposal, ask bottle.Ask) []string {
	var out []string
	if !slices.Equal(lines(p.Add), lines(ask.Add)) {
		out = append(out, "add")
	}
	if !slices.Equal(lines(p.Remove), lines(ask.Remove)) {
		out = append(out, "remove")
	}
	if p.Credential != ask.Credential {
		out = append(out, "credential")
	}
	if asked := time.Duration(ask.TTLSeconds) * time.Second; asked != 0 && len(p.Add) > 0 && (p.Duration.Kind != bottle.TTL || p.Duration.TTL != asked) {
		out = append(out, "duration")
	}
	return out
}

func lines(es []bottle.Entry) []string {
	var out []string
	for _, e := range es {
		out = append(out, e.Lines()...)
	}
	slices.Sort(out)
	return out
}

// A Base is the config that a plan starts from: both files, sealed.
type Base struct {
	Routes   []byte
	Pipelock []byte
}

// Env is what a plan depends on beside the files and the intent.
type Env struct {
	Pipelock    Codec                        // required
	Credentials map[string]bottle.Credential // by name
	Spent       map[string]time.Time         // once grants that have let their request through
	By          bottle.Actor                 // goes into the grant; not into the digest
	At          time.Time                    // likewise; the clock of a TTL grant starts here
	BootID      string                       // see bottle.BootClock
	Boot        float64
}

// A Plan says exactly what a yes will do.
type Plan struct {
	// Proposal is what is shown. It depends on the files only by what changes in them, and not on the time, so
	// that a decision outlives an unrelated change.
	Proposal  bottle.Proposal
	Digest    bottle.Hash // of the proposal; an approval names it
	Notes     []string    // for people: what is allowed already, what a removal closes beyond what was asked
	GrantEnds *time.Time  // of a TTL grant, if it were approved now

	steps []step
}

// widens reports whether any step does. What does not needs no word of the bundle.
func (p *Plan) widens() bool {
	return slices.ContainsFunc(p.steps, func(s step) bool { return !s.Narrows })
}

// Propose works out what an intent does to the files. It is pure. Grants in the base that have ended are left out of
// account, as if they had been removed before.
//
// Errors wrap [bottle.ErrInvalid] and name the field: a credential that the operator did not define or that is not
// bound to the host, a removal that touches nothing, a duration that is missing.
func Propose(base Base, in Intent, env Env) (*Plan, error) {
	in, err := canonical(in, env.Credentials)
	if err != nil {
		return nil, err
	}
	if base, _, err = sweep(base, env, func(g *bottle.Grant) bool { return ended(g, env) }); err != nil {
		return nil, err
	}
	doc, err := bottle.ParseRoutes(base.Routes)
	if err != nil {
		return nil, err
	}
	before := doc.Routes()
	p := &Plan{}
	less, err := p.remove(doc, in, env, base)
	if err != nil {
		return nil, err
	}
	p.Notes = append(p.Notes, covered(in.Add, doc.Routes())...)
	for _, r := range grantRoutes(in, env) {
		if r.Grant.ExpiresAt != nil {
			p.GrantEnds = r.Grant.ExpiresAt
		}
		if err := doc.Append(r); err != nil {
			return nil, err
		}
	}
	more, err := render(doc, less.Pipelock, env.Pipelock)
	if err != nil {
		return nil, err
	}
	if err := p.step(env.Pipelock, false, less, more); err != nil {
		return nil, err
	}
	diffs, err := diff(env.Pipelock, base, more, before, doc.Routes())
	if err != nil {
		return nil, err
	}
	p.Proposal = bottle.Proposal{
		Request: in.Request, Kind: in.Kind, Add: in.Add, Remove: in.Remove, Credential: in.Credential,
		Duration: in.Duration, Reason: in.Reason, Diffs: diffs, Risks: allow.Risks(in.Add, in.Credential, in.Duration, before),
	}
	p.Digest = p.Proposal.Digest()
	return p, nil
}

// remove takes what the intent removes out of doc, as a step of its own.
func (p *Plan) remove(doc *bottle.RoutesDoc, in Intent, env Env, base Base) (Base, error) {
	if len(in.Remove) == 0 {
		return base, nil
	}
	kept, err := allow.Subtract(doc.Routes(), in.Remove)
	if err != nil {
		return base, err
	}
	p.Notes = append(p.Notes, allow.Overreach(doc.Routes(), in.Remove)...)
	if err := keep(doc, kept); err != nil {
		return base, err
	}
	less, err := render(doc, base.Pipelock, env.Pipelock)
	if err != nil {
		return base, err
	}
	return less, p.step(env.Pipelock, true, base, less)
}

// keep does to the document what Subtract did to its routes.
func keep(doc *bottle.RoutesDoc, kept []allow.Kept) error {
	stays := map[int]allow.Kept{}
	for _, k := range kept {
		stays[k.Index] = k
	}
	for i := doc.Len() - 1; i >= 0; i-- {
		k, ok := stays[i]
		switch {
		case !ok:
			doc.Remove(i)
		case k.Changed:
			if err := doc.Set(i, k.Route); err != nil {
				return err
			}
		}
	}
	return nil
}

// step adds the step between two states, if they differ.
func (p *Plan) step(codec Codec, narrows bool, from, to Base) error {
	s, err := stepBetween(codec, narrows, from, to)
	if err == nil && len(s.Files) > 0 {
		p.steps = append(p.steps, s)
	}
	return err
}

// stepBetween returns the files that differ, in the order in which they are to be written, and refuses what pipelock
// would refuse.
func stepBetween(codec Codec, narrows bool, from, to Base) (step, error) {
	s := step{Narrows: narrows}
	if !bytes.Equal(from.Routes, to.Routes) {
		s.Files = append(s.Files, fileChange{File: bottle.RoutesFile, Old: from.Routes, New: to.Routes})
	}
	if !bytes.Equal(from.Pipelock, to.Pipelock) {
		if err := codec.Validate(from.Pipelock, to.Pipelock); err != nil {
			return s, fmt.Errorf("pipelock would refuse this: %w", err)
		}
		s.Files = append(s.Files, fileChange{
			File: bottle.PipelockFile, Old: from.Pipelock, New: to.Pipelock,
			Replace: codec.NeedsReplacement(from.Pipelock, to.Pipelock) || codec.NeedsReplacement(to.Pipelock, from.Pipelock),
		})
	}
	if !narrows {
		slices.Reverse(s.Files)
	}
	return s, nil
}

// render returns both files for the routes: pipelock's allowlist is derived from them, and the rest of it stays.
func render(doc *bottle.RoutesDoc, pipelock []byte, codec Codec) (Base, error) {
	routes, _, err := doc.Bytes()
	if err != nil {
		return Base{}, err
	}
	p, err := codec.SetAllowlist(pipelock, bottle.Allowlist(doc.Routes()))
	if err != nil {
		return Base{}, fmt.Errorf("%s: %w", bottle.PipelockFile, err)
	}
	return Base{Routes: routes, Pipelock: p}, nil
}

// diff describes what differs, in lines that hold no time.
func diff(codec Codec, from, to Base, before, after []bottle.Route) ([]bottle.FileDiff, error) {
	was, err := codec.Lines(from.Pipelock)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", bottle.PipelockFile, err)
	}
	is, err := codec.Lines(to.Pipelock)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", bottle.PipelockFile, err)
	}
	all := []bottle.FileDiff{ // in the order of names
		bottle.DiffLines(bottle.PipelockFile, was, is),
		bottle.DiffLines(bottle.RoutesFile, routeLines(before), routeLines(after)),
	}
	return slices.DeleteFunc(all, bottle.FileDiff.Empty), nil
}

func routeLines(rs []bottle.Route) []string {
	var out []string
	for _, r := range rs {
		out = append(out, r.Lines()...)
	}
	return out
}

// canonical checks an intent.
func canonical(in Intent, creds map[string]bottle.Credential) (Intent, error) {
	// The bounds are those of an ask; an operator's own change may do without a reason.
	ask, err := bottle.Ask{Kind: in.Kind, Add: in.Add, Remove: in.Remove, Reason: cmp.Or(in.Reason, "-"), Credential: in.Credential}.Canonical()
	if err != nil {
		return in, err
	}
	in.Kind, in.Add, in.Remove = ask.Kind, ask.Add, ask.Remove
	if len(in.Add) == 0 {
		in.Duration, in.Credential = bottle.Duration{}, ""
		return in, nil
	}
	if in.Short == "" {
		return in, fmt.Errorf("short: a grant needs the request's short ID for its name: %w", bottle.ErrInvalid)
	}
	if _, err := bottle.ParseDuration(in.Duration.String()); err != nil {
		return in, err
	}
	if in.Credential == "" {
		return in, nil
	}
	c, ok := creds[in.Credential]
	if !ok {
		known := "none"
		if len(creds) > 0 {
			known = strings.Join(slices.Sorted(maps.Keys(creds)), ", ")
		}
		return in, fmt.Errorf("credential: %q is not defined in the manifest, which has %s; deny the request, or grant it without: %w", in.Credential, known, bottle.ErrInvalid)
	}
	for _, e := range in.Add {
		if !c.Allows(e.Host) {
			return in, fmt.Errorf("credential: %s is bound to %v and can't be sent to %s; grant that host without it: %w", in.Credential, c.Hosts, e.Host, bottle.ErrInvalid)
		}
		if h := c.Judged(e.Matches); h != "" {
			return in, fmt.Errorf("credential: %s takes the %s out of what the agent sends to %s, so no match can judge by it; grant it without one of the two: %w", in.Credential, h, e.Host, bottle.ErrInvalid)
		}
	}
	return in, nil
}

// grantRoutes returns the routes that the intent adds, one an entry, each marked with the grant.
func grantRoutes(in Intent, env Env) []bottle.Route {
	// Milliseconds are what people and files can bear.
	at := env.At.UTC().Truncate(time.Millisecond)
	g := bottle.Grant{Request: in.Short, By: env.By.String(), At: at, Duration: in.Duration}
	if in.Duration.Kind == bottle.TTL {
		ends := at.Add(in.Duration.TTL)
		g.ExpiresAt = &ends
		if env.BootID != "" {
			g.BootID, g.BootExpires = env.BootID, env.Boot+in.Duration.TTL.Seconds()
		}
	}
	var out []bottle.Route
	for _, e := range in.Add {
		grant := g
		out = append(out, bottle.Route{Host: e.Host, Ports: e.Ports, Matches: e.Matches, Credential: in.Credential, Grant: &grant})
	}
	return out
}
