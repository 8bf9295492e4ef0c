package queue_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bottle/bottle"
	"bottle/bottle/queue"
)

func newDir(t testing.TB) *bottle.Dir {
	t.Helper()
	d, err := bottle.NewDir(filepath.Join(t.TempDir(), "b"))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Create(); err != nil {
		t.Fatal(err)
	}
	return d
}

func newSpool(t testing.TB, d *bottle.Dir, edit ...func(*queue.SpoolConfig)) *queue.Spool {
	t.Helper()
	cfg := queue.SpoolConfig{Requests: d.Requests(), Cancels: d.Cancels(), Decisions: d.Decisions()}
	for _, e := range edit {
		e(&cfg)
	}
	s, err := queue.NewSpool(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func ask(host string) bottle.Ask {
	return bottle.Ask{Add: []bottle.Entry{{Host: bottle.Host(host)}}, Reason: "to build"}
}

func submit(t testing.TB, s *queue.Spool, a bottle.Ask, key string) bottle.Ticket {
	t.Helper()
	tk, err := s.Submit(t.Context(), a, key)
	if err != nil {
		t.Fatal(err)
	}
	return tk
}

// answer plays the host for tests of the spool alone.
func answer(t testing.TB, d *bottle.Dir, id string, st bottle.Status) {
	t.Helper()
	a := bottle.Answer{Schema: bottle.Schema, ID: id, Short: "r1", Status: st}
	if err := bottle.WriteJSON(filepath.Join(d.Decisions(), id+".json"), a); err != nil {
		t.Fatal(err)
	}
}

func TestSubmitIsOnDiskAndSurvivesRestart(t *testing.T) {
	d := newDir(t)
	s := newSpool(t, d)
	tk := submit(t, s, ask("API.Example.com."), "k1")
	var onDisk bottle.Request
	if err := bottle.ReadJSON(filepath.Join(d.Requests(), tk.Request.ID+".json"), bottle.MaxRequestBytes, &onDisk); err != nil {
		t.Fatal(err)
	}
	if h := onDisk.Ask.Add[0].Host; h != "api.example.com" {
		t.Errorf("host on disk is %q", h)
	}
	again := newSpool(t, d)
	if got := submit(t, again, ask("api.example.com"), "k1"); got.Request.ID != tk.Request.ID || got.Joined || got.Request.Attempts != 1 {
		t.Errorf("the same key after a restart: %+v", got)
	}
	if got := submit(t, again, ask("api.example.com"), "k2"); got.Request.ID != tk.Request.ID || !got.Joined || got.Request.Attempts != 2 {
		t.Errorf("the same ask after a restart: %+v", got)
	}
}

func TestSubmitJoinsOnlyWhatIsPending(t *testing.T) {
	d := newDir(t)
	s := newSpool(t, d)
	first := submit(t, s, ask("example.com"), "")
	second := ask("example.com")
	second.Reason = "another reason"
	if got := submit(t, s, second, ""); !got.Joined || got.Request.ID != first.Request.ID || got.Request.Ask.Reason != "to build" {
		t.Errorf("joined: %+v", got)
	}
	answer(t, d, first.Request.ID, bottle.Denied)
	third := submit(t, s, ask("example.com"), "")
	if third.Joined || third.Request.ID == first.Request.ID {
		t.Errorf("joined a denied request: %+v", third)
	}
	if _, err := s.Cancel(t.Context(), third.Request.ID); err != nil {
		t.Fatal(err)
	}
	if got := submit(t, s, ask("example.com"), ""); got.Joined {
		t.Errorf("joined a request that is being cancelled: %+v", got)
	}
}

func TestSubmitRemembersTheLastKeys(t *testing.T) {
	d := newDir(t)
	s := newSpool(t, d)
	for i := range 10 {
		submit(t, s, ask("example.com"), fmt.Sprint("k", i))
	}
	if got := submit(t, s, ask("example.com"), "k9"); got.Request.Attempts != 10 || len(got.Request.Keys) != 8 {
		t.Errorf("attempts %d, keys %q", got.Request.Attempts, got.Request.Keys)
	}
}

func TestSubmitLimits(t *testing.T) {
	long := strings.Repeat("x", bottle.MaxReason+1)
	many := bottle.Ask{Reason: "r"}
	for i := range bottle.MaxEntries + 1 {
		many.Add = append(many.Add, bottle.Entry{Host: bottle.Host(fmt.Sprintf("h%d.example.com", i))})
	}
	big := bottle.Ask{Reason: "r"}
	for i := range bottle.MaxEntries {
		e := bottle.Entry{Host: bottle.Host(fmt.Sprintf("h%d.example.com", i))}
		for j := range 2 {
			e.Matches = append(e.Matches, bottle.Match{Path: &bottle.PathMatch{Type: bottle.Exact, Value: fmt.Sprintf("/%d%s", j, strings.Repeat("a", 1500))}})
		}
		big.Add = append(big.Add, e)
	}
	for name, tt := range map[string]struct {
		ask  bottle.Ask
		key  string
		want error
		text string
	}{
		"long reason": {ask: bottle.Ask{Add: ask("example.com").Add, Reason: long}, want: bottle.ErrLimit, text: "4000"},
		"51 entries":  {ask: many, want: bottle.ErrLimit, text: "at most 50"},
		"64 KiB":      {ask: big, want: bottle.ErrLimit, text: "ask for less"},
		"long key":    {ask: ask("example.com"), key: strings.Repeat("k", 129), want: bottle.ErrInvalid, text: "at most 128"},
		"no reason":   {ask: bottle.Ask{Add: ask("example.com").Add}, want: bottle.ErrInvalid, text: "reason"},
		"IP literal":  {ask: ask("127.1"), want: bottle.ErrInvalid, text: "host"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDir(t)
			_, err := newSpool(t, d).Submit(t.Context(), tt.ask, tt.key)
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("error %v", err)
			}
			if left, _ := os.ReadDir(d.Requests()); len(left) != 0 {
				t.Errorf("left in the queue: %v", left)
			}
		})
	}
}

