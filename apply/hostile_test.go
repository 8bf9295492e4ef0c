package apply_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"bottle/apply"
	"bottle/bottle"
	"bottle/bottle/audit"
)

// What the bundle does to its own files, so as to keep what is to be taken from it.
func barriers() map[string]func(*testing.T, *bed) {
	initFile := func(put func(*testing.T, string)) func(*testing.T, *bed) {
		return func(t *testing.T, b *bed) {
			b.bundle.set(func(f *bundle) { f.silent = true })
			must(t, os.RemoveAll(b.dir.InitStatus()))
			put(t, b.dir.InitStatus())
		}
	}
	forged := func(change func(*bottle.InitStatus)) func(*testing.T, *bed) {
		return func(t *testing.T, b *bed) {
			var st bottle.InitStatus
			must(t, bottle.ReadJSON(b.dir.InitStatus(), 0, &st))
			change(&st)
			initFile(func(t *testing.T, path string) { must(t, bottle.WriteStatus(path, st)) })(t, b)
		}
	}
	text := func(s string) func(*testing.T, string) {
		return func(t *testing.T, path string) { must(t, os.WriteFile(path, []byte(s), 0o600)) }
	}
	return map[string]func(*testing.T, *bed){
		"no init.json":          initFile(func(*testing.T, string) {}),
		"init.json is garbage":  initFile(text("{")),
		"init.json is newer":    initFile(text(`{"schema":2}`)),
		"init.json is huge":     initFile(text(`{"schema":1,"error":"` + strings.Repeat("x", 1<<20) + `"}`)),
		"init.json is a FIFO":   initFile(func(t *testing.T, path string) { must(t, syscall.Mkfifo(path, 0o600)) }),
		"init.json is a dir":    initFile(func(t *testing.T, path string) { must(t, os.Mkdir(path, 0o700)) }),
		"init.json is a link":   initFile(func(t *testing.T, path string) { must(t, os.Symlink("/dev/zero", path)) }),
		"init.json has nothing": forged(func(st *bottle.InitStatus) { st.Files = nil }),
		"another inode": forged(func(st *bottle.InitStatus) {
			for name, f := range st.Files {
				f.Ino++
				st.Files[name] = f
			}
		}),
		"nothing is published": func(t *testing.T, b *bed) {
			b.bundle.set(func(f *bundle) { f.hang[bottle.RoutesFile], f.hang[bottle.PipelockFile] = true, true })
			forged(func(st *bottle.InitStatus) { st.Ready, st.PID = false, 1 })(t, b)
		},
		"a daemon's status is a FIFO": func(t *testing.T, b *bed) {
			b.bundle.set(func(f *bundle) { f.deaf = true })
			path := b.dir.DaemonStatus(bottle.DaemonEgress)
			must(t, os.Remove(path))
			must(t, syscall.Mkfifo(path, 0o600))
		},
		"signals are not heeded": func(_ *testing.T, b *bed) { b.bundle.set(func(f *bundle) { f.drop = 1 << 30 }) },
		"no signal reaches it":   func(_ *testing.T, b *bed) { b.bundle.set(func(f *bundle) { f.deaf = true }) },
	}
}

