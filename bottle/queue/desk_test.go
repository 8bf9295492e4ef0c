package queue_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bottle/bottle"
	"bottle/bottle/audit"
	"bottle/bottle/queue"
)

// A host is a bottle with both sides of its queue and a clock.
type host struct {
	t     testing.TB
	dir   *bottle.Dir
	spool *queue.Spool
	desk  *queue.Desk
	log   *audit.Log
	trail *faultyTrail
	now   time.Time
}

func newHost(t testing.TB) *host {
	t.Helper()
	h := &host{t: t, dir: newDir(t), now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	h.spool = newSpool(t, h.dir, func(c *queue.SpoolConfig) { c.Now = h.clock })
	log, err := audit.Open(audit.Config{Path: h.dir.Audit(), HeadPath: h.dir.AuditHead(), Bottle: "b"})
	must(t, err)
	t.Cleanup(func() { _ = log.Close() })
	h.log = log
	h.trail = &faultyTrail{Trail: queue.AuditTrail{Log: log}}
	h.desk = h.newDesk()
	return h
}

func (h *host) clock() time.Time { return h.now }

func (h *host) newDesk() *queue.Desk {
	h.t.Helper()
	d, err := queue.NewDesk(queue.DeskConfig{Dir: h.dir, Trail: h.trail, Now: h.clock})
	must(h.t, err)
	return d
}

func (h *host) intake() ([]*bottle.Record, []queue.Problem) {
	h.t.Helper()
	recs, problems, err := h.desk.Intake(h.t.Context())
	must(h.t, err)
	return recs, problems
}

// file submits an ask and takes it in.
func (h *host) file(name string) *bottle.Record {
	h.t.Helper()
	submit(h.t, h.spool, ask(name), "")
	recs, problems := h.intake()
	if len(recs) != 1 || len(problems) != 0 {
		h.t.Fatalf("taken in: %v, problems %v", recs, problems)
	}
	return recs[0]
}

// events returns the audit trail as "event short".
func (h *host) events() []string {
	h.t.Helper()
	b, err := os.ReadFile(h.dir.Audit())
	must(h.t, err)
	var out []string
	for line := range strings.Lines(string(b)) {
		var e audit.Entry
		must(h.t, bottle.DecodeJSON("audit", []byte(line), &e))
		out = append(out, strings.TrimSpace(string(e.Event)+" "+e.Short))
	}
	return out
}

func (h *host) wantEvents(want ...string) {
	h.t.Helper()
	if got := h.events(); !slices.Equal(got, want) {
		h.t.Errorf("audited %q, want %q", got, want)
	}
}

func (h *host) status(id string) bottle.Status {
	h.t.Helper()
	tk, err := h.spool.Get(h.t.Context(), id)
	must(h.t, err)
	return tk.Status()
}

func (h *host) find(id string) *bottle.Record {
	h.t.Helper()
	rec, err := h.desk.Find(h.t.Context(), id)
	must(h.t, err)
	return rec
}

var operator = bottle.Actor{UID: 1000, Name: "operator"}

// A faultyTrail fails, or dies after having written, when told to.
type faultyTrail struct {
	queue.Trail
	fail error
	die  bool
}

var errDisk = errors.New("no space left on device")

func (f *faultyTrail) RecordOnce(ctx context.Context, ev bottle.Event) (bool, error) {
	if f.fail != nil {
		return false, f.fail
	}
	ok, err := f.Trail.RecordOnce(ctx, ev)
	if f.die {
		panic("killed")
	}
	return ok, err
}

// killed runs do, which dies at the trail.
func (f *faultyTrail) killed(do func()) {
	f.die = true
	defer func() {
		f.die = false
		_ = recover()
	}()
	do()
}

func TestIntake(t *testing.T) {
	h := newHost(t)
	rec := h.file("a.example.com")
	if rec.Short != "r1" || rec.First != rec.Request.FirstDigest() || !rec.ExpiresAt.Equal(h.now.Add(bottle.PendingTTL)) {
		t.Errorf("record %+v", rec)
	}
	if tk, err := h.spool.Get(t.Context(), "r1"); err != nil || tk.Request.ID != rec.Request.ID {
		t.Errorf("the bundle knows it by r1: %+v, %v", tk, err)
	}
	if recs, _ := h.intake(); len(recs) != 0 {
		t.Errorf("taken in twice: %v", recs)
	}
	h.desk = h.newDesk() // another process
	if rec := h.file("b.example.com"); rec.Short != "r2" {
		t.Errorf("the next is %s", rec.Short)
	}
	h.wantEvents("request-seen r1", "request-seen r2")
}

func TestIntakeNeverReusesAShortID(t *testing.T) {
	h := newHost(t)
	h.file("a.example.com")
	must(t, os.Remove(h.dir.Metadata()))
	if rec := h.file("b.example.com"); rec.Short != "r2" {
		t.Errorf("without metadata: %s", rec.Short)
	}
	for _, f := range glob(t, h.dir.Path("records", "r2.*")) {
		must(t, os.Remove(f))
	}
	if recs, _ := h.intake(); len(recs) != 1 || recs[0].Short != "r3" {
		t.Errorf("without a record: %+v", recs)
	}
}

func glob(t testing.TB, pattern string) []string {
	t.Helper()
	got, err := filepath.Glob(pattern)
	must(t, err)
	return got
}

func TestIntakeTakesOverAttempts(t *testing.T) {
	h := newHost(t)
	h.file("a.example.com")
	for range 3 {
		submit(t, h.spool, ask("a.example.com"), "")
	}
	h.now = h.now.Add(2 * time.Second)
	h.intake()
	h.intake()
	if n := h.find("r1").Request.Attempts; n != 4 {
		t.Errorf("attempts %d", n)
	}
	h.wantEvents("request-seen r1", "request-joined r1")
}

func TestCancelReachesTheHost(t *testing.T) {
	h := newHost(t)
	h.file("a.example.com")
	h.file("b.example.com")
	if _, err := h.spool.Cancel(t.Context(), "r2"); err != nil {
		t.Fatal(err)
	}
	h.intake()
	if got := h.status("r2"); got != bottle.Cancelled {
		t.Errorf("r2 is %s", got)
	}
	if got := h.status("r1"); got != bottle.Pending {
		t.Errorf("r1 is %s", got)
	}
	err := h.desk.Deny(t.Context(), h.find("r2"), operator, "no")
	if !errors.Is(err, bottle.ErrState) {
		t.Errorf("deny a cancelled request: %v", err)
	}
}

func TestDeny(t *testing.T) {
	h := newHost(t)
	rec := h.file("a.example.com")
	must(t, h.desk.Deny(t.Context(), rec, operator, "use the mirror"))
	if rec.State.Status() != bottle.Denied {
		t.Errorf("record is %s", rec.State.Status())
	}
	tk, err := h.spool.Wait(t.Context(), "r1")
	if err != nil || tk.Answer.Note != "use the mirror" || tk.Status() != bottle.Denied {
		t.Errorf("the agent reads %+v, %v", tk.Answer, err)
	}
	err = h.desk.Deny(t.Context(), rec, operator, "")
	if !errors.Is(err, bottle.ErrState) || !strings.Contains(err.Error(), "by operator") {
		t.Errorf("twice: %v", err)
	}
	h.wantEvents("request-seen r1", "denied r1")
}

func TestExpirePending(t *testing.T) {
	h := newHost(t)
	h.file("a.example.com")
	h.now = h.now.Add(bottle.PendingTTL - time.Second)
	h.file("b.example.com")
	if out, err := h.desk.ExpirePending(t.Context()); err != nil || len(out) != 0 {
		t.Errorf("too early: %v, %v", out, err)
	}
	h.now = h.now.Add(time.Second)
	out, err := h.desk.ExpirePending(t.Context())
	if err != nil || len(out) != 1 || out[0].Short != "r1" {
		t.Errorf("%v, %v", out, err)
	}
	if a, b := h.status("r1"), h.status("r2"); a != bottle.Expired || b != bottle.Pending {
		t.Errorf("r1 is %s, r2 is %s", a, b)
	}
	h.wantEvents("request-seen r1", "request-seen r2", "expired r1")
}

// approve does what apply does first.
func approve(ctx context.Context, d *queue.Desk, rec *bottle.Record, by bottle.Actor, at time.Time) error {
	if err := rec.Transition(bottle.Approved, at); err != nil {
		return err
	}
	rec.Decision = &bottle.Decision{By: by, At: at, Digest: "sha256:1", Add: rec.Request.Ask.Add, Duration: bottle.Duration{Kind: bottle.Session}}
	return d.Save(ctx, rec)
}

func TestSave(t *testing.T) {
	h := newHost(t)
	rec := h.file("a.example.com")
	stale := h.find("r1")
	must(t, approve(t.Context(), h.desk, rec, operator, h.now))
	other := bottle.Actor{UID: 1001, Name: "other"}
	if err := approve(t.Context(), h.desk, stale, other, h.now); !errors.Is(err, bottle.ErrState) || !strings.Contains(err.Error(), "by operator") {
		t.Errorf("approved twice: %v", err)
	}
	// Another attempt that was taken over meanwhile is not lost.
	attempt := h.find("r1")
	attempt.Request.Attempts = 5
	must(t, h.desk.Save(t.Context(), attempt))
	must(t, rec.Transition(bottle.Applied, h.now))
	rec.Revision = map[string]bottle.Hash{bottle.RoutesFile: "sha256:2"}
	must(t, h.desk.Save(t.Context(), rec))
	if n := h.find("r1").Request.Attempts; n != 5 {
		t.Errorf("attempts %d", n)
	}
	if got, err := h.desk.Approved(t.Context()); err != nil || len(got) != 1 || got[0].Short != "r1" {
		t.Errorf("in force: %v, %v", got, err)
	}
	if tk, err := h.spool.Wait(t.Context(), "r1"); err != nil || tk.Answer.Revision[bottle.RoutesFile] != "sha256:2" {
		t.Errorf("the agent reads %+v, %v", tk.Answer, err)
	}
	if rec.Request.Ask.Reason = "changed"; !errors.Is(h.desk.Save(t.Context(), rec), bottle.ErrTampered) {
		t.Error("another request under the same ID was saved")
	}
}

// Two operators, each with a desk of its own and the bottle's lock: one wins.
func TestTwoOperatorsDecideAtOnce(t *testing.T) {
	h := newHost(t)
	for range 10 {
		rec := h.file("a.example.com")
		var wg sync.WaitGroup
		errs := make([]error, 2)
		for i := range errs {
			desk, mine, by := h.newDesk(), h.find(rec.Short), bottle.Actor{UID: i}
			wg.Go(func() {
				unlock, err := h.dir.Lock(t.Context())
				if err != nil {
					errs[i] = err
					return
				}
				defer unlock()
				if i == 0 {
					errs[i] = desk.Deny(t.Context(), mine, by, "no")
				} else {
					errs[i] = approve(t.Context(), desk, mine, by, h.now)
				}
			})
		}
		wg.Wait()
		won := h.find(rec.Short)
		switch {
		case errs[0] == nil && errors.Is(errs[1], bottle.ErrState) && won.State.Status() == bottle.Denied:
		case errs[1] == nil && errors.Is(errs[0], bottle.ErrState) && won.State.Status() == bottle.Approved:
		default:
			t.Fatalf("%s; errors %v", won.State.Status(), errs)
		}
		h.now = h.now.Add(3 * time.Second)
	}
}

func TestWithoutAuditNothingChanges(t *testing.T) {
	h := newHost(t)
	rec := h.file("a.example.com")
	submit(t, h.spool, ask("b.example.com"), "")
	_, err := h.spool.Cancel(t.Context(), "r1")
	must(t, err)
	h.trail.fail = errDisk
	h.now = h.now.Add(2 * bottle.PendingTTL)
	if err := h.desk.Deny(t.Context(), rec, operator, "no"); !errors.Is(err, errDisk) {
		t.Errorf("deny: %v", err)
	}
	if recs, _, err := h.desk.Intake(t.Context()); !errors.Is(err, errDisk) || len(recs) != 0 {
		t.Errorf("intake: %v, %v", recs, err)
	}
	if recs, err := h.desk.ExpirePending(t.Context()); !errors.Is(err, errDisk) || len(recs) != 0 {
		t.Errorf("expire: %v, %v", recs, err)
	}
	if got := h.find("r1").State.Status(); got != bottle.Pending {
		t.Errorf("r1 is %s", got)
	}
	if left := glob(t, h.dir.Path("records", "*.intent")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	h.trail.fail = nil
	if recs, _ := h.intake(); len(recs) != 1 {
		t.Errorf("afterwards: %v", recs)
	}
	if got := h.status("r1"); got != bottle.Cancelled {
		t.Errorf("r1 is %s", got)
	}
}

func TestKilledAfterTheAuditLine(t *testing.T) {
	h := newHost(t)
	submit(t, h.spool, ask("a.example.com"), "")
	h.trail.killed(func() { h.intake() })
	h.desk = h.newDesk()
	h.intake()
	rec := h.find("r1")
	h.trail.killed(func() { _ = h.desk.Deny(t.Context(), rec, operator, "no") })
	h.desk = h.newDesk()
	// Whoever comes next finishes it first, and so is the second to decide.
	if err := approve(t.Context(), h.desk, rec, operator, h.now); !errors.Is(err, bottle.ErrState) {
		t.Errorf("approve: %v", err)
	}
	if got := h.status("r1"); got != bottle.Denied {
		t.Errorf("r1 is %s", got)
	}
	h.wantEvents("request-seen r1", "denied r1")
}

func TestKilledBeforeTheAnswer(t *testing.T) {
	for name, damage := range map[string]func(decision string, before []byte) error{
		"old":       func(decision string, before []byte) error { return os.WriteFile(decision, before, 0o600) },
		"missing":   func(decision string, _ []byte) error { return os.Remove(decision) },
		"truncated": func(decision string, _ []byte) error { return os.Truncate(decision, 10) },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			rec := h.file("a.example.com")
			decision := filepath.Join(h.dir.Decisions(), rec.Request.ID+".json")
			before, err := os.ReadFile(decision)
			must(t, err)
			must(t, h.desk.Deny(t.Context(), rec, operator, "no"))
			must(t, damage(decision, before))
			h.desk = h.newDesk()
			h.intake()
			var a bottle.Answer
			must(t, bottle.ReadJSON(decision, 0, &a))
			if a.Status != bottle.Denied {
				t.Errorf("answer %+v", a)
			}
		})
	}
}

