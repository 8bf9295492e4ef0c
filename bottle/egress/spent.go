package egress

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"sync"
	"time"

	"bottle/bottle"
)

// maxSpent bounds spent.json: some hundred thousand grants.
const maxSpent = 16 << 20

// A spentLog knows which once grants have let their request through. A claim is durable
// before it is granted, so a crash between claim and request costs the grant, and never
// lets it through twice.
type spentLog struct {
	path string
	now  func() time.Time

	mu    sync.RWMutex
	spent map[string]time.Time
	open  map[string]bool // those whose request is under way
}

func openSpent(path string, now func() time.Time) (*spentLog, error) {
	l := &spentLog{path: path, now: now, spent: map[string]time.Time{}, open: map[string]bool{}}
	var file bottle.Spent
	switch err := bottle.ReadJSON(path, maxSpent, &file); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil: // which grants are spent is unknown, so none may be used
		return nil, fmt.Errorf("spent grants: %w", err)
	}
	for k, v := range file.Spent {
		l.spent[k] = v
	}
	if len(file.Open) > 0 { // what was open ended with the process that said so
		if err := l.write(); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func (l *spentLog) has(grant string) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	_, ok := l.spent[grant]
	return ok
}

// claim spends the grant. It returns false if another request has, and an error, with the
// grant unspent, if that could not be made durable.
func (l *spentLog) claim(grant string) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.spent[grant]; ok {
		return false, nil
	}
	l.spent[grant], l.open[grant] = l.now().UTC(), true
	if err := l.write(); err != nil {
		delete(l.spent, grant)
		delete(l.open, grant)
		return false, err
	}
	return true, nil
}

// done says that the request which spent the grant is over.
func (l *spentLog) done(grant string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.open, grant)
	return l.write()
}

func (l *spentLog) write() error {
	file := bottle.Spent{Schema: bottle.Schema, Spent: l.spent, Open: slices.Sorted(maps.Keys(l.open))}
	if err := bottle.WriteJSON(l.path, file); err != nil {
		return fmt.Errorf("spent grants: %w", err)
	}
	return nil
}
