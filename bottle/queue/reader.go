package queue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"bottle/bottle"
)

// maxRecord bounds a record's file: a request, a decision that may repeat it, and text.
const maxRecord = 1 << 20

// minPrefix is how much of a UUID names a request, at least.
const minPrefix = 4

// A Problem is something in the queue or the records that was passed over, and why. It is
// for the operator's screen: Err may quote what the bundle wrote.
type Problem struct {
	File    string // relative to the state directory
	Request string // UUID, if the file is named after one
	Short   string // short ID, if the request has a record
	Err     error
}

// Error makes a Problem an error.
func (p Problem) Error() string { return fmt.Sprintf("%q: %v", p.File, p.Err) }

// Unwrap returns Err.
func (p Problem) Unwrap() error { return p.Err }

// A Reader reads a bottle's records. It changes nothing, needs no lock, and is safe for
// concurrent use. What it returns is the caller's own copy.
type Reader struct {
	dir *bottle.Dir

	mu    sync.Mutex
	cache map[string]cached // by file name
}

type cached struct {
	key stamp
	rec *bottle.Record
}

// NewReader returns a Reader of the bottle at dir.
func NewReader(dir *bottle.Dir) *Reader {
	return &Reader{dir: dir, cache: map[string]cached{}}
}

// Records returns all records, oldest first. Files that can't be read are Problems, and
// the rest is returned all the same.
func (r *Reader) Records(ctx context.Context) ([]*bottle.Record, []Problem, error) {
	recs, problems, err := r.load(ctx)
	if err != nil {
		return nil, nil, err
	}
	out := make([]*bottle.Record, len(recs))
	for i, rec := range recs {
		out[i] = clone(rec)
	}
	return out, problems, nil
}

// Approved returns the records whose approval has not come to an end: under way, or in
// force.
func (r *Reader) Approved(ctx context.Context) ([]*bottle.Record, error) {
	recs, _, err := r.load(ctx)
	if err != nil {
		return nil, err
	}
	var out []*bottle.Record
	for _, rec := range recs {
		if s := rec.State.Status(); s == bottle.Approved || s == bottle.Applied {
			out = append(out, clone(rec))
		}
	}
	return out, nil
}

// load returns the cache's own records.
func (r *Reader) load(ctx context.Context) ([]*bottle.Record, []Problem, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	names, _, err := readNames(r.dir.Records(), maxNames)
	if err != nil {
		return nil, nil, fmt.Errorf("records: %w", err)
	}
	names = slices.DeleteFunc(names, func(n string) bool { _, _, ok := parseRecordName(n); return !ok })
	found := make([]cached, len(names))
	errs := make([]error, len(names))
	err = parallel(ctx, len(names), func(i int) {
		found[i], errs[i] = r.one(names[i])
	})
	if err != nil {
		return nil, nil, err
	}
	fresh := make(map[string]cached, len(names))
	recs := make([]*bottle.Record, 0, len(names))
	var problems []Problem
	for i, name := range names {
		switch err := errs[i]; {
		case err == nil:
			fresh[name] = found[i]
			recs = append(recs, found[i].rec)
		case errors.Is(err, fs.ErrNotExist):
		default:
			short, id, _ := parseRecordName(name)
			problems = append(problems, Problem{File: filepath.Join("records", name), Request: id, Short: short, Err: err})
		}
	}
	r.cache = fresh
	slices.SortFunc(recs, func(a, b *bottle.Record) int {
		return cmp.Compare(shortNumber(a.Short), shortNumber(b.Short))
	})
	return recs, problems, nil
}

// one returns a record from the cache if its file is the same one still.
func (r *Reader) one(name string) (cached, error) {
	path := filepath.Join(r.dir.Records(), name)
	key, err := stampOf(path)
	if err != nil {
		return cached{}, err
	}
	if c, ok := r.cache[name]; ok && key.same(c.key) {
		return c, nil
	}
	rec, err := readRecord(path, name)
	if err != nil {
		return cached{}, err
	}
	return cached{key: key, rec: rec}, nil
}

