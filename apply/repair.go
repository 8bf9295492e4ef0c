package apply

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"bottle/bottle"
)

// What recovery finds of a config file.
const (
	foundHandEdit = "hand-edit" // parses, but its revision line is wrong
	foundTorn     = "torn"      // does not parse, or is not there
)

// repairFiles looks at both config files. One that somebody edited is copied aside, reported and left alone: its author
// is the operator. One that is torn is copied aside and rebuilt from the records. Neither was in force meanwhile, since
// the bundle publishes what is sealed and nothing else.
func (a *Applier) repairFiles(ctx context.Context) ([]Recovered, error) {
	var out []Recovered
	var errs []error
	for _, name := range narrowingOrder {
		b, err := a.readConfig(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			b = nil
		case err != nil:
			errs = append(errs, err)
			continue
		}
		if _, err := bottle.CheckSeal(b); err == nil {
			continue
		}
		found, err := a.repair(ctx, name, b, err == nil)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out = append(out, found)
	}
	return out, errors.Join(errs...)
}

// repair deals with one file that is not whole; there says whether it exists at all.
func (a *Applier) repair(ctx context.Context, name string, b []byte, there bool) (Recovered, error) {
	found := Recovered{Kind: foundTorn, File: name}
	kept := ""
	if there {
		if err := a.keepAside(ctx, name, b); err != nil {
			return found, err
		}
		kept = a.keptPath(name, b)
	}
	expected, err := a.Expected(ctx)
	if a.parses(name, b) {
		found.Kind, found.Outcome = foundHandEdit, "kept"
		found.Detail = fmt.Sprintf("%s was edited by hand; the revision before it stays in force, and nothing is applied until bottle routes edit adopts or undoes the edit (a copy is in %s)", name, kept)
		if err == nil {
			found.Diff, err = a.diffOf(name, expected, b)
		}
		if err != nil {
			found.Detail += fmt.Sprintf("; its diff can't be shown: %v", err)
		}
		return found, nil
	}
	if err != nil {
		return found, fmt.Errorf("%s is damaged and can't be rebuilt (what is left of it is in %s); the revision before it stays in force: %w", name, kept, err)
	}
	found.Outcome, found.Detail = "rebuilt", fmt.Sprintf("%s was damaged, and was rebuilt from the manifest and the records (what was left of it is in %s)", name, kept)
	return found, a.rebuild(ctx, name, b, there, expected)
}

func (a *Applier) rebuild(ctx context.Context, name string, now []byte, there bool, expected Base) error {
	want := expected.Routes
	if name == bottle.PipelockFile {
		want = expected.Pipelock
		// Of the two files routes.yaml leads: repaired or whole, pipelock follows it.
		if b, err := a.readConfig(bottle.RoutesFile); err == nil {
			if doc, err := bottle.ParseRoutes(b); err == nil {
				if base, err := render(doc, want, a.cfg.Pipelock); err == nil {
					want = base.Pipelock
				}
			}
		}
	}
	v := a.view(ctx)
	rev, err := bottle.CheckSeal(want)
	if err != nil {
		return err
	}
	e := bottle.Event{Name: eventRebuilt, Change: "rebuilt-" + name + "-" + bottle.Sum(now).Short(), Revision: map[string]bottle.Hash{name: rev}}
	e.Before, e.After, e.Detail = a.rebuiltDiff(name, want)
	if _, err := a.cfg.Trail.RecordOnce(ctx, e); err != nil {
		return err
	}
	a.cfg.Fault("rebuild " + name)
	if !there { // the bundle, if there is one, has lost its mount of it, and a restart is needed
		return bottle.WriteFile(a.cfg.Dir.Path("etc", name), want, 0o600)
	}
	if err := a.overwrite(name, now, want); err != nil {
		return err
	}
	if !v.up {
		return nil
	}
	err = a.confirm(ctx, name, rev, signalFor(name, a.cfg.Pipelock.NeedsReplacement(nil, want)), a.look(name), true)
	if err != nil {
		return a.kill(ctx, &change{}, fileChange{File: name, New: want}, err)
	}
	return nil
}

