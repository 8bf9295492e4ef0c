package queue_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"bottle/bottle"
	"bottle/bottle/audit"
	"bottle/bottle/queue"
)

// forge writes a request as a hijacked bundle might.
func (h *host) forge(a bottle.Ask, edit ...func(*bottle.Request)) string {
	h.t.Helper()
	id, err := uuid.NewV7()
	must(h.t, err)
	r := bottle.Request{Schema: 1, ID: id.String(), Ask: a, CreatedAt: h.now, LastAt: h.now, Attempts: 1}
	for _, e := range edit {
		e(&r)
	}
	path := filepath.Join(h.dir.Requests(), id.String()+".json")
	must(h.t, bottle.WriteJSON(path, r))
	return path
}

func canonical(t testing.TB, host string) bottle.Ask {
	t.Helper()
	a, err := ask(host).Canonical()
	must(t, err)
	return a
}

// What is no request is refused, audited once, and a problem for as long as it is there;
// the requests beside it are taken in.
func TestIntakeRefuses(t *testing.T) {
	const id = "019470ee-a7f0-7000-8000-000000000000"
	file := func(name string, put func(path string) error) func(h *host) string {
		return func(h *host) string {
			path := filepath.Join(h.dir.Requests(), name)
			must(h.t, put(path))
			return path
		}
	}
	raw := func(s string) func(string) error {
		return func(p string) error { return os.WriteFile(p, []byte(s), 0o600) }
	}
	for name, plant := range map[string]func(h *host) string{
		"not canonical": func(h *host) string { return h.forge(ask("API.Example.com")) },
		"IP literal":    func(h *host) string { return h.forge(ask("0x7f.1")) },
		"public suffix": func(h *host) string { return h.forge(ask("*.com")) },
		"no entries":    func(h *host) string { return h.forge(bottle.Ask{Kind: "access", Reason: "r"}) },
		"other kind":    func(h *host) string { a := canonical(h.t, "a.test"); a.Kind = "push"; return h.forge(a) },
		"long reason": func(h *host) string {
			a := canonical(h.t, "a.test")
			a.Reason = strings.Repeat("x", 4001)
			return h.forge(a)
		},
		"other id": func(h *host) string { return h.forge(canonical(h.t, "a.test"), func(r *bottle.Request) { r.ID = id }) },
		"no attempts": func(h *host) string {
			return h.forge(canonical(h.t, "a.test"), func(r *bottle.Request) { r.Attempts = 0 })
		},
		"too many keys": func(h *host) string {
			return h.forge(canonical(h.t, "a.test"), func(r *bottle.Request) { r.Keys = make([]string, 9) })
		},
		"50 MB":          file(id+".json", func(p string) error { must(t, raw("")(p)); return os.Truncate(p, 50<<20) }),
		"deep JSON":      file(id+".json", raw(strings.Repeat(`{"schema":`, 6000))),
		"empty":          file(id+".json", raw("")),
		"binary":         file(id+".json", raw("\x00\x1b]0;title\x07")),
		"symlink":        file(id+".json", func(p string) error { return os.Symlink("/etc/passwd", p) }),
		"dangling":       file(id+".json", func(p string) error { return os.Symlink("/nowhere", p) }),
		"fifo":           file(id+".json", func(p string) error { return unix.Mkfifo(p, 0o600) }),
		"directory":      file(id+".json", func(p string) error { return os.Mkdir(p, 0o700) }),
		"foreign name":   file("x\n\x1b[2Jy", raw("{}")),
		"upper-case id":  file(strings.ToUpper(id)+".json", raw("{}")),
		"longest name":   file(strings.Repeat("n", 255), raw("{}")),
		"socket or node": file(id+".json", func(p string) error { return unix.Mknod(p, unix.S_IFSOCK|0o600, 0) }),
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			path := plant(h)
			submit(t, h.spool, ask("good.example.com"), "")
			for round := range 3 {
				recs, problems := h.intake()
				if round == 0 && (len(recs) != 1 || recs[0].Short != "r1") {
					t.Errorf("taken in: %v", recs)
				}
				if len(problems) != 1 || problems[0].File != "queue/requests/"+filepath.Base(path) {
					t.Errorf("problems %v", problems)
				}
				h.desk = h.newDesk()
			}
			if _, listed, err := h.desk.List(t.Context(), false); err != nil || len(listed) != 1 {
				t.Errorf("listed %v, %v", listed, err)
			}
			must(t, os.RemoveAll(path))
			if _, problems := h.intake(); len(problems) != 0 {
				t.Errorf("problems once it is gone: %v", problems)
			}
			got := h.events()
			slices.Sort(got)
			if !slices.Equal(got, []string{"request-refused", "request-seen r1"}) {
				t.Errorf("audited %q", got)
			}
		})
	}
}

// A request of a newer bundle may be understood after an upgrade of the host.
func TestIntakeOfANewerSchema(t *testing.T) {
	h := newHost(t)
	h.forge(canonical(t, "a.example.com"), func(r *bottle.Request) { r.Schema = 2 })
	_, problems := h.intake()
	if len(problems) != 1 || !errors.Is(problems[0], bottle.ErrNewer) {
		t.Errorf("problems %v", problems)
	}
	h.wantEvents()
}

func TestIntakeTellsARefusedRequest(t *testing.T) {
	h := newHost(t)
	path := h.forge(ask("API.Example.com"))
	h.intake()
	var a bottle.Answer
	must(t, bottle.ReadJSON(filepath.Join(h.dir.Decisions(), filepath.Base(path)), 0, &a))
	if a.Status != bottle.Denied || !strings.Contains(a.Note, "canonical") {
		t.Errorf("answer %+v", a)
	}
}

