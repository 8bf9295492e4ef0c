package apply_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"bottle/apply"
	"bottle/bottle"
)

func TestApprove(t *testing.T) {
	b := newBed(t, bedConfig{})
	rec := b.ask(bottle.Ask{Add: entries("c.example.com/x"), Reason: "for the build", TTLSeconds: 60})
	before := b.read(bottle.RoutesFile)
	out, err := b.approve(rec, b.intent(rec, session))
	if err != nil {
		t.Fatal(err)
	}
	if out.Status != bottle.Applied || rec.State.Status() != bottle.Applied || rec.GrantEnds == nil || out.Took <= 0 {
		t.Errorf("outcome %+v, record %+v", out, rec)
	}
	after := b.read(bottle.RoutesFile)
	if !bytes.HasPrefix(after, bottle.Body(before)) {
		t.Errorf("the operator's text changed:\n%s", after)
	}
	rs := b.routes()
	g := rs[len(rs)-1].Grant
	if g == nil || g.Request != rec.Short || g.By != "1000 operator" || g.ExpiresAt.Sub(g.At) != time.Minute || g.BootID == "" {
		t.Errorf("grant %+v", g)
	}
	if h := b.hosts(); h != "a.example.com b.example.com c.example.com" {
		t.Errorf("pipelock allows %s", h)
	}
	for file, rev := range out.Revision {
		if b.bundle.inForce(file) != rev {
			t.Errorf("%s: %s is in force, not %s", file, b.bundle.inForce(file), rev)
		}
	}
	if len(out.Revision) != 2 || rec.Decision.Digest != out.Plan.Digest || len(rec.Decision.Edited) != 0 {
		t.Errorf("revisions %v, decision %+v", out.Revision, rec.Decision)
	}
	if got := slices.Sorted(slices.Values(b.bundle.signalled())); !slices.Equal(got, []bottle.Signal{bottle.SignalReload, bottle.SignalReloadPipelock}) {
		t.Errorf("a widening signals each daemon once: %v", got)
	}
	if e := b.events(); e != "apply-started applied" {
		t.Errorf("audit: %s", e)
	}
	var answer bottle.Answer
	must(t, bottle.ReadJSON(filepath.Join(b.dir.Decisions(), rec.Request.ID+".json"), 0, &answer))
	if answer.Status != bottle.Applied || answer.ExpiresAt == nil {
		t.Errorf("answer %+v", answer)
	}
	noJournal(t, b)
}

func noJournal(t *testing.T, b *bed) {
	t.Helper()
	left, err := os.ReadDir(b.dir.Journal())
	if err != nil || len(left) > 0 {
		t.Errorf("journal: %v %v", left, err)
	}
}

func TestApproveSignalsOnlyWhatChanged(t *testing.T) {
	b := newBed(t, bedConfig{})
	rec := b.ask(bottle.Ask{Add: entries("b.example.com/v2"), Reason: "x"})
	out, err := b.approve(rec, b.intent(rec, session))
	must(t, err)
	if got := b.bundle.signalled(); len(out.Revision) != 1 || !slices.Equal(got, []bottle.Signal{bottle.SignalReload}) {
		t.Errorf("signals %v, revisions %v", got, out.Revision)
	}
}

func TestNarrowingGoesThroughEgressFirst(t *testing.T) {
	b := newBed(t, bedConfig{})
	rec := b.ask(bottle.Ask{Remove: entries("b.example.com"), Reason: "done with it"})
	_, err := b.approve(rec, b.intent(rec, session))
	must(t, err)
	if got := b.bundle.signalled(); !slices.Equal(got, []bottle.Signal{bottle.SignalReload, bottle.SignalReloadPipelock}) {
		t.Errorf("signals %v", got)
	}
	if b.hosts() != "a.example.com" || len(b.routes()) != 1 {
		t.Errorf("%s %v", b.hosts(), b.routes())
	}
	if !strings.Contains(string(b.read(bottle.RoutesFile)), "# ours") {
		t.Error("a comment went with another route")
	}
}

func TestMixedChangeNarrowsFirst(t *testing.T) {
	b := newBed(t, bedConfig{})
	rec := b.ask(bottle.Ask{Remove: entries("b.example.com"), Add: entries("d.example.com"), Reason: "swap"})
	_, err := b.approve(rec, b.intent(rec, session))
	must(t, err)
	want := []bottle.Signal{bottle.SignalReload, bottle.SignalReloadPipelock, bottle.SignalReloadPipelock, bottle.SignalReload}
	if got := b.bundle.signalled(); !slices.Equal(got, want) {
		t.Errorf("signals %v", got)
	}
	if b.hosts() != "a.example.com d.example.com" || b.events() != "apply-started applied" {
		t.Errorf("%s; %s", b.hosts(), b.events())
	}
}

