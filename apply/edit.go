package apply

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"bottle/bottle"
	"bottle/bottle/allow"
)

// kindEditProposal is the kind in the proposal of an operator's own edit.
const kindEditProposal = "edit"

// EditText returns what an editor is to open: the file as it is, without its revision line. For a file that was edited
// by hand that is the hand edit.
func (a *Applier) EditText(file string) ([]byte, error) {
	if err := checkEditable(file); err != nil {
		return nil, err
	}
	b, err := a.readConfig(file)
	return bottle.Body(b), err
}

func checkEditable(file string) error {
	if file != bottle.RoutesFile && file != bottle.PipelockFile {
		return fmt.Errorf("file: %q can't be edited here; use %s or %s: %w", file, bottle.RoutesFile, bottle.PipelockFile, bottle.ErrInvalid)
	}
	return nil
}

// PreviewEdit says what [Applier.Edit] would do now.
func (a *Applier) PreviewEdit(ctx context.Context, file string, body []byte) (*Plan, error) {
	from, err := a.editBase(ctx)
	if err != nil {
		return nil, err
	}
	return a.proposeEdit(from, file, body)
}

// Edit replaces a whole config file by what an operator wrote (bottle routes edit), and in doing so adopts a hand edit
// of it. body may have a revision line, which is made anew. Grants are routes like any others here: what the operator
// leaves in stays, with its request; a grant of which nothing is left is revoked. pipelock's allowlist is derived from the routes, so an edit of pipelock.yaml may
// change everything but that.
//
// The digest is that of the plan which [Applier.PreviewEdit] returned; errors are those of [Applier.Approve].
func (a *Applier) Edit(ctx context.Context, file string, body []byte, by bottle.Actor, digest bottle.Hash) (Outcome, error) {
	unlock, err := a.cfg.Dir.Lock(ctx)
	if err != nil {
		return Outcome{}, err
	}
	defer unlock()
	began := time.Now()
	if _, err := a.recoverJournals(ctx); err != nil {
		return Outcome{}, err
	}
	v := a.view(ctx)
	if err := a.stopped(v); err != nil {
		return Outcome{}, err
	}
	from, err := a.editBase(ctx)
	if err != nil {
		return Outcome{}, err
	}
	p, err := a.proposeEdit(from, file, body)
	if err != nil {
		return Outcome{}, err
	}
	// A bundle that came up on a file edited by hand waits for this very edit, and is not ready until then.
	if err := a.unready(v); err != nil && p.widens() && (v.init == nil || !from.handEdited()) {
		return Outcome{Plan: p}, err
	}
	if p.Digest != digest {
		return Outcome{Plan: p}, fmt.Errorf("%s: your edit now comes to %s, and you were shown %s: %w", file, p.Digest.Short(), digest.Short(), bottle.ErrChanged)
	}
	if len(p.steps) == 0 {
		return Outcome{Plan: p, Detail: "nothing changes"}, nil
	}
	for name, b := range from.disk {
		if _, err := bottle.CheckSeal(b); err != nil {
			if err := a.keepAside(ctx, name, b); err != nil {
				return Outcome{}, err
			}
		}
	}
	c, err := a.newChange(kindEdit, by, p, began)
	if err != nil {
		return Outcome{}, err
	}
	gone, err := c.goneWith()
	if err != nil {
		return Outcome{}, err
	}
	c.Gone = a.subjectsOf(ctx, gone, bottle.Revoked)
	out, err := a.perform(ctx, c, v)
	out.Plan = p
	return out, err
}

// An editBase is what an edit starts from.
type editBase struct {
	Base                   // sealed: what should be there
	disk map[string][]byte // what is there
}

// handEdited reports whether a file is not as this package left it.
func (b editBase) handEdited() bool {
	for _, disk := range b.disk {
		if _, err := bottle.CheckSeal(disk); err != nil {
			return true
		}
	}
	return false
}

// editBase reads both files. In the place of one that was edited by hand it takes what should be there, so that the
// whole of the hand edit shows in the diff, and so that there is something to go back to.
func (a *Applier) editBase(ctx context.Context) (editBase, error) {
	from := editBase{disk: map[string][]byte{}}
	var expected *Base
	for _, name := range narrowingOrder {
		b, err := a.readConfig(name)
		if err != nil {
			return from, err
		}
		from.disk[name] = b
		if _, err := bottle.CheckSeal(b); err == nil {
			continue
		}
		if expected == nil {
			e, err := a.Expected(ctx)
			if err != nil {
				return from, err
			}
			expected = &e
		}
	}
	from.Routes, from.Pipelock = from.disk[bottle.RoutesFile], from.disk[bottle.PipelockFile]
	if expected == nil {
		return from, nil
	}
	if _, err := bottle.CheckSeal(from.Routes); err != nil {
		from.Routes = expected.Routes
	}
	if _, err := bottle.CheckSeal(from.Pipelock); err != nil {
		from.Pipelock = expected.Pipelock
	}
	return from, nil
}

