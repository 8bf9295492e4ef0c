package keep_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"bottle/bottle"
	"bottle/bottle/audit"
	"bottle/bottle/keep"
	"bottle/bottle/queue"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A house is a bottle whose queue, records and audit are real; apply and the bundle note
// what they are called for.
type house struct {
	t     testing.TB
	dir   *bottle.Dir
	trail queue.AuditTrail
	desk  *queue.Desk
	spool *queue.Spool
	cfg   keep.Config
	log   *syncBuffer

	recovered, expired, ensured chan struct{}
	handed                      chan map[string]string
}

// syncBuffer is a log that is read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

type fakeApplier struct {
	recover func(context.Context) ([]string, error)
	expire  func(context.Context) (int, error)
}

func (f fakeApplier) Recover(ctx context.Context) ([]string, error) { return f.recover(ctx) }
func (f fakeApplier) Expire(ctx context.Context) (int, error)       { return f.expire(ctx) }

type (
	ensureFunc func(context.Context) (bool, error)
	handFunc   func(context.Context, map[string]string) error
)

func (f ensureFunc) Ensure(ctx context.Context) (bool, error)               { return f(ctx) }
func (f handFunc) Hand(ctx context.Context, tokens map[string]string) error { return f(ctx, tokens) }

func newHouse(t testing.TB) *house {
	t.Helper()
	dir, err := bottle.NewDir(filepath.Join(t.TempDir(), "b"))
	must(t, err)
	must(t, dir.Create())
	log, err := audit.Open(audit.Config{Path: dir.Audit(), HeadPath: dir.AuditHead()})
	must(t, err)
	h := &house{
		t: t, dir: dir, trail: queue.AuditTrail{Log: log}, log: &syncBuffer{},
		recovered: make(chan struct{}, 100), expired: make(chan struct{}, 100), ensured: make(chan struct{}, 100),
		handed: make(chan map[string]string, 100),
	}
	h.desk, err = queue.NewDesk(queue.DeskConfig{Dir: dir, Trail: h.trail})
	must(t, err)
	h.spool, err = queue.NewSpool(queue.SpoolConfig{Requests: dir.Requests(), Cancels: dir.Cancels(), Decisions: dir.Decisions()})
	must(t, err)
	t.Cleanup(func() { _ = h.spool.Close() })
	h.cfg = keep.Config{
		Dir: dir, Desk: h.desk, Trail: h.trail, Every: 5 * time.Millisecond,
		Applier: fakeApplier{
			recover: func(context.Context) ([]string, error) { note(h.recovered); return nil, nil },
			expire:  func(context.Context) (int, error) { note(h.expired); return 1, nil },
		},
		Bundle: ensureFunc(func(context.Context) (bool, error) { note(h.ensured); return false, nil }),
		Keys: handFunc(func(_ context.Context, tokens map[string]string) error {
			h.handed <- tokens
			return nil
		}),
		Logger: slog.New(slog.NewTextHandler(h.log, nil)),
	}
	return h
}

func note(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// keep runs a keeper until the test ends.
func (h *house) keep() (stop func()) {
	h.t.Helper()
	k, err := keep.New(h.cfg)
	must(h.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			h.t.Errorf("keeper: %v", err)
		}
	})
	h.t.Cleanup(stop)
	return stop
}

func wait[T any](t testing.TB, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(20 * time.Second):
		t.Fatalf("%s: not in 20 s", what)
		panic("unreachable")
	}
}

// until waits for something that only shows on disk.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	end := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("%s: not in 20 s", what)
		}
	}
}

func (h *house) submit(host string) bottle.Ticket {
	h.t.Helper()
	tk, err := h.spool.Submit(h.t.Context(), bottle.Ask{Add: []bottle.Entry{{Host: bottle.Host(host)}}, Reason: "r"}, "")
	must(h.t, err)
	return tk
}

func (h *house) has(id string, want bottle.Status) func() bool {
	return func() bool {
		tk, err := h.spool.Get(h.t.Context(), id)
		return err == nil && tk.Answer != nil && tk.Status() == want
	}
}

