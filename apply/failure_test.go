package apply_test

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"bottle/apply"
	"bottle/bottle"
)

// quick is for bundles that do not answer, and insistent for those that answer in the end.
func quick(c *apply.Config) {
	insistent(c)
	c.ConfirmTimeout = 150 * time.Millisecond
}

func insistent(c *apply.Config) { c.ResignalEvery = 10 * time.Millisecond }

func TestRefusedWideningIsRolledBack(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(*bundle)
		want string // in the error and the record
	}{
		{"egress refuses", func(f *bundle) { f.refuse[bottle.RoutesFile] = "no such credential" }, "egress refused the new config: no such credential"},
		{"pipelock refuses", func(f *bundle) { f.refuse[bottle.PipelockFile] = "security downgrade" }, "pipelock refused the new config: security downgrade"},
		{"egress hangs", func(f *bundle) { f.hang[bottle.RoutesFile] = true }, "egress did not say within 150ms"},
		{"pipelock hangs", func(f *bundle) { f.hang[bottle.PipelockFile] = true }, "pipelock did not say within 150ms"},
		{"one refuses, one hangs", func(f *bundle) { f.refuse[bottle.RoutesFile], f.hang[bottle.PipelockFile] = "no", true }, "egress refused the new config: no"},
		{"signals are swallowed", func(f *bundle) { f.drop = 1 << 30 }, "did not say within 150ms"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t, bedConfig{adjust: quick})
			routes, lock := b.read(bottle.RoutesFile), b.read(bottle.PipelockFile)
			rec := b.ask(bottle.Ask{Add: entries("c.example.com"), Reason: "x"})
			b.bundle.set(tt.do)
			out, err := b.approve(rec, b.intent(rec, session))
			if !errors.Is(err, bottle.ErrUnconfirmed) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v", err)
			}
			if out.Status != bottle.Failed || !strings.Contains(b.record(rec.Short).Error, tt.want) {
				t.Errorf("%+v; record says %q", out, b.record(rec.Short).Error)
			}
			if !bytes.Equal(routes, b.read(bottle.RoutesFile)) || !bytes.Equal(lock, b.read(bottle.PipelockFile)) {
				t.Error("both files stand or fall together")
			}
			if e := b.events(); !strings.HasPrefix(e, "apply-started") || !strings.HasSuffix(e, "rolled-back failed") {
				t.Errorf("audit: %s", e)
			}
			noJournal(t, b)
			// The bottle is as it was: the next one goes through.
			b.bundle.set(func(f *bundle) { clear(f.refuse); clear(f.hang); f.drop = 0 })
			b.applier = b.newApplier(nil)
			b.grant("d.example.com", session)
		})
	}
}

func TestRefusalOfAnEarlierTryIsNotThisOnes(t *testing.T) {
	b := newBed(t, bedConfig{adjust: insistent})
	b.bundle.set(func(f *bundle) { f.refuse[bottle.PipelockFile] = "not now" })
	rec := b.ask(bottle.Ask{Add: entries("c.example.com"), Reason: "x"})
	_, err := b.approve(rec, b.intent(rec, session))
	if !errors.Is(err, bottle.ErrUnconfirmed) {
		t.Fatal(err)
	}
	b.bundle.set(func(f *bundle) { clear(f.refuse); f.drop = 2 }) // pipelock.yaml comes out the same, and its refusal still stands there
	b.grant("c.example.com", session)
}

func TestLostSignalIsSentAgain(t *testing.T) {
	b := newBed(t, bedConfig{adjust: func(c *apply.Config) { c.ResignalEvery = 5 * time.Millisecond }})
	b.bundle.set(func(f *bundle) { f.drop = 3 })
	b.grant("c.example.com", session)
}

func TestUnconfirmedNarrowingStaysAndKills(t *testing.T) {
	for file, kill := range map[string]bottle.Signal{bottle.RoutesFile: bottle.SignalRestartEgress, bottle.PipelockFile: bottle.SignalRestartPipelock} {
		t.Run(file, func(t *testing.T) {
			b := newBed(t, bedConfig{})
			rec := b.grant("c.example.com", session)
			b.applier = b.newApplier(quick)
			b.bundle.set(func(f *bundle) { f.hang[file] = true })
			out, err := b.applier.Revoke(t.Context(), rec.Short, operator)
			if !errors.Is(err, bottle.ErrUnconfirmed) || !strings.Contains(err.Error(), "was killed and stays down until it has loaded it") {
				t.Errorf("%v", err)
			}
			if out.Status != bottle.Revoked || b.record(rec.Short).State.Status() != bottle.Revoked {
				t.Errorf("%+v %s", out, b.record(rec.Short).State.Status())
			}
			if b.hosts() != "a.example.com b.example.com" || len(b.routes()) != 2 {
				t.Errorf("the narrower files stay: %s %v", b.hosts(), b.routes())
			}
			if !slices.Contains(b.bundle.signalled(), kill) {
				t.Errorf("not killed: %v", b.bundle.signalled())
			}
			if e := b.events(); e != "apply-started applied apply-started narrowing-unconfirmed revoked" {
				t.Errorf("audit: %s", e)
			}
		})
	}
}

func TestMixedChangeDoesNotWidenOnAnUnconfirmedNarrowing(t *testing.T) {
	b := newBed(t, bedConfig{adjust: quick})
	rec := b.ask(bottle.Ask{Remove: entries("b.example.com"), Add: entries("d.example.com"), Reason: "swap"})
	b.bundle.set(func(f *bundle) { f.hang[bottle.RoutesFile] = true })
	_, err := b.approve(rec, b.intent(rec, session))
	if !errors.Is(err, bottle.ErrUnconfirmed) || rec.State.Status() != bottle.Failed {
		t.Errorf("%v %s", err, rec.State.Status())
	}
	if b.hosts() != "a.example.com" || b.events() != "apply-started narrowing-unconfirmed failed" {
		t.Errorf("%s; %s", b.hosts(), b.events())
	}
}

