package queue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"bottle/bottle"
)

// A Listing is a line of `bottle requests`, and an element of its --json. Digest and Risks
// depend on the config in force; whoever shows them fills them in.
type Listing struct {
	ID         string         `json:"id"`
	Short      string         `json:"short"`
	Bottle     string         `json:"bottle"`
	Kind       string         `json:"kind"`
	Status     bottle.Status  `json:"status"`
	Entries    []bottle.Entry `json:"entries,omitempty"` // to add
	Remove     []bottle.Entry `json:"remove,omitempty"`
	Credential string         `json:"credential,omitempty"`
	TTLSeconds int            `json:"ttl_seconds,omitempty"`
	Reason     string         `json:"reason"` // the agent's words
	Attempts   int            `json:"attempts"`
	CreatedAt  time.Time      `json:"created_at"` // by the bundle's clock
	ExpiresAt  time.Time      `json:"expires_at"` // if undecided until then
	Digest     bottle.Hash    `json:"digest,omitempty"`
	Risks      []bottle.Risk  `json:"risks,omitempty"`
}

func listingOf(name string, rec *bottle.Record) Listing {
	a := rec.Request.Ask
	return Listing{
		ID: rec.Request.ID, Short: rec.Short, Bottle: name, Kind: a.Kind, Status: rec.State.Status(),
		Entries: a.Add, Remove: a.Remove, Credential: a.Credential, TTLSeconds: a.TTLSeconds, Reason: a.Reason,
		Attempts: rec.Request.Attempts, CreatedAt: rec.Request.CreatedAt.UTC(), ExpiresAt: rec.ExpiresAt.UTC(),
	}
}

// List returns the requests in the order of their short IDs: the pending ones, or all.
func (r *Reader) List(ctx context.Context, all bool) ([]Listing, []Problem, error) {
	rows, problems, err := r.load(ctx)
	if err != nil {
		return nil, nil, err
	}
	if !all {
		rows = slices.DeleteFunc(rows, func(row *row) bool { return row.Status != bottle.Pending })
	}
	out := make([]Listing, len(rows))
	for i, row := range rows {
		out[i] = row.Listing
	}
	return out, append(problems, r.refused()...), nil
}

// refused returns what desks would not take in.
func (r *Reader) refused() []Problem {
	l, err := r.readLedger()
	if err != nil {
		return []Problem{{File: "records/" + ledgerFile, Err: err}}
	}
	return l.problems(nil)
}

// ListAll is [Reader.List] of every bottle below stateRoot, ordered by bottle. A bottle
// that can't be read is a Problem; a Problem's File is relative to stateRoot.
func ListAll(ctx context.Context, stateRoot string, all bool) ([]Listing, []Problem, error) {
	names, err := Bottles(stateRoot)
	if err != nil {
		return nil, nil, err
	}
	lists := make([][]Listing, len(names))
	problems := make([][]Problem, len(names))
	err = parallel(ctx, len(names), 1, func(i int) {
		dir, err := bottle.NewDir(filepath.Join(stateRoot, names[i]))
		if err == nil {
			lists[i], problems[i], err = NewReader(dir).List(ctx, all)
		}
		if err != nil {
			problems[i] = append(problems[i], Problem{Err: err})
		}
		for j := range problems[i] {
			problems[i][j].File = filepath.Join(names[i], problems[i][j].File)
		}
	})
	if err != nil {
		return nil, nil, err
	}
	return slices.Concat(lists...), slices.Concat(problems...), nil
}

// Bottles returns the names of the bottles below stateRoot, sorted: directories that are
// named like one and hold a metadata.json. A stateRoot that is not there has none.
func Bottles(stateRoot string) ([]string, error) {
	entries, err := os.ReadDir(stateRoot)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list bottles: %w", err)
	}
	var names []string
	for _, e := range entries {
		if !e.IsDir() || bottle.CheckName(e.Name()) != nil {
			continue
		}
		if _, err := stampOf(filepath.Join(stateRoot, e.Name(), "metadata.json")); err == nil {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func byShort(a, b *row) int { return cmp.Compare(a.number, b.number) }
