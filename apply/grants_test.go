package apply_test

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"bottle/apply"
	"bottle/bottle"
)

// rewrite overwrites a config file in place, as a hand or a fault does.
func rewrite(tb testing.TB, b *bed, file string, content []byte) {
	tb.Helper()
	must(tb, os.WriteFile(b.dir.Path("etc", file), content, 0o600))
}

func TestRevoke(t *testing.T) {
	b := newBed(t, bedConfig{})
	rec := b.grant("c.example.com", session)
	other := b.grant("d.example.com", session)
	out, err := b.applier.Revoke(t.Context(), rec.Request.ID, operator)
	must(t, err)
	if out.Status != bottle.Revoked || b.hosts() != "a.example.com b.example.com d.example.com" {
		t.Errorf("%+v %s", out, b.hosts())
	}
	if s := b.record(rec.Short).State.Status(); s != bottle.Revoked {
		t.Error(s)
	}
	if s := b.record(other.Short).State.Status(); s != bottle.Applied {
		t.Error(s)
	}
	if _, err := b.applier.Revoke(t.Context(), rec.Short, operator); !errors.Is(err, bottle.ErrState) {
		t.Error(err)
	}
	if _, err := b.applier.Revoke(t.Context(), "r99", operator); !errors.Is(err, bottle.ErrNotFound) {
		t.Error(err)
	}
}

func TestRevokeNeedsNoBundle(t *testing.T) {
	b := newBed(t, bedConfig{})
	rec := b.grant("c.example.com", bottle.Duration{Kind: bottle.Permanent})
	b.bundle.set(func(f *bundle) { f.down = true })
	_, err := b.applier.Revoke(t.Context(), rec.Short, operator)
	must(t, err)
	if b.hosts() != "a.example.com b.example.com" || b.record(rec.Short).State.Status() != bottle.Revoked {
		t.Errorf("%s", b.hosts())
	}
}

func TestExpire(t *testing.T) {
	ttl, err := bottle.ForTTL(time.Minute)
	must(t, err)
	now := time.Now()
	boot := 1000.0
	b := newBed(t, bedConfig{adjust: func(c *apply.Config) {
		c.Now = func() time.Time { return now }
		c.Boot = func() (string, float64, error) { return "boot", boot, nil }
	}})
	byWall := b.grant("c.example.com", ttl)
	once := b.grant("d.example.com", bottle.Duration{Kind: bottle.Once})
	other := b.grant("e.example.com", session)
	must(t, bottle.WriteStatus(b.dir.SpentFile(), bottle.Spent{Schema: 1, Spent: map[string]time.Time{other.Short: now, byWall.Short: now}}))
	if n, err := b.applier.Expire(t.Context()); n != 0 || err != nil {
		t.Fatalf("the bundle's word ends once grants alone: %d %v", n, err)
	}
	// A download that is under way on a spent grant is not cut by tidying the grant away.
	must(t, bottle.WriteStatus(b.dir.SpentFile(), bottle.Spent{Schema: 1, Spent: map[string]time.Time{once.Short: now}, Open: []string{once.Short}}))
	if n, err := b.applier.Expire(t.Context()); n != 0 || err != nil {
		t.Errorf("%d grants ended while one is in use: %v", n, err)
	}
	must(t, bottle.WriteStatus(b.dir.SpentFile(), bottle.Spent{Schema: 1, Spent: map[string]time.Time{once.Short: now}}))
	if n, err := b.applier.Expire(t.Context()); n != 1 || err != nil {
		t.Fatalf("%d %v", n, err)
	}
	if s := b.record(once.Short).State.Status(); s != bottle.Expired {
		t.Error(s)
	}
	now = now.Add(-time.Hour) // the wall clock is set back; boot time is not
	boot += 60
	if n, err := b.applier.Expire(t.Context()); n != 1 || err != nil {
		t.Fatalf("%d %v", n, err)
	}
	if b.hosts() != "a.example.com b.example.com e.example.com" || b.record(byWall.Short).State.Status() != bottle.Expired {
		t.Errorf("%s", b.hosts())
	}
	if n, err := b.applier.Expire(t.Context()); n != 0 || err != nil {
		t.Fatalf("%d %v", n, err)
	}
	if n, err := b.applier.EndSession(t.Context()); n != 1 || err != nil || b.record(other.Short).State.Status() != bottle.Expired {
		t.Fatalf("%d %v", n, err)
	}
}