func TestHandEditIsNeverOverwritten(t *testing.T) {
	b := newBed(t, bedConfig{})
	kept := b.grant("c.example.com", session)
	rec := b.ask(bottle.Ask{Add: entries("d.example.com"), Reason: "x"})
	in := b.intent(rec, session)
	p, err := b.applier.Preview(t.Context(), in)
	must(t, err)
	mine := append(bytes.Clone(bottle.Body(b.read(bottle.RoutesFile))), "  - host: mine.example.org\n"...)
	rewrite(t, b, bottle.RoutesFile, mine)

	_, err = b.applier.Approve(t.Context(), rec, in, operator, p.Digest, "")
	if !errors.Is(err, apply.ErrHandEdited) || !strings.Contains(err.Error(), "bottle routes edit") || rec.State.Status() != bottle.Pending {
		t.Errorf("%v %s", err, rec.State.Status())
	}
	for range 2 {
		found, err := b.applier.Recover(t.Context())
		must(t, err)
		if len(found) != 1 || found[0].Kind != "hand-edit" || !slices.Equal(found[0].Diff, []string{"+ mine.example.org  every method and path"}) {
			t.Errorf("%+v", found)
		}
	}
	if !bytes.Equal(mine, b.read(bottle.RoutesFile)) || b.bundle.inForce(bottle.RoutesFile) != kept.Revision[bottle.RoutesFile] {
		t.Error("it was overwritten, or is in force")
	}

	text, err := b.applier.EditText(bottle.RoutesFile)
	must(t, err)
	edit, err := b.applier.PreviewEdit(t.Context(), bottle.RoutesFile, text)
	must(t, err)
	if d := edit.Proposal.Diffs; len(d) != 2 || len(d[1].Add) != 1 || len(d[1].Remove) != 0 {
		t.Errorf("%+v", d)
	}
	_, err = b.applier.Edit(t.Context(), bottle.RoutesFile, text, operator, edit.Digest)
	must(t, err)
	if b.hosts() != "a.example.com b.example.com c.example.com mine.example.org" {
		t.Error(b.hosts())
	}
	if e := b.events(); e != "apply-started applied config-kept-aside apply-started edited" {
		t.Errorf("audit: %s", e)
	}
	_, err = b.applier.Approve(t.Context(), rec, in, operator, p.Digest, "")
	must(t, err)
}

func TestUndoneHandEditIsWrittenBack(t *testing.T) {
	b := newBed(t, bedConfig{})
	before := b.read(bottle.RoutesFile)
	rewrite(t, b, bottle.RoutesFile, []byte("routes:\n  - host: mine.example.org\n"))
	p, err := b.applier.PreviewEdit(t.Context(), bottle.RoutesFile, before)
	must(t, err)
	_, err = b.applier.Edit(t.Context(), bottle.RoutesFile, before, operator, p.Digest)
	must(t, err)
	if !bytes.Equal(before, b.read(bottle.RoutesFile)) {
		t.Errorf("%s", b.read(bottle.RoutesFile))
	}
}

func TestTornFile(t *testing.T) {
	for _, down := range []bool{false, true} {
		for name, damage := range map[string]func([]byte) []byte{
			"empty":   func([]byte) []byte { return nil },
			"zeros":   func(b []byte) []byte { return make([]byte, len(b)) },
			"cut off": func(b []byte) []byte { return b[:len(b)/2+3] },
			"garbage": func(b []byte) []byte { return append([]byte("\x00{{{"), b...) },
		} {
			for _, file := range []string{bottle.RoutesFile, bottle.PipelockFile} {
				t.Run(strings.Join([]string{name, file, map[bool]string{true: "stopped"}[down]}, " "), func(t *testing.T) {
					b := newBed(t, bedConfig{root: t.TempDir()})
					b.grant("c.example.com", session)
					gone := b.grant("d.example.com", session)
					_, err := b.applier.Revoke(t.Context(), gone.Short, operator)
					must(t, err)
					lines := routeLines(b)
					torn := damage(b.read(file))
					if file == bottle.RoutesFile && name == "cut off" {
						torn = append(torn, "\n ]]"...)
					}
					rewrite(t, b, file, torn)
					b.bundle.set(func(f *bundle) { f.down = down })
					found, err := b.applier.Recover(t.Context())
					must(t, err)
					if len(found) != 1 || found[0].Kind != "torn" || found[0].Outcome != "rebuilt" {
						t.Fatalf("%+v", found)
					}
					rev, err := bottle.CheckSeal(b.read(file))
					must(t, err)
					if !slices.Equal(lines, routeLines(b)) || b.hosts() != "a.example.com b.example.com c.example.com" {
						t.Errorf("%v, not %v; %s", routeLines(b), lines, b.hosts())
					}
					if !down && b.bundle.inForce(file) != rev {
						t.Error("rebuilt, but not in force")
					}
					again, err := b.applier.Recover(t.Context())
					if err != nil || len(again) != 0 {
						t.Errorf("%+v %v", again, err)
					}
				})
			}
		}
	}
}

func routeLines(b *bed) []string {
	var out []string
	for _, r := range b.routes() {
		out = append(out, r.Lines()...)
	}
	return out
}