func TestKeeperTakesInAndCancels(t *testing.T) {
	h := newHouse(t)
	early := h.submit("a.example.com") // before the keeper is there
	h.keep()
	until(t, "the early one", h.has(early.Request.ID, bottle.Pending))
	late := h.submit("b.example.com")
	until(t, "the late one", h.has(late.Request.ID, bottle.Pending))
	_, err := h.spool.Cancel(t.Context(), "r2")
	must(t, err)
	if tk, err := h.spool.Wait(t.Context(), "r2"); err != nil || tk.Status() != bottle.Cancelled {
		t.Errorf("%s, %v", tk.Status(), err)
	}
	wait(t, "recovery", h.recovered)
	wait(t, "the bundle", h.ensured)
	m, err := h.dir.LoadMetadata()
	if err != nil || m.Keeper.PID != os.Getpid() || !m.Keeper.Alive() {
		t.Errorf("metadata %+v, %v", m, err)
	}
}

func TestKeeperIsAlone(t *testing.T) {
	h := newHouse(t)
	h.keep()
	wait(t, "the first", h.ensured)
	k, err := keep.New(h.cfg)
	must(t, err)
	if err := k.Run(t.Context()); !errors.Is(err, bottle.ErrLocked) || !strings.Contains(err.Error(), "has a keeper already") {
		t.Errorf("the second: %v", err)
	}
}

func TestKeeperExpiresPending(t *testing.T) {
	h := newHouse(t)
	var err error
	h.cfg.Desk, err = queue.NewDesk(queue.DeskConfig{Dir: h.dir, Trail: h.trail, PendingTTL: time.Nanosecond})
	must(t, err)
	tk := h.submit("a.example.com")
	h.keep()
	until(t, "expiry", h.has(tk.Request.ID, bottle.Expired))
}

// grant puts a request in force.
func (h *house) grant(d bottle.Duration, ends time.Time) {
	h.t.Helper()
	tk := h.submit("a.example.com")
	_, _, err := h.desk.Intake(h.t.Context())
	must(h.t, err)
	rec, err := h.desk.Find(h.t.Context(), tk.Request.ID)
	must(h.t, err)
	now := time.Now()
	must(h.t, rec.Transition(bottle.Approved, now))
	rec.Decision = &bottle.Decision{At: now, Add: rec.Request.Ask.Add, Duration: d}
	must(h.t, h.desk.Save(h.t.Context(), rec))
	must(h.t, rec.Transition(bottle.Applied, now))
	if !ends.IsZero() {
		rec.GrantEnds = &ends
	}
	must(h.t, h.desk.Save(h.t.Context(), rec))
}

func TestKeeperEndsGrants(t *testing.T) {
	t.Run("once, when spent", func(t *testing.T) {
		h := newHouse(t)
		h.grant(bottle.Duration{Kind: bottle.Once}, time.Time{})
		h.keep()
		wait(t, "at the start", h.expired)
		must(t, bottle.WriteJSON(h.dir.SpentFile(), bottle.Spent{Schema: 1, Spent: map[string]time.Time{"r1": time.Now()}}))
		wait(t, "when it is spent", h.expired)
	})
	t.Run("ttl, on time", func(t *testing.T) {
		h := newHouse(t)
		ends := time.Now().Add(1500 * time.Millisecond)
		h.grant(bottle.Duration{Kind: bottle.TTL, TTL: time.Second}, ends)
		h.keep()
		wait(t, "at the start", h.expired)
		wait(t, "at its end", h.expired)
		if late := time.Since(ends); late < 0 || late > grantsLimit {
			t.Errorf("%s after its end", late)
		}
	})
	t.Run("session, never", func(t *testing.T) {
		h := newHouse(t)
		h.grant(bottle.Duration{Kind: bottle.Session}, time.Time{})
		stop := h.keep()
		for range 3 {
			wait(t, "some rounds", h.ensured)
		}
		stop()
		if len(h.expired) > 0 {
			t.Error("apply was asked to end a session grant")
		}
	})
}

// grantsLimit is what DESIGN gives the keeper.
const grantsLimit = 10 * time.Second

