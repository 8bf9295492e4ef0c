package queue_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"bottle/bottle"
	"bottle/bottle/queue"
)

// plant writes n records as a desk would, without the syncs.
func plant(tb testing.TB, dir *bottle.Dir, n int, st bottle.Status) {
	tb.Helper()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for i := range n {
		id, err := uuid.NewV7()
		must(tb, err)
		req := bottle.Request{Schema: 1, ID: id.String(), CreatedAt: now, LastAt: now, Attempts: 1, Ask: bottle.Ask{
			Kind: bottle.KindAccess, Reason: "The build fetches its modules from there, and fails without them.",
			Add: []bottle.Entry{{Host: bottle.Host(fmt.Sprintf("h%d.example.com", i)), Matches: []bottle.Match{{Method: "GET", Path: &bottle.PathMatch{Type: bottle.PathPrefix, Value: "/v1"}}}}},
		}}
		rec := &bottle.Record{Schema: 1, Short: fmt.Sprint("r", i+1), Request: req, First: req.FirstDigest(), FirstSeen: now, ExpiresAt: now.Add(time.Hour)}
		if st != bottle.Pending {
			must(tb, rec.Transition(st, now))
			rec.Decision = &bottle.Decision{By: operator, At: now, Note: "no"}
		}
		must(tb, bottle.WriteStatus(filepath.Join(dir.Records(), rec.Short+"."+req.ID+".json"), rec))
	}
}

// The figure to reach is 100 ms on two cores, for each of these.
func BenchmarkList10000(b *testing.B) {
	for _, st := range []bottle.Status{bottle.Pending, bottle.Denied} {
		dir := newDir(b)
		plant(b, dir, 10_000, st)
		b.Run("list/"+string(st), func(b *testing.B) {
			for b.Loop() { // a new process each time
				got, problems, err := queue.NewReader(dir).List(b.Context(), true)
				if err != nil || len(problems) != 0 || len(got) != 10_000 {
					b.Fatal(len(got), problems, err)
				}
			}
		})
		b.Run("find/"+string(st), func(b *testing.B) {
			for b.Loop() {
				if _, err := queue.NewReader(dir).Find(b.Context(), "r5000"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A pass of the keeper, or a command, over a queue in which all is decided.
func BenchmarkIntake10000(b *testing.B) {
	h := newHost(b)
	plant(b, h.dir, 10_000, bottle.Denied)
	for _, rec := range glob(b, h.dir.Path("records", "r*.json")) {
		name := filepath.Base(rec)[strings.IndexByte(filepath.Base(rec), '.')+1:]
		must(b, bottle.WriteStatus(filepath.Join(h.dir.Requests(), name), bottle.Request{}))
	}
	h.intake() // writes the answers
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			h.desk = h.newDesk()
			h.intake()
		}
	})
	b.Run("next", func(b *testing.B) {
		for b.Loop() {
			h.intake()
		}
	})
}

func BenchmarkList1000Bottles(b *testing.B) {
	root := b.TempDir()
	for i := range 1000 {
		dir, err := bottle.NewDir(filepath.Join(root, fmt.Sprint("b", i)))
		must(b, err)
		must(b, dir.Create())
		must(b, bottle.WriteStatus(dir.Metadata(), bottle.Metadata{Schema: 1}))
		plant(b, dir, 10, bottle.Pending)
	}
	for b.Loop() {
		got, problems, err := queue.ListAll(b.Context(), root, false)
		if err != nil || len(problems) != 0 || len(got) != 10_000 {
			b.Fatal(len(got), problems, err)
		}
	}
}