func TestBundleCanNotBarANarrowing(t *testing.T) {
	for name, bar := range barriers() {
		for how, narrow := range map[string]func(b *bed, rec *bottle.Record) error{
			"revoke": func(b *bed, rec *bottle.Record) error {
				_, err := b.applier.Revoke(context.Background(), rec.Short, operator)
				return err
			},
			"expire": func(b *bed, _ *bottle.Record) error {
				n, err := b.applier.Expire(context.Background())
				if n != 1 {
					b.tb.Errorf("%d grants ended", n)
				}
				return err
			},
			"edit": func(b *bed, _ *bottle.Record) error {
				body := []byte("routes:\n  - host: a.example.com\n    ports: [443]\n")
				p, err := b.applier.PreviewEdit(context.Background(), bottle.RoutesFile, body)
				must(b.tb, err)
				_, err = b.applier.Edit(context.Background(), bottle.RoutesFile, body, operator, p.Digest)
				return err
			},
		} {
			t.Run(name+"/"+how, func(t *testing.T) {
				t.Parallel()
				now := time.Now()
				b := newBed(t, bedConfig{root: crashRoot(t) + "/b", adjust: func(c *apply.Config) {
					c.ConfirmTimeout, c.ResignalEvery = 200*time.Millisecond, 20*time.Millisecond
					c.Now = func() time.Time { return now }
				}})
				rec := b.grant("c.example.com", bottle.Duration{Kind: bottle.TTL, TTL: time.Minute})
				if how == "expire" {
					now = now.Add(time.Hour)
				}
				bar(t, b)
				err := narrow(b, rec)
				if !errors.Is(err, bottle.ErrUnconfirmed) || !strings.Contains(err.Error(), "the narrower config stays, and all daemons were stopped") {
					t.Errorf("%v", err)
				}
				if strings.Contains(b.hosts(), "c.example.com") || b.record(rec.Short).State.Status() == bottle.Applied {
					t.Errorf("%s, and %s is %s", b.hosts(), rec.Short, b.record(rec.Short).State.Status())
				}
				if b.bundle.stops != 1 {
					t.Errorf("stopped %d times", b.bundle.stops)
				}
				noJournal(t, b)
				if e := b.events(); !strings.Contains(e, "narrowing-unconfirmed") {
					t.Error(e)
				}
				must(t, os.RemoveAll(b.dir.InitStatus()))
				must(t, os.RemoveAll(b.dir.DaemonStatus(bottle.DaemonEgress)))
				b.bundle.restart()
				for file := range daemonOf {
					if rev, err := bottle.CheckSeal(b.read(file)); err != nil || b.bundle.inForce(file) != rev {
						t.Errorf("%s: %s is in force, not %s (%v)", file, b.bundle.inForce(file).Short(), rev.Short(), err)
					}
				}
				b.grant("d.example.com", session)
			})
		}
	}
}

// A change that was interrupted is taken back whatever the bundle says, and bars no revocation.
func TestBundleCanNotBarARecovery(t *testing.T) {
	for name, bar := range barriers() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, bedConfig{root: crashRoot(t) + "/b", adjust: func(c *apply.Config) {
				c.ConfirmTimeout, c.ResignalEvery = 200*time.Millisecond, 20*time.Millisecond
			}})
			rec := b.grant("c.example.com", session)
			wider := b.ask(bottle.Ask{Add: entries("d.example.com"), Reason: "x"})
			in := b.intent(wider, session)
			interrupt(t, b, "signal "+bottle.RoutesFile, func(a *apply.Applier) {
				p, err := a.Preview(context.Background(), in)
				must(t, err)
				mine := *wider
				_, _ = a.Approve(context.Background(), &mine, in, operator, p.Digest, "")
			})
			bar(t, b)
			_, err := b.applier.Revoke(t.Context(), rec.Short, operator)
			if err != nil && !errors.Is(err, bottle.ErrUnconfirmed) {
				t.Error(err)
			}
			if b.hosts() != "a.example.com b.example.com" || b.bundle.stops != 1 {
				t.Errorf("%s; stopped %d times", b.hosts(), b.bundle.stops)
			}
			noJournal(t, b)
		})
	}
}

// A bundle that is just starting has no status yet. It is not stopped for that, if it confirms in time.
func TestNarrowingWhileTheBundleStarts(t *testing.T) {
	var b *bed
	b = newBed(t, bedConfig{adjust: func(c *apply.Config) {
		c.ResignalEvery = 5 * time.Millisecond
		c.Fault = func(step string) {
			if step == "confirm "+bottle.RoutesFile && b.bundle.stops == 0 {
				b.bundle.restart()
			}
		}
	}})
	rec := b.grant("c.example.com", session)
	must(t, os.Remove(b.dir.InitStatus()))
	_, err := b.applier.Revoke(t.Context(), rec.Short, operator)
	must(t, err)
	if b.bundle.stops != 0 {
		t.Error("it was stopped")
	}
}

func TestUnreadableSpentFileEndsNothingAndBarsNothing(t *testing.T) {
	b := newBed(t, bedConfig{})
	rec := b.grant("c.example.com", session)
	b.grant("d.example.com", bottle.Duration{Kind: bottle.Once})
	// A file in place of status/ gives an error that is none of the file's content, to root too (ENOTDIR).
	status := filepath.Dir(b.dir.SpentFile())
	must(t, os.Rename(status, status+".real"))
	must(t, os.WriteFile(status, nil, 0o600))
	if n, err := b.applier.Expire(t.Context()); n != 0 || err != nil {
		t.Errorf("expire: %d %v", n, err)
	}
	b.bundle.set(func(f *bundle) { f.down = true })
	_, err := b.applier.Revoke(t.Context(), rec.Short, operator)
	must(t, err)
}

