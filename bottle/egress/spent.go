package egress

import (
	"errors"
	"fmt"
	"io/fs"
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
}

func openSpent(path string, now func() time.Time) (*spentLog, error) {
	l := &spentLog{path: path, now: now, spent: map[string]time.Time{}}
	var file bottle.Spent
	switch err := bottle.ReadJSON(path, maxSpent, &file); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil: // which grants are spent is unknown, so none may be used
		return nil, fmt.Errorf("spent grants: %w", err)
	}
	for k, v := range file.Spent {
		l.spent[k] = v
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
	l.spent[grant] = l.now().UTC()
	if err := bottle.WriteJSON(l.path, bottle.Spent{Schema: bottle.Schema, Spent: l.spent}); err != nil {
		delete(l.spent, grant)
		return false, fmt.Errorf("spent grants: %w", err)
	}
	return true, nil
}