func TestEditedGrantSaysSo(t *testing.T) {
	b := newBed(t, bedConfig{})
	rec := b.ask(bottle.Ask{Add: entries("c.example.com", "d.example.com"), Reason: "x", TTLSeconds: 3600})
	in := b.intent(rec, session)
	in.Add, in.Duration = entries("c.example.com/v1"), bottle.Duration{Kind: bottle.Once}
	_, err := b.approve(rec, in)
	must(t, err)
	if got := strings.Join(rec.Decision.Edited, " "); got != "add duration" {
		t.Errorf("edited: %q", got)
	}
}

func TestDigestBindsTheApproval(t *testing.T) {
	b := newBed(t, bedConfig{})
	rec := b.ask(bottle.Ask{Add: entries("c.example.com"), Reason: "x"})
	in := b.intent(rec, session)
	shown, err := b.applier.Preview(t.Context(), in)
	must(t, err)

	t.Run("an unrelated change leaves it", func(t *testing.T) {
		b.grant("e.example.com", session)
		again, err := b.applier.Preview(t.Context(), in)
		must(t, err)
		if again.Digest != shown.Digest {
			t.Errorf("%+v\n%+v", shown.Proposal, again.Proposal)
		}
	})
	t.Run("a grant that ends meanwhile leaves it", func(t *testing.T) {
		b.grant("f.example.com", bottle.Duration{Kind: bottle.Once})
		must(t, bottle.WriteJSON(b.dir.SpentFile(), bottle.Spent{Schema: 1, Spent: map[string]time.Time{"r3": time.Now()}}))
		again, err := b.applier.Preview(t.Context(), in)
		must(t, err)
		if again.Digest != shown.Digest {
			t.Errorf("%+v\n%+v", shown.Proposal, again.Proposal)
		}
	})
	t.Run("an edit after the look is refused", func(t *testing.T) {
		wider := in
		wider.Add = entries("c.example.com", "evil.example.net")
		out, err := b.applier.Approve(t.Context(), rec, wider, operator, shown.Digest, "")
		if !errors.Is(err, bottle.ErrChanged) || out.Plan == nil || out.Status != bottle.Pending {
			t.Errorf("%+v %v", out, err)
		}
	})
	t.Run("a change of what the yes would do is refused", func(t *testing.T) {
		b.grant("c.example.com/v1", session) // now pipelock knows the host already
		_, err := b.applier.Approve(t.Context(), rec, in, operator, shown.Digest, "")
		if !errors.Is(err, bottle.ErrChanged) || rec.State.Status() != bottle.Pending {
			t.Errorf("%v, %s", err, rec.State.Status())
		}
	})
	t.Run("no digest, no yes", func(t *testing.T) {
		if _, err := b.applier.Approve(t.Context(), rec, in, operator, "", ""); !errors.Is(err, bottle.ErrInvalid) {
			t.Error(err)
		}
	})
}

func TestProposeRefuses(t *testing.T) {
	b := newBed(t, bedConfig{})
	rec := b.ask(bottle.Ask{Add: entries("c.example.com"), Reason: "x"})
	for _, tt := range []struct {
		name string
		edit func(*apply.Intent)
		want string
	}{
		{"unknown credential", func(in *apply.Intent) { in.Credential = "other" }, `credential: "other" is not defined`},
		{"credential of another host", func(in *apply.Intent) { in.Credential = "example" }, "bound to [api.example.com] and can't be sent to c.example.com"},
		{"no duration", func(in *apply.Intent) { in.Duration = bottle.Duration{} }, "duration"},
		{"nothing", func(in *apply.Intent) { in.Add = nil }, "nothing is asked for"},
		{"removal of nothing", func(in *apply.Intent) { in.Remove = entries("z.example.org") }, "no route allows any of z.example.org"},
		{"public suffix", func(in *apply.Intent) { in.Add = entries("*.com") }, "public suffix"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := b.intent(rec, session)
			tt.edit(&in)
			if _, err := b.applier.Preview(t.Context(), in); !errors.Is(err, bottle.ErrInvalid) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v", err)
			}
		})
	}
	in := b.intent(rec, session)
	in.Add, in.Credential = entries("api.example.com"), "example"
	p, err := b.applier.Preview(t.Context(), in)
	if err != nil || len(p.Proposal.Risks) == 0 {
		t.Errorf("%+v %v", p, err)
	}
	in.Add, in.Credential = entries("a.example.com:443"), ""
	in.Add = []bottle.Entry{{Host: "a.example.com", Ports: []int{443}}}
	if p, err = b.applier.Preview(t.Context(), in); err != nil || len(p.Notes) != 1 || !strings.Contains(p.Notes[0], "allowed already") {
		t.Errorf("%+v %v", p, err)
	}
}