// failing is a queue that can't save one request's record.
type failing struct {
	apply.Records
	id *string
}

var errNoSave = errors.New("no save")

func (f failing) Save(ctx context.Context, rec *bottle.Record) error {
	if rec.Request.ID == *f.id && rec.State.Status() != bottle.Approved {
		return errNoSave
	}
	return f.Records.Save(ctx, rec)
}

func TestMissingBookkeepingBarsNoNarrowing(t *testing.T) {
	now := time.Now()
	stuck := ""
	b := newBed(t, bedConfig{adjust: func(c *apply.Config) {
		c.Records = failing{c.Records, &stuck}
		c.Now = func() time.Time { return now }
	}})
	first := b.grant("c.example.com", session)
	b.grant("d.example.com", bottle.Duration{Kind: bottle.TTL, TTL: time.Minute})
	b.grant("e.example.com", session)
	rec := b.ask(bottle.Ask{Add: entries("f.example.com"), Reason: "x"})
	stuck = rec.Request.ID
	if _, err := b.approve(rec, b.intent(rec, session)); !errors.Is(err, errNoSave) || !strings.Contains(err.Error(), "its record is not complete") {
		t.Fatal(err)
	}
	out, err := b.applier.Revoke(t.Context(), first.Short, operator)
	if err != nil || !strings.Contains(out.Detail, "an earlier change is not written down completely yet") {
		t.Errorf("%v %+v", err, out)
	}
	now = now.Add(time.Hour)
	if n, err := b.applier.Expire(t.Context()); n != 1 || err != nil {
		t.Errorf("expire: %d %v", n, err)
	}
	other := b.ask(bottle.Ask{Add: entries("g.example.com"), Reason: "x"})
	if _, err := b.approve(other, b.intent(other, session)); !errors.Is(err, errNoSave) {
		t.Errorf("a widening goes on without it: %v", err)
	}
	b.bundle.set(func(f *bundle) { f.down = true })
	if _, err := b.applier.EndSession(t.Context()); !errors.Is(err, bottle.ErrState) && !errors.Is(err, errNoSave) && err != nil {
		t.Errorf("end of the session: %v", err)
	}
	if b.hosts() != "a.example.com b.example.com" {
		t.Error(b.hosts())
	}
	stuck = ""
	if _, err := b.applier.Recover(t.Context()); err != nil {
		t.Error(err)
	}
	if s := b.record(rec.Short).State.Status(); s != bottle.Expired {
		t.Errorf("%s is %s", rec.Short, s)
	}
	noJournal(t, b)
}

// The queue's file of a request is the bundle's. It can spoil its own approval by it, and nothing else.
func TestSpoiledRequestFileBarsNothingElse(t *testing.T) {
	for name, spoil := range map[string]func(*testing.T, string){
		"newer":   func(t *testing.T, path string) { must(t, os.WriteFile(path, []byte(`{"schema":2}`), 0o600)) },
		"garbage": func(t *testing.T, path string) { must(t, os.WriteFile(path, []byte(`{`), 0o600)) },
		"a FIFO": func(t *testing.T, path string) {
			must(t, os.Remove(path))
			must(t, syscall.Mkfifo(path, 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, bedConfig{})
			other := b.grant("c.example.com", session)
			rec := b.ask(bottle.Ask{Add: entries("d.example.com"), Remove: entries("b.example.com"), Reason: "x"})
			spoil(t, filepath.Join(b.dir.Requests(), rec.Request.ID+".json"))
			if _, err := b.approve(rec, b.intent(rec, session)); !errors.Is(err, bottle.ErrTampered) {
				t.Error(err)
			}
			noJournal(t, b)
			if b.hosts() != "a.example.com b.example.com c.example.com" || b.record(rec.Short).State.Status() != bottle.Pending {
				t.Errorf("%s; %s", b.hosts(), b.record(rec.Short).State.Status())
			}
			_, err := b.applier.Revoke(t.Context(), other.Short, operator)
			must(t, err)
			must(t, b.desk.Deny(t.Context(), b.record(rec.Short), operator, "no"))
		})
	}
}