// rebuiltDiff describes a rebuild for the audit trail. What the file said cannot be known from what is left of it, so
// the rebuilt one is compared with what the bundle has published, which is its word and said to be; without that, all
// lines are new.
func (a *Applier) rebuiltDiff(name string, want []byte) (before, after map[string][]string, detail string) {
	detail = "compared with nothing: what was in force before is not known"
	var was []string
	if b, err := bottle.ReadFile(a.cfg.Dir.Live(name), maxConfig); err == nil {
		rev, err := bottle.CheckSeal(b)
		if err == nil {
			was, err = a.linesOf(name, b)
		}
		if err == nil {
			detail = "compared with what the bundle has published, " + rev.Short()
		}
	}
	is, err := a.linesOf(name, want)
	if err != nil {
		return nil, nil, err.Error()
	}
	d := bottle.DiffLines(name, was, is)
	if len(d.Remove) > 0 {
		before = map[string][]string{name: d.Remove}
	}
	if len(d.Add) > 0 {
		after = map[string][]string{name: d.Add}
	}
	return before, after, detail
}

// linesOf describes a file for a semantic diff.
func (a *Applier) linesOf(name string, b []byte) ([]string, error) {
	if name != bottle.RoutesFile {
		return a.cfg.Pipelock.Lines(b)
	}
	doc, err := bottle.ParseRoutes(b)
	if err != nil {
		return nil, err
	}
	return routeLines(doc.Routes()), nil
}

func (a *Applier) parses(name string, b []byte) bool {
	if len(bytes.TrimSpace(b)) == 0 {
		return false
	}
	_, err := a.linesOf(name, b)
	return err == nil
}

// diffOf describes what a hand edit changes, line by line.
func (a *Applier) diffOf(name string, expected Base, b []byte) ([]string, error) {
	want := expected.Routes
	if name == bottle.PipelockFile {
		want = expected.Pipelock
	}
	was, err := a.linesOf(name, want)
	if err != nil {
		return nil, err
	}
	is, err := a.linesOf(name, b)
	if err != nil {
		return nil, err
	}
	d := bottle.DiffLines(name, was, is)
	var out []string
	for _, l := range d.Remove {
		out = append(out, "- "+l)
	}
	for _, l := range d.Add {
		out = append(out, "+ "+l)
	}
	return out, nil
}

// keptPath names a copy by its content, so that the same edit is kept once.
func (a *Applier) keptPath(name string, b []byte) string {
	return a.cfg.Dir.Path("kept", name+"."+strings.TrimPrefix(bottle.Sum(b).Short(), "sha256:"))
}

// keepAside copies what is about to be overwritten, or must not be, to kept/.
func (a *Applier) keepAside(ctx context.Context, name string, b []byte) error {
	path := a.keptPath(name, b)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		if err := bottle.WriteFile(path, b, 0o600); err != nil {
			return fmt.Errorf("keep a copy of %s: %w", name, err)
		}
	}
	e := bottle.Event{Name: eventKept, Change: "kept-" + name + "-" + bottle.Sum(b).Short(), Detail: path}
	_, err := a.cfg.Trail.RecordOnce(ctx, e)
	return err
}

// brokenError says what to do about a file that is not whole.
func (a *Applier) brokenError(name string, b []byte, why error) error {
	if a.parses(name, b) {
		return fmt.Errorf("%s: %w, so nothing is applied on top of it (%w); run bottle routes edit to adopt or undo the edit", name, ErrHandEdited, why)
	}
	return fmt.Errorf("%s is damaged, so nothing is applied on top of it; the keeper rebuilds it from the records, as bottle restart %s does: %w", name, a.cfg.Dir.Name(), why)
}