func TestSubmitFullQueue(t *testing.T) {
	d := newDir(t)
	s := newSpool(t, d, func(c *queue.SpoolConfig) { c.MaxPending = 2 })
	one := submit(t, s, ask("a.example.com"), "")
	submit(t, s, ask("b.example.com"), "")
	_, err := s.Submit(t.Context(), ask("c.example.com"), "")
	if !errors.Is(err, bottle.ErrLimit) || !strings.Contains(err.Error(), "at most 2") {
		t.Fatalf("error %v", err)
	}
	answer(t, d, one.Request.ID, bottle.Denied)
	submit(t, s, ask("c.example.com"), "")
}

func TestSubmitRateSurvivesRestart(t *testing.T) {
	d := newDir(t)
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	cfg := func(c *queue.SpoolConfig) { c.PerMinute, c.Now = 3, func() time.Time { return now } }
	s := newSpool(t, d, cfg)
	for i := range 3 {
		submit(t, s, ask(fmt.Sprintf("h%d.example.com", i)), "")
		now = now.Add(time.Second)
	}
	for _, s := range []*queue.Spool{s, newSpool(t, d, cfg)} {
		_, err := s.Submit(t.Context(), ask("x.example.com"), "")
		if !errors.Is(err, bottle.ErrLimit) || !strings.Contains(err.Error(), "try again in 57s") {
			t.Fatalf("error %v", err)
		}
	}
	now = now.Add(57*time.Second + time.Millisecond)
	submit(t, s, ask("x.example.com"), "")
}

func TestSpoolForgetsTheOldest(t *testing.T) {
	d := newDir(t)
	s := newSpool(t, d, func(c *queue.SpoolConfig) { c.MaxKept = 2 })
	var ids []string
	for i, st := range []bottle.Status{bottle.Applied, bottle.Cancelled, bottle.Denied, bottle.Pending, bottle.Pending} {
		tk := submit(t, s, ask(fmt.Sprintf("h%d.example.com", i)), fmt.Sprint("k", i))
		answer(t, d, tk.Request.ID, st)
		ids = append(ids, tk.Request.ID)
	}
	for _, s := range []*queue.Spool{s, newSpool(t, d)} {
		list, err := s.List(t.Context())
		if err != nil || len(list) != 3 || list[2].Request.ID != ids[0] || list[0].Request.ID != ids[4] {
			t.Errorf("kept %+v, %v", list, err)
		}
	}
	if left := glob(t, filepath.Join(d.Requests(), "*")); len(left) != 3 {
		t.Errorf("on disk %v", left)
	}
}

func TestGetByEitherID(t *testing.T) {
	d := newDir(t)
	s := newSpool(t, d)
	tk := submit(t, s, ask("example.com"), "")
	if _, err := s.Get(t.Context(), "r1"); !errors.Is(err, bottle.ErrNotFound) {
		t.Errorf("before it has one: %v", err)
	}
	answer(t, d, tk.Request.ID, bottle.Pending)
	for _, id := range []string{"r1", "R1", tk.Request.ID} {
		got, err := s.Get(t.Context(), id)
		if err != nil || got.Request.ID != tk.Request.ID || got.Answer == nil {
			t.Errorf("%s: %+v, %v", id, got, err)
		}
	}
	for _, id := range []string{"", "r2", "../../etc/passwd", strings.Repeat("x", 1000)} {
		if _, err := s.Get(t.Context(), id); !errors.Is(err, bottle.ErrNotFound) || len(err.Error()) > 200 {
			t.Errorf("%q: %v", id, err)
		}
	}
}