func readRecord(path, name string) (*bottle.Record, error) {
	b, err := bottle.ReadFile(path, maxRecord)
	if err != nil {
		return nil, err
	}
	return decodeRecord(path, name, b)
}

func decodeRecord(path, name string, b []byte) (*bottle.Record, error) {
	var rec bottle.Record
	if err := bottle.DecodeJSON(path, b, &rec); err != nil {
		return nil, err
	}
	if recordName(rec.Short, rec.Request.ID) != name {
		return nil, fmt.Errorf("read %s: it is the record of %s: %w", path, rec.Short, bottle.ErrCorrupt)
	}
	return &rec, nil
}

// Find returns the record of a request by its short ID, its UUID, or so much of the UUID
// that no other request begins like it. [bottle.ErrNotFound] says what there is,
// [bottle.ErrAmbiguous] names the candidates.
func (r *Reader) Find(ctx context.Context, id string) (*bottle.Record, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	names, _, err := readNames(r.dir.Records(), maxNames)
	if err != nil {
		return nil, fmt.Errorf("records: %w", err)
	}
	want := strings.ToLower(strings.TrimSpace(id))
	var hits []string
	last := 0
	for _, name := range names {
		short, full, ok := parseRecordName(name)
		if !ok {
			continue
		}
		last = max(last, shortNumber(short))
		if want == short || want == full || len(want) >= minPrefix && strings.HasPrefix(full, want) {
			hits = append(hits, name)
		}
	}
	switch {
	case len(hits) == 1:
		return readRecord(filepath.Join(r.dir.Records(), hits[0]), hits[0])
	case len(hits) > 1:
		return nil, fmt.Errorf("request %q of bottle %s is %s; give more of it, or the short ID: %w", clip(id), r.dir.Name(), candidates(hits), bottle.ErrAmbiguous)
	case last == 0:
		return nil, fmt.Errorf("request %q: bottle %s has had no requests: %w", clip(id), r.dir.Name(), bottle.ErrNotFound)
	case last == 1:
		return nil, fmt.Errorf("request %q: bottle %s has only r1: %w", clip(id), r.dir.Name(), bottle.ErrNotFound)
	}
	return nil, fmt.Errorf("request %q: bottle %s has r1 to r%d (bottle requests --all lists them): %w", clip(id), r.dir.Name(), last, bottle.ErrNotFound)
}

func candidates(names []string) string {
	const show = 5
	slices.SortFunc(names, func(a, b string) int {
		sa, _, _ := strings.Cut(a, ".")
		sb, _, _ := strings.Cut(b, ".")
		return cmp.Compare(shortNumber(sa), shortNumber(sb))
	})
	var out []string
	for i, n := range names {
		if i == show {
			out = append(out, fmt.Sprintf("%d more", len(names)-show))
			break
		}
		short, id, _ := parseRecordName(n)
		out = append(out, short+" ("+id+")")
	}
	return strings.Join(out[:len(out)-1], ", ") + " or " + out[len(out)-1]
}

func clip(s string) string {
	if len(s) > 40 {
		return s[:40] + "..."
	}
	return s
}

// clone copies what callers may change.
func clone(r *bottle.Record) *bottle.Record {
	c := *r
	if r.Decision != nil {
		d := *r.Decision
		c.Decision = &d
	}
	if r.GrantEnds != nil {
		t := *r.GrantEnds
		c.GrantEnds = &t
	}
	return &c
}

// parallel calls do for 0 to n-1 on as many goroutines as there are processors.
func parallel(ctx context.Context, n int, do func(i int)) error {
	const grain = 64
	var wg sync.WaitGroup
	workers := min(runtime.GOMAXPROCS(0), (n+grain-1)/grain)
	for w := range workers {
		wg.Go(func() {
			for i := w * n / workers; i < (w+1)*n/workers; i++ {
				if i%grain == 0 && ctx.Err() != nil {
					return
				}
				do(i)
			}
		})
	}
	wg.Wait()
	return ctx.Err()
}