// A hijacked bundle that files more than an honest one can is taken in as slowly.
func TestIntakeIsBounded(t *testing.T) {
	h := newHost(t)
	for i := range 40 {
		h.forge(canonical(t, fmt.Sprintf("h%d.example.com", i)))
	}
	recs, problems := h.intake()
	if len(recs) != bottle.MaxPending || len(problems) != 1 || !errors.Is(problems[0], bottle.ErrLimit) {
		t.Fatalf("taken in %d, problems %v", len(recs), problems)
	}
	// Denying or withdrawing them makes room, but for no more than 30 a minute.
	total := len(recs)
	for range 5 {
		for _, rec := range recs {
			must(t, h.desk.Deny(t.Context(), rec, operator, "no"))
		}
		recs, _ = h.intake()
		total += len(recs)
	}
	if total != bottle.MaxPerMinute {
		t.Errorf("taken in %d within a minute", total)
	}
	h.now = h.now.Add(time.Minute + time.Second)
	if recs, problems := h.intake(); len(recs) != 10 || len(problems) != 0 {
		t.Errorf("a minute later: %d, problems %v", len(recs), problems)
	}
}

func TestIntakeOfADamagedFlood(t *testing.T) {
	h := newHost(t)
	for i := range 300 {
		must(t, os.WriteFile(filepath.Join(h.dir.Requests(), fmt.Sprint("junk", i)), nil, 0o600))
	}
	_, problems := h.intake()
	if len(problems) != 101 || !strings.Contains(problems[100].Error(), "200 more") {
		t.Errorf("%d problems, the last %v", len(problems), problems[len(problems)-1])
	}
	if n := len(h.events()); n != 100 {
		t.Errorf("audited %d", n)
	}
}

func TestIntakeWhenTheQueueIsReplaced(t *testing.T) {
	h := newHost(t)
	must(t, os.RemoveAll(h.dir.Requests()))
	must(t, os.Symlink(h.dir.Records(), h.dir.Requests()))
	if _, _, err := h.desk.Intake(t.Context()); !errors.Is(err, bottle.ErrTampered) {
		t.Errorf("error %v", err)
	}
}

func TestCancelFilesThatAreNone(t *testing.T) {
	h := newHost(t)
	rec := h.file("a.example.com")
	path := filepath.Join(h.dir.Cancels(), rec.Request.ID+".json")
	for name, put := range map[string]func() error{
		"fifo":     func() error { return unix.Mkfifo(path, 0o600) },
		"empty":    func() error { return os.WriteFile(path, nil, 0o600) },
		"other id": func() error { return os.WriteFile(path, []byte(`{"schema":1,"id":"x"}`), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			must(t, put())
			_, problems := h.intake()
			if len(problems) != 1 || problems[0].Short != "r1" || h.status("r1") != bottle.Pending {
				t.Errorf("r1 is %s, problems %v", h.status("r1"), problems)
			}
			must(t, os.Remove(path))
		})
	}
}

func TestADamagedRecordIsAProblem(t *testing.T) {
	h := newHost(t)
	h.file("a.example.com")
	h.file("b.example.com")
	must(t, os.WriteFile(glob(t, h.dir.Path("records", "r1.*"))[0], []byte("{"), 0o600))
	h.desk = h.newDesk()
	recs, problems, err := h.desk.Records(t.Context())
	if err != nil || len(recs) != 1 || len(problems) != 1 || problems[0].Short != "r1" || !errors.Is(problems[0], bottle.ErrCorrupt) {
		t.Errorf("%v, %v, %v", recs, problems, err)
	}
	if recs, problems := h.intake(); len(recs) != 0 || len(problems) != 1 {
		t.Errorf("it was taken in anew: %v, %v", recs, problems)
	}
}

// Two processes decide the same request, under the bottle's lock: one wins.
func TestTwoProcessesDecideAtOnce(t *testing.T) {
	if dir := os.Getenv("BOTTLE_TEST_DENY"); dir != "" {
		denyInChild(t, dir)
		return
	}
	h := newHost(t)
	for range 3 {
		rec := h.file("a.example.com")
		var cmds []*exec.Cmd
		for range 2 {
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestTwoProcessesDecideAtOnce$", "-test.v")
			cmd.Env = append(os.Environ(), "BOTTLE_TEST_DENY="+h.dir.Path(), "BOTTLE_TEST_ID="+rec.Short)
			out := &strings.Builder{}
			cmd.Stdout, cmd.Stderr = out, out
			must(t, cmd.Start())
			cmds = append(cmds, cmd)
		}
		won := 0
		for _, cmd := range cmds {
			err := cmd.Wait()
			text := fmt.Sprint(cmd.Stdout)
			switch {
			case err == nil && strings.Contains(text, "decided: <nil>"):
				won++
			case err == nil && strings.Contains(text, bottle.ErrState.Error()):
			default:
				t.Errorf("%v\n%s", err, text)
			}
		}
		if won != 1 {
			t.Errorf("%d won", won)
		}
	}
}

func denyInChild(t *testing.T, root string) {
	dir, err := bottle.NewDir(root)
	must(t, err)
	log, err := audit.Open(audit.Config{Path: dir.Audit(), HeadPath: dir.AuditHead()})
	must(t, err)
	desk, err := queue.NewDesk(queue.DeskConfig{Dir: dir, Trail: queue.AuditTrail{Log: log}})
	must(t, err)
	rec, err := desk.Find(t.Context(), os.Getenv("BOTTLE_TEST_ID"))
	must(t, err)
	unlock, err := dir.Lock(t.Context())
	must(t, err)
	defer unlock()
	t.Logf("decided: %v", desk.Deny(t.Context(), rec, bottle.Actor{UID: os.Getpid()}, "no"))
}