func TestListNewestFirst(t *testing.T) {
	s := newSpool(t, newDir(t))
	a, b := submit(t, s, ask("a.example.com"), ""), submit(t, s, ask("b.example.com"), "")
	got, err := s.List(t.Context())
	if err != nil || len(got) != 2 || got[0].Request.ID != b.Request.ID || got[1].Request.ID != a.Request.ID {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestCancel(t *testing.T) {
	d := newDir(t)
	s := newSpool(t, d)
	tk := submit(t, s, ask("example.com"), "")
	for range 2 {
		if got, err := s.Cancel(t.Context(), tk.Request.ID); err != nil || got.Status() != bottle.Pending {
			t.Errorf("%+v, %v", got, err)
		}
	}
	answer(t, d, tk.Request.ID, bottle.Applied)
	if _, err := s.Cancel(t.Context(), "r1"); !errors.Is(err, bottle.ErrState) {
		t.Errorf("cancel what is applied: %v", err)
	}
}

// Whatever lies in the directories, the spool comes up and says what it can.
func TestForeignFiles(t *testing.T) {
	const id = "019470ee-a7f0-7000-8000-000000000000"
	plant := map[string]func(t *testing.T, path string){
		"symlink":   func(t *testing.T, path string) { must(t, os.Symlink("/etc/passwd", path)) },
		"fifo":      func(t *testing.T, path string) { must(t, unix.Mkfifo(path, 0o600)) },
		"directory": func(t *testing.T, path string) { must(t, os.Mkdir(path, 0o700)) },
		"empty":     func(t *testing.T, path string) { must(t, os.WriteFile(path, nil, 0o600)) },
		"huge":      func(t *testing.T, path string) { must(t, os.WriteFile(path, make([]byte, 5<<20), 0o600)) },
		"truncated": func(t *testing.T, path string) { must(t, os.WriteFile(path, []byte(`{"schema":1,"id":"019`), 0o600)) },
		"newer":     func(t *testing.T, path string) { must(t, os.WriteFile(path, []byte(`{"schema":2}`), 0o600)) },
		"deep": func(t *testing.T, path string) {
			must(t, os.WriteFile(path, []byte(strings.Repeat("[", 50_000)), 0o600))
		},
		"other id": func(t *testing.T, path string) { must(t, bottle.WriteJSON(path, bottle.Request{Schema: 1, ID: "x"})) },
	}
	for name, put := range plant {
		t.Run(name, func(t *testing.T) {
			d := newDir(t)
			s := newSpool(t, d)
			tk := submit(t, s, ask("example.com"), "")
			put(t, filepath.Join(d.Requests(), id+".json"))
			put(t, filepath.Join(d.Requests(), "README"))
			put(t, filepath.Join(d.Cancels(), id+".json"))
			put(t, filepath.Join(d.Decisions(), tk.Request.ID+".json"))
			s = newSpool(t, d)
			list, err := s.List(t.Context())
			if err != nil || len(list) != 1 || list[0].Status() != bottle.Pending {
				t.Errorf("%+v, %v", list, err)
			}
		})
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestWait(t *testing.T) {
	d := newDir(t)
	s := newSpool(t, d)
	tk := submit(t, s, ask("example.com"), "")
	type result struct {
		t   bottle.Ticket
		err error
	}
	const waiters = 200
	got := make(chan result, waiters)
	for range waiters {
		go func() {
			t, err := s.Wait(t.Context(), tk.Request.ID)
			got <- result{t, err}
		}()
	}
	answer(t, d, tk.Request.ID, bottle.Pending)
	answer(t, d, tk.Request.ID, bottle.Approved)
	answer(t, d, tk.Request.ID, bottle.Applied)
	for range waiters {
		if r := <-got; r.err != nil || r.t.Status() != bottle.Applied {
			t.Fatalf("%+v, %v", r.t, r.err)
		}
	}
}

func TestWaitEnds(t *testing.T) {
	d := newDir(t)
	s := newSpool(t, d)
	tk := submit(t, s, ask("example.com"), "")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if got, err := s.Wait(ctx, tk.Request.ID); !errors.Is(err, context.DeadlineExceeded) || got.Status() != bottle.Pending {
		t.Errorf("with a deadline: %+v, %v", got, err)
	}
	if _, err := s.Wait(t.Context(), "r9"); !errors.Is(err, bottle.ErrNotFound) {
		t.Errorf("of nothing: %v", err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := s.Wait(t.Context(), tk.Request.ID); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("on close: %v", err)
		}
	})
	must(t, s.Close())
	wg.Wait()
	must(t, s.Close())
}

func TestNewSpoolRefuses(t *testing.T) {
	full := queue.SpoolConfig{Requests: "a", Cancels: "b", Decisions: "c"}
	for field, edit := range map[string]func(*queue.SpoolConfig){
		"Requests":  func(c *queue.SpoolConfig) { c.Requests = "" },
		"Cancels":   func(c *queue.SpoolConfig) { c.Cancels = "" },
		"Decisions": func(c *queue.SpoolConfig) { c.Decisions = "" },
	} {
		cfg := full
		edit(&cfg)
		if _, err := queue.NewSpool(cfg); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("without %s: %v", field, err)
		}
	}
}