func TestKeeperHandsCredentials(t *testing.T) {
	h := newHouse(t)
	h.cfg.Credentials = map[string]bottle.Credential{
		"gold": {Header: "Authorization", TokenEnv: "GOLD_TOKEN", Hosts: []bottle.Host{"example.com"}},
		"tin":  {Header: "Authorization", TokenEnv: "TIN_TOKEN", Hosts: []bottle.Host{"example.com"}},
	}
	h.cfg.Env = func(name string) (string, bool) { return "s3cret", name == "GOLD_TOKEN" }
	fails := 1
	inner := h.cfg.Keys
	h.cfg.Keys = handFunc(func(ctx context.Context, tokens map[string]string) error {
		if fails > 0 {
			fails--
			return errors.New("connection refused")
		}
		return inner.Hand(ctx, tokens)
	})
	h.keep()
	status := func(instance string, needs ...string) {
		t.Helper()
		must(t, bottle.WriteStatus(h.dir.DaemonStatus(bottle.DaemonEgress), bottle.DaemonStatus{Schema: 1, Instance: instance, Needs: needs}))
	}
	for _, instance := range []string{"first", "second"} {
		status(instance, "gold", "tin")
		if got := wait(t, "handing to the "+instance, h.handed); len(got) != 1 || got["gold"] != "s3cret" {
			t.Errorf("handed %v", got)
		}
	}
	status("second", "gold") // it lost them
	wait(t, "handing again", h.handed)
	status("second", "tin") // which nobody has
	until(t, "the problem", func() bool {
		st, err := keep.ReadStatus(h.dir)
		return err == nil && len(st.Problems) == 1 && strings.Contains(st.Problems[0], "TIN_TOKEN is not set")
	})
	trail, err := os.ReadFile(h.dir.Audit())
	must(t, err)
	if n := strings.Count(string(trail), "credential-handed"); n != 2 {
		t.Errorf("audited %d times", n)
	}
	if all := h.log.String() + string(trail); strings.Contains(all, "s3cret") {
		t.Error("the token is in a log")
	}
}

// Any daemon can forge egress' status. What it makes the keeper do, and audit, is bounded.
func TestForgedEgressStatusFloodsNothing(t *testing.T) {
	for name, tt := range map[string]struct {
		hand error
		most int // audit lines
	}{
		"handed to the real one": {nil, 6},
		"nobody listens":         {errors.New("connection refused"), 0},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			h.cfg.Credentials = map[string]bottle.Credential{"gold": {Header: "Authorization", TokenEnv: "GOLD_TOKEN", Hosts: []bottle.Host{"example.com"}}}
			h.cfg.Env = func(string) (string, bool) { return "s3cret", true }
			tried := make(chan struct{}, 1000)
			h.cfg.Keys = handFunc(func(context.Context, map[string]string) error { note(tried); return tt.hand })
			stop := h.keep()
			end := time.Now().Add(2500 * time.Millisecond)
			tick := time.NewTicker(5 * time.Millisecond)
			defer tick.Stop()
			for i := 0; time.Now().Before(end); i++ {
				must(t, bottle.WriteStatus(h.dir.DaemonStatus(bottle.DaemonEgress), bottle.DaemonStatus{Schema: 1, Instance: fmt.Sprint(i), Needs: []string{"gold"}}))
				<-tick.C
			}
			stop()
			trail, err := os.ReadFile(h.dir.Audit())
			must(t, err)
			if n := strings.Count(string(trail), "credential-handed"); n > tt.most || n < min(tt.most, 1) {
				t.Errorf("audited %d times", n)
			}
			if n := len(tried); n > 10 || n == 0 {
				t.Errorf("tried %d times", n)
			}
		})
	}
}

// A handover that can't be audited is audited before the next.
func TestHandoverIsAuditedLater(t *testing.T) {
	h := newHouse(t)
	h.cfg.Credentials = map[string]bottle.Credential{"gold": {Header: "Authorization", TokenEnv: "GOLD_TOKEN", Hosts: []bottle.Host{"example.com"}}}
	h.cfg.Env = func(string) (string, bool) { return "s3cret", true }
	h.cfg.Trail = &forgetful{Trail: h.trail, left: 2}
	h.keep()
	must(t, bottle.WriteStatus(h.dir.DaemonStatus(bottle.DaemonEgress), bottle.DaemonStatus{Schema: 1, Instance: "first", Needs: []string{}}))
	wait(t, "handing", h.handed)
	until(t, "the audit line", func() bool {
		trail, err := os.ReadFile(h.dir.Audit())
		return err == nil && strings.Contains(string(trail), "credential-handed")
	})
	if len(h.handed) > 0 {
		t.Error("handed again for that")
	}
}

type forgetful struct {
	keep.Trail
	left int
}

func (f *forgetful) RecordOnce(ctx context.Context, ev bottle.Event) (bool, error) {
	if f.left--; f.left >= 0 {
		return false, errors.New("no space left on device")
	}
	return f.Trail.RecordOnce(ctx, ev)
}