func TestTwoOperatorsAtOnce(t *testing.T) {
	b := newBed(t, bedConfig{})
	rec := b.ask(bottle.Ask{Add: entries("c.example.com"), Reason: "x"})
	in := b.intent(rec, session)
	p, err := b.applier.Preview(t.Context(), in)
	must(t, err)
	var wg sync.WaitGroup
	errs := make([]error, 4)
	for i := range errs {
		wg.Go(func() {
			mine := *rec
			_, errs[i] = b.applier.Approve(t.Context(), &mine, in, operator, p.Digest, "")
		})
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		switch {
		case err == nil:
			won++
		case !errors.Is(err, bottle.ErrState) || !strings.Contains(err.Error(), "by operator"):
			t.Errorf("the loser is told: %v", err)
		}
	}
	if won != 1 || b.events() != "apply-started applied" {
		t.Errorf("%d won; %s", won, b.events())
	}
}

func TestStoppedBottleLeavesItPending(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(*bed)
		want string
	}{
		{"no process", func(b *bed) { b.bundle.set(func(f *bundle) { f.down = true }) }, "bottle start"},
		{"not ready", func(b *bed) {
			must(t, bottle.WriteStatus(b.dir.InitStatus(), bottle.InitStatus{Schema: 1, Error: "egress is down"}))
		}, "bottle restart b"},
		{"no status", func(b *bed) { must(t, os.Remove(b.dir.InitStatus())) }, "bottle restart b"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t, bedConfig{})
			rec := b.ask(bottle.Ask{Add: entries("c.example.com"), Reason: "x"})
			tt.do(b)
			_, err := b.approve(rec, b.intent(rec, session))
			if !errors.Is(err, apply.ErrNotRunning) || !strings.Contains(err.Error(), tt.want) {
				t.Error(err)
			}
			if b.record(rec.Short).State.Status() != bottle.Pending || b.events() != "" {
				t.Errorf("%s; %s", b.record(rec.Short).State.Status(), b.events())
			}
		})
	}
}

func TestFileThatIsNotTheMountedOne(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(t *testing.T, path string)
		want string
	}{
		{"symbolic link", func(t *testing.T, path string) {
			must(t, os.Rename(path, path+".real"))
			must(t, os.Symlink(path+".real", path))
		}, "symbolic link"},
		{"hard link", func(t *testing.T, path string) { must(t, os.Link(path, path+".2")) }, "2 names"},
		{"FIFO", func(t *testing.T, path string) {
			must(t, os.Remove(path))
			must(t, syscall.Mkfifo(path, 0o600))
		}, "not a regular file"},
		{"directory", func(t *testing.T, path string) {
			must(t, os.Remove(path))
			must(t, os.Mkdir(path, 0o700))
		}, "directory"},
		{"another inode", func(t *testing.T, path string) {
			content, err := os.ReadFile(path)
			must(t, err)
			must(t, bottle.WriteFile(path, content, 0o600))
		}, "bottle restart b"},
	} {
		for _, file := range []string{bottle.RoutesFile, bottle.PipelockFile} {
			t.Run(tt.name+"/"+file, func(t *testing.T) {
				b := newBed(t, bedConfig{})
				rec := b.ask(bottle.Ask{Add: entries("c.example.com"), Reason: "x"})
				in := b.intent(rec, session)
				p, err := b.applier.Preview(t.Context(), in)
				must(t, err)
				tt.do(t, b.dir.Path("etc", file))
				_, err = b.applier.Approve(t.Context(), rec, in, operator, p.Digest, "")
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("%v", err)
				}
				if rec.State.Status() != bottle.Pending || b.events() != "" || len(b.bundle.signalled()) != 0 {
					t.Errorf("%s; %s; %v", rec.State.Status(), b.events(), b.bundle.signalled())
				}
				noJournal(t, b)
			})
		}
	}
}

func TestAuditThatCanNotBeWritten(t *testing.T) {
	b := newBed(t, bedConfig{})
	rec := b.ask(bottle.Ask{Add: entries("c.example.com"), Reason: "x"})
	before := b.read(bottle.RoutesFile)
	must(t, b.log.Close())
	_, err := b.approve(rec, b.intent(rec, session))
	if err == nil || !strings.Contains(err.Error(), "nothing was changed") {
		t.Error(err)
	}
	if b.record(rec.Short).State.Status() != bottle.Pending || !bytes.Equal(before, b.read(bottle.RoutesFile)) {
		t.Error("it went on without an audit")
	}
	noJournal(t, b)
}

func TestCancelledRequestIsNotApproved(t *testing.T) {
	b := newBed(t, bedConfig{})
	rec := b.ask(bottle.Ask{Add: entries("c.example.com"), Reason: "x"})
	mine := *rec
	must(t, b.desk.Deny(context.Background(), rec, operator, "no"))
	if _, err := b.approve(&mine, b.intent(rec, session)); !errors.Is(err, bottle.ErrState) {
		t.Error(err)
	}
	if mine.State.Status() != bottle.Denied {
		t.Errorf("the caller is not told: %s", mine.State.Status())
	}
}
