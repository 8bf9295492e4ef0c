package keep

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"bottle/bottle"
)

// A Status is keeper.json: what an operator should know of the keeper. It is the host's
// alone, but its texts may quote what the bundle wrote.
type Status struct {
	Schema    int       `json:"schema"`
	PID       int       `json:"pid"`
	UpdatedAt time.Time `json:"updated_at"`
	Problems  []string  `json:"problems,omitempty"`
}

// maxProblems bounds what is told at a time.
const maxProblems = 50

func statusPath(d *bottle.Dir) string { return d.Path("keeper.json") }

// ReadStatus returns what the bottle's keeper last said, or an empty Status if there was
// none. Whether that keeper still runs, [bottle.Metadata] tells.
func ReadStatus(d *bottle.Dir) (Status, error) {
	var s Status
	err := bottle.ReadJSON(statusPath(d), 0, &s)
	if errors.Is(err, fs.ErrNotExist) {
		return Status{}, nil
	}
	return s, err
}

// tell writes keeper.json if there is something new.
func (k *Keeper) tell() {
	var texts []string
	for _, key := range slices.Sorted(maps.Keys(k.problems)) {
		texts = append(texts, k.problems[key]...)
	}
	if len(texts) > maxProblems {
		texts = texts[:maxProblems]
	}
	for i, t := range texts {
		texts[i], _, _ = strings.Cut(t, "\n") // a panic's stack is for the log
	}
	now := "told\n" + strings.Join(texts, "\n")
	if now == k.told {
		return
	}
	s := Status{Schema: bottle.Schema, PID: os.Getpid(), UpdatedAt: k.cfg.Now().UTC(), Problems: texts}
	if err := bottle.WriteStatus(statusPath(k.cfg.Dir), s); err != nil {
		k.cfg.Logger.Warn("keeper.json", "error", err)
		return
	}
	k.told = now
}
