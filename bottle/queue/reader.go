package queue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

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

// A Reader reads a bottle's records. It changes nothing but the index, needs no lock, and
// is safe for concurrent use.
type Reader struct {
	dir *bottle.Dir

	mu   sync.Mutex
	rows map[string]*row // by file name; nil until the index was read; rows never change
}

// NewReader returns a Reader of the bottle at dir.
func NewReader(dir *bottle.Dir) *Reader { return &Reader{dir: dir} }

// Records returns all records, oldest first, each read anew. Files that can't be read are
// Problems, and the rest is returned all the same. For a listing see [Reader.List].
func (r *Reader) Records(ctx context.Context) ([]*bottle.Record, []Problem, error) {
	recs, problems, err := r.read(ctx, func(*row) bool { return true })
	if err != nil {
		return nil, nil, err
	}
	return recs, append(problems, r.refused()...), nil
}

// Approved returns the records whose approval has not come to an end: under way, or in
// force.
func (r *Reader) Approved(ctx context.Context) ([]*bottle.Record, error) {
	recs, _, err := r.read(ctx, func(row *row) bool { return row.Status == bottle.Approved || row.Status == bottle.Applied })
	return recs, err
}

// Granted returns the records that were ever approved, whatever became of them since.
func (r *Reader) Granted(ctx context.Context) ([]*bottle.Record, error) {
	recs, _, err := r.read(ctx, func(row *row) bool {
		switch row.Status {
		case bottle.Approved, bottle.Applied, bottle.Failed, bottle.Revoked, bottle.Expired:
			return true
		}
		return false
	})
	// Expired is also what nobody decided in time.
	return slices.DeleteFunc(recs, func(rec *bottle.Record) bool { return rec.Decision == nil }), err
}

// read returns the records whose row is wanted.
func (r *Reader) read(ctx context.Context, want func(*row) bool) ([]*bottle.Record, []Problem, error) {
	rows, problems, err := r.load(ctx)
	if err != nil {
		return nil, nil, err
	}
	rows = slices.DeleteFunc(rows, func(row *row) bool { return !want(row) })
	recs := make([]*bottle.Record, len(rows))
	errs := make([]error, len(rows))
	err = parallel(ctx, len(rows), 64, func(i int) {
		recs[i], errs[i] = readRecord(filepath.Join(r.dir.Records(), rows[i].name), rows[i].name)
	})
	if err != nil {
		return nil, nil, err
	}
	for i, row := range rows {
		if errs[i] != nil {
			problems = append(problems, recordProblem(row.name, errs[i]))
		}
	}
	return slices.DeleteFunc(recs, func(rec *bottle.Record) bool { return rec == nil }), problems, nil
}

func recordProblem(name string, err error) Problem {
	short, id, _ := parseRecordName(name)
	return Problem{File: filepath.Join("records", name), Request: id, Short: short, Err: err}
}

// load returns a row for each record, in the order of their short IDs.
func (r *Reader) load(ctx context.Context) ([]*row, []Problem, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.rows == nil {
		r.rows = readIndex(r.dir.Path(indexFile), r.dir.Name())
	}
	dir, names, err := r.openRecords()
	if err != nil {
		return nil, nil, err
	}
	defer dir.Close()
	names = slices.DeleteFunc(names, func(n string) bool { _, _, ok := parseRecordName(n); return !ok })
	found := make([]*row, len(names))
	errs := make([]error, len(names))
	err = parallel(ctx, len(names), 64, func(i int) {
		found[i], errs[i] = r.one(int(dir.Fd()), names[i])
	})
	if err != nil {
		return nil, nil, err
	}
	next := make(map[string]*row, len(names))
	rows := make([]*row, 0, len(names))
	var problems []Problem
	stale := 0
	for i, name := range names {
		switch err := errs[i]; {
		case err == nil:
			if r.rows[name] != found[i] {
				stale++
			}
			next[name] = found[i]
			rows = append(rows, found[i])
		case !errors.Is(err, fs.ErrNotExist):
			problems = append(problems, recordProblem(name, err))
		}
	}
	r.rows = next
	slices.SortFunc(rows, byShort)
	if stale > staleRows(len(rows)) {
		r.store(rows)
	}
	return rows, problems, nil
}

// openRecords returns the directory of the records, and all names in it.
func (r *Reader) openRecords() (*os.File, []string, error) {
	dir, err := openDir(r.dir.Records())
	if err != nil {
		return nil, nil, fmt.Errorf("records: %w", err)
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		_ = dir.Close()
		return nil, nil, fmt.Errorf("records: %w", err)
	}
	return dir, names, nil
}

// store writes the index. Without it the next reader is slower, and that is all.
func (r *Reader) store(rows []*row) {
	f, err := os.CreateTemp(r.dir.Path(), "."+indexFile+".*.tmp")
	if err != nil {
		return
	}
	_, err = f.Write(encodeIndex(rows))
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), r.dir.Path(indexFile))
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
}

// one returns the row of a record, the one that is known if its file is the same still.
func (r *Reader) one(dir int, name string) (*row, error) {
	key, err := stampAt(dir, name)
	if err != nil {
		return nil, err
	}
	if old, ok := r.rows[name]; ok && key.same(old.stamp) {
		return old, nil
	}
	rec, err := readRecord(filepath.Join(r.dir.Records(), name), name)
	if err != nil {
		return nil, err
	}
	return &row{Listing: listingOf(r.dir.Name(), rec), name: name, number: shortNumber(rec.Short), stamp: key, firstSeen: rec.FirstSeen.UTC()}, nil
}

// markTold remembers that the answers to these states of records were seen to be right.
func (r *Reader) markTold(rows []*row) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, old := range rows {
		if r.rows[old.name] == old {
			told := *old
			told.told = true
			r.rows[old.name] = &told
		}
	}
	if len(rows) > staleRows(len(r.rows)) {
		r.store(slices.Collect(maps.Values(r.rows)))
	}
}

func readRecord(path, name string) (*bottle.Record, error) {
	var rec bottle.Record
	if err := bottle.ReadJSON(path, maxRecord, &rec); err != nil {
		return nil, err
	}
	if recordName(rec.Short, rec.Request.ID) != name {
		return nil, fmt.Errorf("read %s: it is the record of %q: %w", path, clip(rec.Short), bottle.ErrCorrupt)
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
	dir, names, err := r.openRecords()
	if err != nil {
		return nil, err
	}
	defer dir.Close()
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

// parallel calls do for 0 to n-1 on as many goroutines as there are processors, but does
// not start one for less than grain calls.
func parallel(ctx context.Context, n, grain int, do func(i int)) error {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), (n+grain-1)/grain) {
		wg.Go(func() {
			for ctx.Err() == nil {
				from := int(next.Add(int64(grain))) - grain
				if from >= n {
					return
				}
				for i := from; i < min(from+grain, n); i++ {
					do(i)
				}
			}
		})
	}
	wg.Wait()
	return ctx.Err()
}