// Nothing that a step does ends the keeper, or keeps the other steps from their work.
func TestKeeperSurvives(t *testing.T) {
	for name, fault := range map[string]func() error{
		"error": func() error { return errors.New("boom") },
		"panic": func() error { panic("boom") },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			left := 2
			h.cfg.Applier = fakeApplier{
				expire: func(context.Context) (int, error) { return 0, nil },
				recover: func(context.Context) ([]string, error) {
					if left--; left >= 0 {
						return nil, fault()
					}
					note(h.recovered)
					return nil, nil
				},
			}
			tk := h.submit("a.example.com")
			h.keep()
			until(t, "the queue goes on", h.has(tk.Request.ID, bottle.Pending))
			until(t, "the problem is told", func() bool {
				st, err := keep.ReadStatus(h.dir)
				return err == nil && len(st.Problems) == 1 && strings.Contains(st.Problems[0], "boom") && !strings.Contains(st.Problems[0], "\n")
			})
			wait(t, "recovery", h.recovered)
			until(t, "the problem is gone", func() bool {
				st, err := keep.ReadStatus(h.dir)
				return err == nil && len(st.Problems) == 0
			})
		})
	}
}

// While an operator's command holds the lock the keeper waits, and says nothing of it.
func TestKeeperWaitsForTheLock(t *testing.T) {
	h := newHouse(t)
	h.keep()
	wait(t, "the keeper", h.ensured)
	unlock, err := h.dir.Lock(t.Context())
	must(t, err)
	tk := h.submit("a.example.com")
	for len(h.ensured) > 0 {
		<-h.ensured
	}
	wait(t, "the other steps go on", h.ensured)
	if tk, err := h.spool.Get(t.Context(), tk.Request.ID); err != nil || tk.Answer != nil {
		t.Errorf("taken in under another's lock: %+v, %v", tk.Answer, err)
	}
	unlock()
	until(t, "first sight", h.has(tk.Request.ID, bottle.Pending))
	if log := h.log.String(); strings.Contains(log, "failed") {
		t.Error(log)
	}
}

func TestKeeperRecoversForEachBundle(t *testing.T) {
	h := newHouse(t)
	h.keep()
	wait(t, "at the start", h.recovered)
	for pid := range 2 {
		must(t, bottle.WriteStatus(h.dir.InitStatus(), bottle.InitStatus{Schema: 1, PID: pid}))
		must(t, bottle.WriteStatus(h.dir.InitStatus(), bottle.InitStatus{Schema: 1, PID: pid, Ready: true}))
		wait(t, "when it is ready", h.recovered)
	}
	if len(h.recovered) > 0 {
		t.Error("recovered too often")
	}
}

func TestKeeperStartsTheBundleAgain(t *testing.T) {
	h := newHouse(t)
	running := make(chan bool, 100) // what Ensure finds; closed: always running
	for _, up := range []bool{false, true, false, false} {
		running <- up
	}
	close(running)
	starts := make(chan time.Time, 100)
	h.cfg.Bundle = ensureFunc(func(context.Context) (bool, error) {
		up, ok := <-running
		if up || !ok {
			return false, nil
		}
		starts <- time.Now()
		return true, nil
	})
	h.keep()
	wait(t, "the first start", starts)
	second := wait(t, "the second start", starts)
	if third := wait(t, "the third start", starts); third.Sub(second) < 250*time.Millisecond {
		t.Errorf("no pause: %s", third.Sub(second))
	}
}

func TestNewRefuses(t *testing.T) {
	for field, edit := range map[string]func(*keep.Config){
		"Dir":     func(c *keep.Config) { c.Dir = nil },
		"Desk":    func(c *keep.Config) { c.Desk = nil },
		"Applier": func(c *keep.Config) { c.Applier = nil },
		"Bundle":  func(c *keep.Config) { c.Bundle = nil },
		"Trail":   func(c *keep.Config) { c.Trail = nil },
		"Keys": func(c *keep.Config) {
			c.Keys, c.Credentials = nil, map[string]bottle.Credential{"gold": {}}
		},
	} {
		cfg := newHouse(t).cfg
		edit(&cfg)
		if _, err := keep.New(cfg); err == nil || !strings.Contains(err.Error(), field+" is required") {
			t.Errorf("without %s: %v", field, err)
		}
	}
}
