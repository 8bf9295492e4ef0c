package apply_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bottle/apply"
	"bottle/bottle"
	"bottle/bottle/pipelock"
	"bottle/bottle/queue"
)

func TestApprovedWithoutAJournalFails(t *testing.T) {
	b := newBed(t, bedConfig{})
	rec := b.ask(bottle.Ask{Add: entries("c.example.com"), Reason: "x"})
	rec.Decision = &bottle.Decision{By: operator, At: time.Now().UTC(), Change: "some-change"}
	must(t, rec.Transition(bottle.Approved, time.Now()))
	must(t, b.desk.Save(t.Context(), rec))
	found, err := b.applier.Recover(t.Context())
	must(t, err)
	if len(found) != 1 || found[0].Outcome != "failed" || b.record(rec.Short).State.Status() != bottle.Failed || !strings.Contains(b.record(rec.Short).Error, "ask again") {
		t.Errorf("%+v", found)
	}
	if found, err = b.applier.Recover(t.Context()); err != nil || len(found) != 0 || b.events() != "failed" {
		t.Errorf("%+v %v %s", found, err, b.events())
	}
}

// interrupt leaves a change behind just before a step, as a kill does.
func interrupt(t *testing.T, b *bed, step string, do func(a *apply.Applier)) {
	t.Helper()
	cfg := crashConfig(b.dir, b.desk, queue.AuditTrail{Log: b.log}, b.bundle, 0)
	cfg.Fault = func(s string) {
		if s == step {
			panic(errCrash)
		}
	}
	a, err := apply.New(cfg)
	must(t, err)
	defer func() {
		if p := recover(); p != any(errCrash) {
			t.Fatalf("it was not interrupted: %v", p)
		}
	}()
	do(a)
}

func TestHandEditWhileAChangeLies(t *testing.T) {
	for name, tt := range map[string]struct {
		revoke bool
		want   bottle.Status
	}{
		"widening":  {false, bottle.Failed},
		"narrowing": {true, bottle.Applied},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, bedConfig{})
			rec := b.grant("c.example.com", session)
			if !tt.revoke {
				rec = b.ask(bottle.Ask{Add: entries("d.example.com"), Reason: "x"})
			}
			in := b.intent(rec, session)
			interrupt(t, b, "fsync "+bottle.RoutesFile, func(a *apply.Applier) {
				if tt.revoke {
					_, _ = a.Revoke(context.Background(), rec.Short, operator)
					return
				}
				p, err := a.Preview(context.Background(), in)
				must(t, err)
				mine := *rec
				_, _ = a.Approve(context.Background(), &mine, in, operator, p.Digest, "")
			})
			mine := []byte("routes:\n  - host: mine.example.org\n")
			rewrite(t, b, bottle.RoutesFile, mine)
			found, err := b.applier.Recover(t.Context())
			must(t, err)
			if len(found) != 2 || !strings.Contains(found[0].Detail, "edited by hand meanwhile") || found[1].Kind != "hand-edit" {
				t.Errorf("%+v", found)
			}
			if !bytes.Equal(mine, b.read(bottle.RoutesFile)) {
				t.Error("the edit was overwritten")
			}
			if s := b.record(rec.Short).State.Status(); s != tt.want {
				t.Errorf("it is %s: what is not in force is not revoked, and what was not confirmed not applied", s)
			}
			kept, err := filepath.Glob(filepath.Join(b.dir.Kept(), "routes.yaml.*"))
			if err != nil || len(kept) != 1 {
				t.Errorf("%v %v", kept, err)
			}
			noJournal(t, b)
		})
	}
}

func TestNextApprovalFinishesWhatWasLeft(t *testing.T) {
	b := newBed(t, bedConfig{})
	first := b.grant("c.example.com", session)
	second := b.ask(bottle.Ask{Add: entries("d.example.com"), Reason: "x"})
	interrupt(t, b, "signal "+bottle.RoutesFile, func(a *apply.Applier) {
		_, _ = a.Revoke(context.Background(), first.Short, operator)
	})
	// What was shown was the state in between, so the first try only finishes the revocation.
	if _, err := b.approve(second, b.intent(second, session)); !errors.Is(err, bottle.ErrChanged) {
		t.Fatal(err)
	}
	_, err := b.approve(second, b.intent(second, session))
	must(t, err)
	if b.record(first.Short).State.Status() != bottle.Revoked || b.hosts() != "a.example.com b.example.com d.example.com" {
		t.Errorf("%s %s", b.record(first.Short).State.Status(), b.hosts())
	}
}

func TestDamagedJournalIsNotGuessedAt(t *testing.T) {
	b := newBed(t, bedConfig{})
	rec := b.grant("c.example.com", session)
	for name, text := range map[string]string{
		"truncated": `{"schema":1,"id":"x`, "newer": `{"schema":2}`, "another's name": `{"schema":1,"id":"y","steps":[{}]}`, "no steps": `{"schema":1,"id":"x"}`,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(b.dir.Journal(), "x.json")
			must(t, os.WriteFile(path, []byte(text), 0o600))
			_, err := b.applier.Recover(t.Context())
			if !errors.Is(err, bottle.ErrCorrupt) && !errors.Is(err, bottle.ErrNewer) {
				t.Error(err)
			}
			if _, err := b.applier.Revoke(t.Context(), rec.Short, operator); err == nil {
				t.Error("applied on top of it")
			}
			must(t, os.Remove(path))
		})
	}
}

func TestNewRefuses(t *testing.T) {
	b := newBed(t, bedConfig{})
	whole := apply.Config{Dir: b.dir, Records: b.desk, Trail: queue.AuditTrail{Log: b.log}, Signaler: b.bundle, Pipelock: pipelock.Codec{}}
	if _, err := apply.New(whole); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*apply.Config){
		"Dir":                  func(c *apply.Config) { c.Dir = nil },
		"Records":              func(c *apply.Config) { c.Records = nil },
		"Trail":                func(c *apply.Config) { c.Trail = nil },
		"Signaler":             func(c *apply.Config) { c.Signaler = nil },
		"Pipelock":             func(c *apply.Config) { c.Pipelock = nil },
		"must not be negative": func(c *apply.Config) { c.ConfirmTimeout = -1 },
	} {
		cfg := whole
		spoil(&cfg)
		if _, err := apply.New(cfg); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