func TestDamagedSpentFileEndsNothing(t *testing.T) {
	b := newBed(t, bedConfig{})
	b.grant("d.example.com", bottle.Duration{Kind: bottle.Once})
	for _, text := range []string{"", "{", `{"schema":9}`, strings.Repeat("x", 2<<20)} {
		must(t, os.WriteFile(b.dir.SpentFile(), []byte(text), 0o600))
		if n, err := b.applier.Expire(t.Context()); n != 0 || err != nil {
			t.Errorf("%.20q: %d %v", text, n, err)
		}
	}
}

func TestApprovalEndsWhatIsOverFirst(t *testing.T) {
	ttl, err := bottle.ForTTL(time.Minute)
	must(t, err)
	now := time.Now()
	b := newBed(t, bedConfig{adjust: func(c *apply.Config) {
		c.Now = func() time.Time { return now }
		c.Boot = func() (string, float64, error) { return "", 0, errors.New("no such clock") }
	}})
	old := b.grant("c.example.com", ttl)
	now = now.Add(time.Hour)
	b.grant("d.example.com", session)
	if b.hosts() != "a.example.com b.example.com d.example.com" || b.record(old.Short).State.Status() != bottle.Expired {
		t.Errorf("%s %s", b.hosts(), b.record(old.Short).State.Status())
	}
	if e := b.events(); e != "apply-started applied apply-started expired apply-started applied" {
		t.Error(e)
	}
}

func TestEdit(t *testing.T) {
	b := newBed(t, bedConfig{})
	rec := b.grant("c.example.com", session)
	text, err := b.applier.EditText(bottle.RoutesFile)
	must(t, err)
	for _, tt := range []struct {
		name, old, new string
		signals        int // of the files touched, in both steps
		hosts          string
	}{
		{"a comment", "# ours", "# ours, still", 1, "a.example.com b.example.com c.example.com"},
		{"wider", "ports: [443]", "ports: [443, 8443]", 2, "a.example.com b.example.com c.example.com"},
		{"narrower", "/v1", "/v1/x", 1, "a.example.com b.example.com c.example.com"},
		{"mixed", "a.example.com", "z.example.com", 4, "b.example.com c.example.com z.example.com"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			body := []byte(strings.Replace(string(text), tt.old, tt.new, 1))
			p, err := b.applier.PreviewEdit(t.Context(), bottle.RoutesFile, body)
			must(t, err)
			before := len(b.bundle.signalled())
			_, err = b.applier.Edit(t.Context(), bottle.RoutesFile, body, operator, p.Digest)
			must(t, err)
			if n := len(b.bundle.signalled()) - before; n != tt.signals {
				t.Errorf("%d signals", n)
			}
			if string(bottle.Body(b.read(bottle.RoutesFile))) != string(body) || len(strings.Fields(tt.hosts)) != len(strings.Fields(b.hosts())) {
				t.Errorf("%s\n%s", b.hosts(), b.read(bottle.RoutesFile))
			}
			text = body
		})
	}
	if b.record(rec.Short).State.Status() != bottle.Applied {
		t.Error("the edit ended a grant that it left in")
	}
	rewrite(t, b, bottle.RoutesFile, []byte("torn"))
	_, err = b.applier.Recover(t.Context())
	must(t, err)
	if string(bottle.Body(b.read(bottle.RoutesFile))) != string(text) {
		t.Errorf("a rebuild begins with the last edit:\n%s", b.read(bottle.RoutesFile))
	}
	if _, err := b.applier.Edit(t.Context(), bottle.RoutesFile, text, operator, "sha256:other"); !errors.Is(err, bottle.ErrChanged) {
		t.Error(err)
	}
	if _, err := b.applier.PreviewEdit(t.Context(), bottle.RoutesFile, []byte("routes:\n  - hots: x\n")); !errors.Is(err, bottle.ErrInvalid) {
		t.Error(err)
	}
	if _, err := b.applier.PreviewEdit(t.Context(), bottle.RoutesFile, []byte("routes:\n  - {host: x.example.com, credential: none}\n")); !errors.Is(err, bottle.ErrInvalid) {
		t.Error(err)
	}
	if _, err := b.applier.EditText("bundle.json"); !errors.Is(err, bottle.ErrInvalid) {
		t.Error(err)
	}
}