func (a *Applier) proposeEdit(from editBase, file string, body []byte) (*Plan, error) {
	if err := checkEditable(file); err != nil {
		return nil, err
	}
	env := a.env(bottle.Actor{})
	before, err := bottle.ParseRoutes(from.Routes)
	if err != nil {
		return nil, err
	}
	after, to := before, from.Base
	if file == bottle.RoutesFile {
		if after, err = bottle.ParseRoutes(body); err != nil {
			return nil, err
		}
		if err := checkCredentials(after.Routes(), env.Credentials); err != nil {
			return nil, err
		}
		if to, err = render(after, from.Pipelock, env.Pipelock); err != nil {
			return nil, err
		}
	} else if to.Pipelock, err = editPipelock(body, before.Routes(), env.Pipelock); err != nil {
		return nil, err
	}
	p := &Plan{}
	if err := p.editSteps(env, from, to, before, after); err != nil {
		return nil, err
	}
	diffs, err := diff(env.Pipelock, from.Base, to, before.Routes(), after.Routes())
	if err != nil {
		return nil, err
	}
	// The digest covers the text itself too, and with it comments and the keys that no line describes.
	p.Proposal = bottle.Proposal{
		Kind: kindEditProposal, Reason: fmt.Sprintf("%s: %s", file, bottle.Sum(bottle.Body(body)).Short()), Diffs: diffs,
		Risks: allow.Risks(newEntries(before.Routes(), after.Routes()), "", bottle.Duration{}, before.Routes()),
	}
	p.Digest = p.Proposal.Digest()
	return p, nil
}

// editSteps splits an edit. In between, what both the old and the new routes allow stays allowed, so that no
// connection is closed that may live on.
func (p *Plan) editSteps(env Env, from editBase, to Base, before, after *bottle.RoutesDoc) error {
	stay := coveredBy(before.Routes(), after.Routes())
	if len(stay) == len(before.Routes()) {
		return p.editStep(env.Pipelock, false, from, to)
	}
	old := coveredBy(after.Routes(), before.Routes())
	if len(old) == len(after.Routes()) {
		return p.editStep(env.Pipelock, true, from, to)
	}
	both, err := bottle.NewRoutes(slices.Concat(stay, old))
	if err != nil {
		return err
	}
	less, err := render(both, from.Pipelock, env.Pipelock)
	if err != nil {
		return err
	}
	if err := p.editStep(env.Pipelock, true, from, less); err != nil {
		return err
	}
	return p.editStep(env.Pipelock, false, editBase{Base: less, disk: map[string][]byte{bottle.RoutesFile: less.Routes, bottle.PipelockFile: less.Pipelock}}, to)
}

// editStep is a step that also writes a file which says what it should but for a hand edit.
func (p *Plan) editStep(codec Codec, narrows bool, from editBase, to Base) error {
	s, err := stepBetween(codec, narrows, from.Base, to)
	if err != nil {
		return err
	}
	for _, f := range []fileChange{{File: bottle.RoutesFile, Old: from.Routes, New: to.Routes}, {File: bottle.PipelockFile, Old: from.Pipelock, New: to.Pipelock}} {
		was := from.disk[f.File]
		i := slices.IndexFunc(s.Files, func(have fileChange) bool { return have.File == f.File })
		switch {
		case bytes.Equal(was, f.Old):
		case i >= 0:
			s.Files[i].Was = was
		case !bytes.Equal(was, f.New):
			f.Was = was
			s.Files = append(s.Files, f)
		}
	}
	if len(s.Files) > 0 {
		p.steps = append(p.steps, s)
	}
	return nil
}

// editPipelock seals an edited pipelock.yaml, whose list must be the one that the routes give.
func editPipelock(body []byte, routes []bottle.Route, codec Codec) ([]byte, error) {
	have, err := codec.Allowlist(body)
	if err != nil {
		return nil, err
	}
	derived, err := codec.SetAllowlist(body, bottle.Allowlist(routes))
	if err != nil {
		return nil, err
	}
	want, err := codec.Allowlist(derived) // an empty list has a form of its own
	if err != nil {
		return nil, err
	}
	same := slices.EqualFunc(have, want, func(x, y bottle.AllowEntry) bool { return x.Host == y.Host && slices.Equal(x.Ports, y.Ports) })
	if !same {
		return nil, fmt.Errorf("%s: api_allowlist is derived from %s, and would be overwritten by the next change; run bottle routes edit to change what is allowed: %w", bottle.PipelockFile, bottle.RoutesFile, bottle.ErrInvalid)
	}
	sealed, _ := bottle.Seal(body)
	return sealed, nil
}

func checkCredentials(routes []bottle.Route, creds map[string]bottle.Credential) error {
	var errs []error
	for i, r := range routes {
		if r.Credential == "" {
			continue
		}
		c, ok := creds[r.Credential]
		switch {
		case !ok:
			errs = append(errs, fmt.Errorf("routes[%d].credential: %q is not defined in the manifest: %w", i, r.Credential, bottle.ErrInvalid))
		case !c.Allows(r.Host):
			errs = append(errs, fmt.Errorf("routes[%d].credential: %s is bound to %v and can't be sent to %s: %w", i, r.Credential, c.Hosts, r.Host, bottle.ErrInvalid))
		case c.Judged(r.Matches) != "":
			errs = append(errs, fmt.Errorf("routes[%d].credential: %s takes the %s out of what the agent sends, so no match can judge by it: %w", i, r.Credential, c.Judged(r.Matches), bottle.ErrInvalid))
		}
	}
	return errors.Join(errs...)
}

// newEntries returns what the routes allow that others do not, for its risks.
func newEntries(before, after []bottle.Route) []bottle.Entry {
	var out []bottle.Entry
	old := coveredBy(after, before)
	for _, r := range after {
		if !slices.ContainsFunc(old, func(o bottle.Route) bool { return slices.Equal(o.Lines(), r.Lines()) }) {
			out = append(out, r.Entry())
		}
	}
	return out
}