// After a kill the outcome is written down without a look at the bundle's file.
func TestSpoiledRequestFileBarsNoRecovery(t *testing.T) {
	for step, want := range map[string]bottle.Status{"audit apply-started": bottle.Failed, "outcome": bottle.Applied} {
		t.Run(step, func(t *testing.T) {
			b := newBed(t, bedConfig{})
			rec := b.ask(bottle.Ask{Add: entries("d.example.com"), Reason: "x"})
			in := b.intent(rec, session)
			p, err := b.applier.Preview(t.Context(), in)
			must(t, err)
			interrupt(t, b, step, func(a *apply.Applier) {
				mine := *rec
				_, _ = a.Approve(context.Background(), &mine, in, operator, p.Digest, "")
			})
			must(t, os.WriteFile(filepath.Join(b.dir.Requests(), rec.Request.ID+".json"), []byte(`{"schema":2}`), 0o600))
			_, err = b.applier.Recover(t.Context())
			must(t, err)
			if s := b.record(rec.Short).State.Status(); s != want {
				t.Errorf("it is %s", s)
			}
			noJournal(t, b)
		})
	}
}

func TestRemovalOutlivesItsGrant(t *testing.T) {
	for name, end := range map[string]func(b *bed, rec *bottle.Record, later func()) error{
		"expired": func(b *bed, _ *bottle.Record, later func()) error {
			later()
			_, err := b.applier.Expire(context.Background())
			return err
		},
		"revoked": func(b *bed, rec *bottle.Record, _ func()) error {
			_, err := b.applier.Revoke(context.Background(), rec.Short, operator)
			return err
		},
		"session over": func(b *bed, _ *bottle.Record, later func()) error {
			later()
			b.bundle.set(func(f *bundle) { f.down = true })
			_, err := b.applier.EndSession(context.Background())
			b.bundle.set(func(f *bundle) { f.down = false })
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			now := time.Now()
			b := newBed(t, bedConfig{adjust: func(c *apply.Config) { c.Now = func() time.Time { return now } }})
			rec := b.ask(bottle.Ask{Add: entries("d.example.com"), Remove: entries("b.example.com"), Reason: "swap"})
			_, err := b.approve(rec, b.intent(rec, bottle.Duration{Kind: bottle.TTL, TTL: time.Minute}))
			must(t, err)
			must(t, end(b, rec, func() { now = now.Add(time.Hour) }))
			notBack(t, b)
		})
	}
	t.Run("failed after it", func(t *testing.T) {
		b := newBed(t, bedConfig{adjust: quick})
		rec := b.ask(bottle.Ask{Add: entries("d.example.com"), Remove: entries("b.example.com"), Reason: "swap"})
		b.bundle.set(func(f *bundle) { f.hang[bottle.RoutesFile] = true })
		if _, err := b.approve(rec, b.intent(rec, session)); !errors.Is(err, bottle.ErrUnconfirmed) || rec.State.Status() != bottle.Failed {
			t.Fatalf("%v %s", err, rec.State.Status())
		}
		b.bundle.set(func(f *bundle) { clear(f.hang) })
		notBack(t, b)
	})
}

// notBack checks that b.example.com is not opened again, neither by a start nor by a rebuild, and that the rebuild says
// what it changed.
func notBack(t *testing.T, b *bed) {
	t.Helper()
	base, err := b.applier.Expected(t.Context())
	must(t, err)
	if strings.Contains(string(base.Routes), "b.example.com") || strings.Contains(string(base.Routes), "d.example.com") {
		t.Errorf("a start begins with\n%s", base.Routes)
	}
	must(t, os.WriteFile(b.dir.Live(bottle.RoutesFile), sealed(baseRoutes), 0o600))
	rewrite(t, b, bottle.RoutesFile, []byte("\x00{"))
	_, err = b.applier.Recover(t.Context())
	must(t, err)
	if len(b.routes()) != 1 || b.routes()[0].Host != "a.example.com" {
		t.Errorf("rebuilt: %v", b.routes())
	}
	lines, err := audit.Read(b.dir.Audit(), 1, 0)
	must(t, err)
	i := slices.IndexFunc(lines, func(l audit.Entry) bool { return string(l.Event) == "config-rebuilt" })
	if i < 0 || len(lines[i].Before[bottle.RoutesFile]) != 1 || !strings.Contains(lines[i].Before[bottle.RoutesFile][0], "b.example.com") || !strings.Contains(lines[i].Detail, "what the bundle has published") {
		t.Errorf("audit: %+v", lines[max(i, 0)])
	}
}

func sealed(text string) []byte {
	b, _ := bottle.Seal([]byte(text))
	return b
}