// What a hijacked bundle may do to the file of a request that the host has seen.
func TestTampering(t *testing.T) {
	rewrite := func(edit func(*bottle.Request)) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			var r bottle.Request
			must(t, bottle.ReadJSON(path, 0, &r))
			edit(&r)
			must(t, bottle.WriteJSON(path, r))
		}
	}
	replace := func(put func(path string) error) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			must(t, os.Remove(path))
			must(t, put(path))
		}
	}
	for name, tamper := range map[string]func(t *testing.T, path string){
		"host":       rewrite(func(r *bottle.Request) { r.Ask.Add[0].Host = "evil.test" }),
		"reason":     rewrite(func(r *bottle.Request) { r.Ask.Reason = "trust me" }),
		"time":       rewrite(func(r *bottle.Request) { r.CreatedAt = r.CreatedAt.Add(time.Hour) }),
		"id":         rewrite(func(r *bottle.Request) { r.ID = "x" }),
		"credential": rewrite(func(r *bottle.Request) { r.Ask.Credential = "gold" }),
		"symlink":    replace(func(p string) error { return os.Symlink("/etc/passwd", p) }),
		"fifo":       replace(func(p string) error { return unix.Mkfifo(p, 0o600) }),
		"directory":  replace(func(p string) error { return os.Mkdir(p, 0o700) }),
		"huge":       replace(func(p string) error { return os.WriteFile(p, make([]byte, 1<<20), 0o600) }),
		"truncated":  replace(func(p string) error { return os.WriteFile(p, []byte("{"), 0o600) }),
		"newer":      replace(func(p string) error { return os.WriteFile(p, []byte(`{"schema":2}`), 0o600) }),
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			rec := h.file("a.example.com")
			path := filepath.Join(h.dir.Requests(), rec.Request.ID+".json")
			original, err := os.ReadFile(path)
			must(t, err)
			tamper(t, path)

			// The approval itself notices, if no intake came in between.
			err = approve(t.Context(), h.desk, h.find("r1"), operator, h.now)
			if !errors.Is(err, bottle.ErrTampered) {
				t.Errorf("approve: %v", err)
			}
			_, problems := h.intake()
			if len(problems) != 1 || problems[0].Short != "r1" || !errors.Is(problems[0], bottle.ErrTampered) {
				t.Errorf("problems %v", problems)
			}
			// Putting it back does not help.
			must(t, os.RemoveAll(path))
			must(t, os.WriteFile(path, original, 0o600))
			h.desk = h.newDesk()
			h.intake()
			if err := approve(t.Context(), h.desk, h.find("r1"), operator, h.now); !errors.Is(err, bottle.ErrTampered) {
				t.Errorf("approve after it was put back: %v", err)
			}
			if got := h.find("r1"); got.Request.Ask.Add[0].Host != "a.example.com" || got.State.Status() != bottle.Pending {
				t.Errorf("record %+v", got)
			}
			must(t, h.desk.Deny(t.Context(), h.find("r1"), operator, "no"))
			if _, problems := h.intake(); len(problems) != 0 {
				t.Errorf("problems once denied: %v", problems)
			}
			h.wantEvents("request-seen r1", "tampered r1", "denied r1")
		})
	}
}

// A file that can't be read is not approved, but what came of an approval is written down whatever became of the file:
// here it can't even be told what is wrong with it (ENOTDIR).
func TestUnreadableRequestBarsNothingButItsApproval(t *testing.T) {
	h := newHost(t)
	h.file("a.example.com")
	must(t, os.RemoveAll(h.dir.Requests()))
	must(t, os.WriteFile(h.dir.Requests(), nil, 0o600))
	if err := approve(t.Context(), h.desk, h.find("r1"), operator, h.now); !errors.Is(err, bottle.ErrTampered) {
		t.Errorf("approve: %v", err)
	}
	rec := h.find("r1")
	rec.Decision = &bottle.Decision{By: operator, At: h.now, Digest: "sha256:1"}
	must(t, rec.Transition(bottle.Approved, h.now))
	must(t, rec.Transition(bottle.Failed, h.now))
	must(t, h.desk.Save(t.Context(), rec))
	if s := h.find("r1").State.Status(); s != bottle.Failed {
		t.Errorf("it is %s", s)
	}
	recs, err := h.desk.Granted(t.Context())
	if err != nil || len(recs) != 1 {
		t.Errorf("granted: %v %v", recs, err)
	}
}
