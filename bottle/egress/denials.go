package egress

import (
	"container/list"
	"sync"
	"time"

	"bottle/bottle"
)

// maxDenials bounds the ring, in groups. An agent that makes up hosts and paths pushes its
// own older refusals out, and nothing else.
const maxDenials = 256

// Bounds, in bytes, of an agent's text that is kept or shown.
const (
	maxShownHost   = 260
	maxShownPath   = 512
	maxShownMethod = 32
	maxShownReason = 1024
)

// denials are the recent refusals, like ones in one group.
type denials struct {
	now func() time.Time

	mu     sync.Mutex
	recent *list.List // of *bottle.Denial, newest first
	groups map[denialKey]*list.Element
}

type denialKey struct {
	host, method, path, reason string
	port                       int
}

func newDenials(now func() time.Time) *denials {
	return &denials{now: now, recent: list.New(), groups: map[denialKey]*list.Element{}}
}

// add counts a refusal and reports whether it is the first of its group.
func (d *denials) add(n bottle.Denial) (first bool) {
	n.Host = printable(n.Host, maxShownHost)
	n.Method = printable(n.Method, maxShownMethod)
	n.Path = printable(n.Path, maxShownPath)
	n.Reason = clip(n.Reason, maxShownReason)
	n.Nearest = clip(n.Nearest, maxShownReason)
	now := d.now().UTC()
	key := denialKey{n.Host, n.Method, n.Path, n.Reason, n.Port}

	d.mu.Lock()
	defer d.mu.Unlock()
	if e, ok := d.groups[key]; ok {
		have := e.Value.(*bottle.Denial) //nolint:errcheck // the list holds nothing else
		have.Count++
		have.Last = now
		d.recent.MoveToFront(e)
		return false
	}
	n.Count, n.First, n.Last = 1, now, now
	d.groups[key] = d.recent.PushFront(&n)
	if d.recent.Len() > maxDenials {
		e := d.recent.Back()
		old := e.Value.(*bottle.Denial) //nolint:errcheck // the list holds nothing else
		d.recent.Remove(e)
		delete(d.groups, denialKey{old.Host, old.Method, old.Path, old.Reason, old.Port})
	}
	return true
}

// list returns up to limit groups, newest first; all of them if limit is not positive.
func (d *denials) list(limit int) []bottle.Denial {
	d.mu.Lock()
	defer d.mu.Unlock()
	if limit <= 0 || limit > d.recent.Len() {
		limit = d.recent.Len()
	}
	out := make([]bottle.Denial, 0, limit)
	for e := d.recent.Front(); e != nil && len(out) < limit; e = e.Next() {
		out = append(out, *e.Value.(*bottle.Denial)) //nolint:errcheck // the list holds nothing else
	}
	return out
}
