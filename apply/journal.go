package apply

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"bottle/bottle"
)

// The kinds of change.
const (
	kindApprove = "approve"
	kindRevoke  = "revoke"
	kindExpire  = "expire"
	kindEdit    = "edit"
)

// maxJournal bounds a journal: two files of at most maxConfig, old and new in two steps, in base64.
const maxJournal = 64 << 20

// A change is everything that an apply will do, and what became of it. It is the format of journal/<id>.json:
//
//	{"schema":1,"id":"0199...","kind":"approve","at":...,"by":...,
//	 "steps":[{"narrows":true,"files":[{"file":"routes.yaml","old":"<base64>","new":"<base64>"}]}, ...],
//	 "outcome":""}
//
// Without an outcome, files may be anywhere between the first step's old and the last one's new. With one, they are
// where the outcome says, and only bookkeeping is missing.
type change struct {
	Schema    int                 `json:"schema"`
	ID        string              `json:"id"` // UUIDv7, and the change ID of the audit lines
	Kind      string              `json:"kind"`
	At        time.Time           `json:"at"`
	By        bottle.Actor        `json:"by"`
	Requests  []subject           `json:"requests,omitempty"` // whose records follow the outcome
	Gone      []subject           `json:"gone,omitempty"`     // other grants of which a removal or an edit leaves nothing
	Decision  *bottle.Decision    `json:"decision,omitempty"` // kind approve
	GrantEnds *time.Time          `json:"grant_ends,omitempty"`
	Digest    bottle.Hash         `json:"digest,omitempty"`
	Before    map[string][]string `json:"before,omitempty"`
	After     map[string][]string `json:"after,omitempty"`
	Steps     []step              `json:"steps"`
	Outcome   string              `json:"outcome,omitempty"` // "", outcomeApplied or outcomeFailed
	Error     string              `json:"error,omitempty"`   // of a failure, or of a narrowing that was not confirmed
	// Unconfirmed names the daemons that were killed because they did not confirm a narrowing.
	Unconfirmed []string `json:"unconfirmed,omitempty"`
	// Narrowed: the narrowing steps were begun, and what they closed stays closed, of a failed change too.
	Narrowed bool `json:"narrowed,omitempty"`
	// Widened: a widening was begun, and of a failed change it was taken back.
	Widened bool `json:"widened,omitempty"`
	// Recovered: the outcome was settled by recovery and not by the apply itself.
	Recovered bool `json:"recovered,omitempty"`
	// Refused: the record may not say approved, since the request was tampered with. It stays undecided.
	Refused bool `json:"refused,omitempty"`

	began   time.Time // under the lock
	stopped bool      // the bundle was, since it did not do as it was told
}

const (
	outcomeApplied = "applied"
	outcomeFailed  = "failed"
)

// A subject is a request whose record a change decides.
type subject struct {
	ID    string        `json:"id"`
	Short string        `json:"short"`
	To    bottle.Status `json:"to"` // if the change is applied; kind approve fails to failed, others leave it alone
}

// A step either narrows or widens.
type step struct {
	Narrows bool         `json:"narrows"`
	Files   []fileChange `json:"files"` // in the order in which they are written
}

// A fileChange is one file, whole, before and after.
type fileChange struct {
	File    string `json:"file"`
	Old     []byte `json:"old"`
	New     []byte `json:"new"`
	Was     []byte `json:"was,omitempty"`     // what is in the file instead of Old: a hand edit that is being adopted
	Replace bool   `json:"replace,omitempty"` // pipelock.yaml: the daemon must be started anew
}

// first returns the bytes that a file had before the change, and last those it has after all of it.
func (c *change) first() map[string][]byte {
	out := map[string][]byte{}
	for _, s := range slices.Backward(c.Steps) {
		for _, f := range s.Files {
			out[f.File] = f.Old
		}
	}
	return out
}

func (c *change) last() map[string][]byte {
	out := c.first()
	for _, s := range c.Steps {
		for _, f := range s.Files {
			out[f.File] = f.New
		}
	}
	return out
}

// undone returns where the files go if the widening is taken back: what narrows stays.
func (c *change) undone() map[string][]byte {
	out := c.first()
	for _, s := range c.Steps {
		if !s.Narrows {
			continue
		}
		for _, f := range s.Files {
			out[f.File] = f.New
		}
	}
	return out
}

// after returns where the files are once there is an outcome.
func (c *change) after() map[string][]byte {
	switch {
	case c.Outcome != outcomeFailed:
		return c.last()
	case c.Narrowed:
		return c.undone()
	}
	return c.first()
}

// widens reports whether any step does.
func (c *change) widens() bool {
	return slices.ContainsFunc(c.Steps, func(s step) bool { return !s.Narrows })
}

// replaces reports whether any step can only be taken by a new pipelock.
func (c *change) replaces() bool {
	return slices.ContainsFunc(c.Steps, func(s step) bool {
		return slices.ContainsFunc(s.Files, func(f fileChange) bool { return f.Replace })
	})
}

func (a *Applier) journalPath(id string) string {
	return filepath.Join(a.cfg.Dir.Journal(), id+".json")
}

// saveJournal makes the change, as it is now, durable.
func (a *Applier) saveJournal(c *change) error {
	if err := a.writeJSON(a.journalPath(c.ID), c); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

// dropJournal is the last act of a change. The removal is made durable, so that a finished change is not looked at
// again; it would be found finished.
func (a *Applier) dropJournal(c *change) error {
	if err := os.Remove(a.journalPath(c.ID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("journal: %w", err)
	}
	return bottle.SyncDir(a.cfg.Dir.Journal())
}

// leftJournals returns the changes that were left behind, oldest first (a UUIDv7 sorts by time; the lock sees to it
// that there is at most one, but what crashed twice is still to be finished). Temporary files of a crash are removed.
func (a *Applier) leftJournals() ([]*change, error) {
	names, err := os.ReadDir(a.cfg.Dir.Journal())
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	var out []*change
	for _, n := range names {
		path := filepath.Join(a.cfg.Dir.Journal(), n.Name())
		if strings.HasPrefix(n.Name(), ".") && strings.HasSuffix(n.Name(), ".tmp") {
			if err := os.Remove(path); err != nil {
				return nil, fmt.Errorf("journal: %w", err)
			}
			continue
		}
		if filepath.Ext(n.Name()) != ".json" {
			continue
		}
		c := &change{}
		if err := bottle.ReadJSON(path, maxJournal, c); err != nil {
			return nil, fmt.Errorf("journal (move it away only after comparing etc/ with the records): %w", err)
		}
		if c.ID+".json" != n.Name() || len(c.Steps) == 0 {
			return nil, fmt.Errorf("journal %s: not the change that its name says, or one without steps: %w", path, bottle.ErrCorrupt)
		}
		out = append(out, c)
	}
	return out, nil
}