func TestEditPipelock(t *testing.T) {
	b := newBed(t, bedConfig{})
	text, err := b.applier.EditText(bottle.PipelockFile)
	must(t, err)
	body := append(text, "trusted_domains: [x.example.com]\n"...)
	p, err := b.applier.PreviewEdit(t.Context(), bottle.PipelockFile, body)
	must(t, err)
	_, err = b.applier.Edit(t.Context(), bottle.PipelockFile, body, operator, p.Digest)
	must(t, err)
	if got := b.bundle.signalled(); len(got) != 1 || got[0] != bottle.SignalReplacePipelock {
		t.Errorf("a change that no reload takes replaces pipelock: %v", got)
	}
	b.grant("c.example.com", session)
	if !strings.Contains(string(b.read(bottle.PipelockFile)), "trusted_domains: [x.example.com]") {
		t.Error("a later change lost it")
	}
	bad := strings.Replace(string(body), "a.example.com", "evil.example.com", 1)
	if _, err := b.applier.PreviewEdit(t.Context(), bottle.PipelockFile, []byte(bad)); !errors.Is(err, bottle.ErrInvalid) {
		t.Error(err)
	}
}

func TestGrantOfWhichNothingIsLeftIsRevoked(t *testing.T) {
	b := newBed(t, bedConfig{})
	first, second := b.grant("c.example.com", session), b.grant("d.example.com", session)
	rec := b.ask(bottle.Ask{Remove: entries("c.example.com"), Reason: "done"})
	_, err := b.approve(rec, b.intent(rec, session))
	must(t, err)
	body := []byte("routes:\n  - host: a.example.com\n")
	p, err := b.applier.PreviewEdit(t.Context(), bottle.RoutesFile, body)
	must(t, err)
	if s := b.record(second.Short).State.Status(); s != bottle.Applied {
		t.Error(s)
	}
	_, err = b.applier.Edit(t.Context(), bottle.RoutesFile, body, operator, p.Digest)
	must(t, err)
	for _, short := range []string{first.Short, second.Short} {
		if s := b.record(short).State.Status(); s != bottle.Revoked {
			t.Errorf("%s is %s", short, s)
		}
	}
}

func TestStartAfterAHandEdit(t *testing.T) {
	b := newBed(t, bedConfig{})
	short := b.grant("c.example.com", session)
	kept := b.grant("d.example.com", bottle.Duration{Kind: bottle.Permanent})
	b.bundle.set(func(f *bundle) { f.down = true })
	rewrite(t, b, bottle.RoutesFile, []byte("routes:\n  - host: mine.example.org\n"))
	if _, err := b.applier.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n, err := b.applier.EndSession(t.Context()); n != 1 || err != nil {
		t.Fatalf("%d %v", n, err)
	}
	if s, k := b.record(short.Short).State.Status(), b.record(kept.Short).State.Status(); s != bottle.Expired || k != bottle.Applied {
		t.Errorf("%s %s", s, k)
	}
	base, err := b.applier.Expected(t.Context())
	must(t, err)
	doc, err := bottle.ParseRoutes(base.Routes)
	must(t, err)
	if rs := doc.Routes(); len(rs) != 3 || rs[2].Grant.Request != kept.Short {
		t.Errorf("%+v", rs)
	}
}
