package apply_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"bottle/apply"
	"bottle/bottle"
)

// A fullDisk has no space left but what the reserve takes.
type fullDisk struct {
	armed   atomic.Bool // records are saved beside what else is written
	reserve string
}

func (d *fullDisk) err() error {
	if _, err := os.Lstat(d.reserve); d.armed.Load() && err == nil {
		return &os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}
	}
	return nil
}

func newFullDisk(reserve string) *fullDisk {
	d := &fullDisk{reserve: reserve}
	d.armed.Store(true)
	return d
}

// fill makes the disk full to what writes new files or lines for an Applier.
func (d *fullDisk) fill(c *apply.Config) {
	c.Records, c.Trail = fullRecords{c.Records, d}, fullTrail{c.Trail, d}
}

func (d *fullDisk) writeJSON(path string, v any) error {
	if err := d.err(); err != nil {
		return err
	}
	return bottle.WriteJSON(path, v)
}

type fullRecords struct {
	apply.Records
	d *fullDisk
}

func (f fullRecords) Save(ctx context.Context, rec *bottle.Record) error {
	if err := f.d.err(); err != nil {
		return err
	}
	return f.Records.Save(ctx, rec)
}

type fullTrail struct {
	apply.Trail
	d *fullDisk
}

func (f fullTrail) Record(ctx context.Context, e bottle.Event) error {
	if err := f.d.err(); err != nil {
		return err
	}
	return f.Trail.Record(ctx, e)
}

func (f fullTrail) RecordOnce(ctx context.Context, e bottle.Event) (bool, error) {
	if err := f.d.err(); err != nil {
		return false, err
	}
	return f.Trail.RecordOnce(ctx, e)
}

func TestReserve(t *testing.T) {
	for _, from := range []string{"", "audit apply-started", "pwrite " + bottle.RoutesFile + " 0", "outcome", "audit revoked", "record outcome r1"} {
		t.Run("full from "+from, func(t *testing.T) {
			d := &fullDisk{}
			given, revoking := 0, false
			b := newBed(t, bedConfig{root: t.TempDir(), adjust: func(c *apply.Config) {
				d.reserve = c.Dir.Path("reserve")
				d.fill(c)
				c.Fault = func(step string) {
					switch step {
					case from:
						d.armed.Store(revoking)
					case "give up the reserve":
						given++
					}
				}
			}})
			b.applier.SetWriteJSON(d.writeJSON)
			rec := b.grant("c.example.com", session)
			ttl := b.grant("d.example.com", bottle.Duration{Kind: bottle.TTL, TTL: time.Hour})
			waits := b.ask(bottle.Ask{Add: entries("e.example.com"), Reason: "x"})
			st, err := os.Stat(d.reserve)
			must(t, err)
			if sys, ok := st.Sys().(*syscall.Stat_t); !ok || sys.Blocks*512 < st.Size() || st.Size() < 1<<16 {
				t.Errorf("no blocks are set aside: %+v", st.Sys())
			}
			d.armed.Store(from == "")
			if d.armed.Load() {
				if _, err := b.approve(waits, b.intent(waits, session)); !errors.Is(err, syscall.ENOSPC) || given != 0 {
					t.Errorf("a widening: %v; the reserve was given up %d times", err, given)
				}
			}
			given, revoking = 0, true
			d.armed.Store(from == "")
			_, err = b.applier.Revoke(t.Context(), rec.Short, operator)
			must(t, err)
			if given != 1 || b.record(rec.Short).State.Status() != bottle.Revoked || b.hosts() != "a.example.com b.example.com d.example.com" {
				t.Errorf("given up %d times; %s; %s", given, b.record(rec.Short).State.Status(), b.hosts())
			}
			noJournal(t, b)
			// It is set aside again by the keeper's round, and before anything else is granted.
			revoking = false
			d.armed.Store(false)
			_, err = b.applier.Expire(t.Context())
			must(t, err)
			if _, err := os.Stat(d.reserve); err != nil {
				t.Error(err)
			}
			must(t, os.Remove(d.reserve))
			_, err = b.approve(waits, b.intent(waits, session))
			must(t, err)
			if _, err := os.Stat(d.reserve); err != nil {
				t.Error(err)
			}
			if s := b.record(ttl.Short).State.Status(); s != bottle.Applied {
				t.Error(s)
			}
		})
	}
}

func TestNothingIsGrantedWithoutAReserve(t *testing.T) {
	b := newBed(t, bedConfig{})
	rec := b.ask(bottle.Ask{Add: entries("c.example.com"), Reason: "x"})
	must(t, os.Mkdir(b.dir.Path("reserve"), 0o700)) // it can't be put there
	must(t, os.WriteFile(b.dir.Path("reserve", "x"), nil, 0o600))
	if _, err := b.approve(rec, b.intent(rec, session)); err == nil || rec.State.Status() != bottle.Pending || b.events() != "" {
		t.Errorf("%v; %s; %s", err, rec.State.Status(), b.events())
	}
	left, err := os.ReadDir(b.dir.Path())
	must(t, err)
	if slices.ContainsFunc(left, func(e os.DirEntry) bool { return e.Name() == "reserve.tmp" }) {
		t.Error("half of a reserve is left")
	}
}
