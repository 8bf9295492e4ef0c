package main_test

import (
	"context"
	"slices"
	"sync"
	"time"
)

// A soakLoad opens new connections at a fixed pace, whatever becomes of those before: a
// client that is kept waiting doesn't keep the next one from coming.
type soakLoad struct {
	door soakDoor
	host string
	port int
	path string
	book *soakBook
	age  *soakAge

	mu      sync.Mutex
	samples []soakSample
}

type soakSample struct {
	at   time.Time
	took time.Duration // from the dial to the first byte of the answer
}

// run goes on until ctx ends, and returns when each connection has come to its end.
func (l *soakLoad) run(ctx context.Context, perSecond int) {
	var open sync.WaitGroup
	defer open.Wait()
	every := time.Second / time.Duration(perSecond)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for next := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			for ; !next.After(now); next = next.Add(every) { // a late tick makes up for itself
				open.Go(func() { l.one(context.WithoutCancel(ctx)) })
			}
		}
	}
}

func (l *soakLoad) one(ctx context.Context) {
	f := l.age.enter()
	defer l.age.leave(f)
	began := time.Now()
	first, err := l.door.get(ctx, l.host, l.port, l.path)
	l.book.count(kindConn)
	if err != nil {
		l.book.lost(kindConn, began, err)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.samples = append(l.samples, soakSample{began, first})
}

// during is the slowest connection that was under way in one of the spans, and how many were.
func (l *soakLoad) during(spans []span) (slowest time.Duration, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	slices.SortFunc(spans, func(a, b span) int { return a.from.Compare(b.from) })
	for _, s := range l.samples {
		i, _ := slices.BinarySearchFunc(spans, s.at, func(sp span, at time.Time) int { return sp.to.Compare(at) })
		if i < len(spans) && spans[i].from.Before(s.at.Add(s.took)) {
			slowest = max(slowest, s.took)
			n++
		}
	}
	return slowest, n
}

func (l *soakLoad) took() []time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]time.Duration, 0, len(l.samples))
	for _, s := range l.samples {
		out = append(out, s.took)
	}
	return out
}

// centile sorts d; it is 0 for none.
func centile(d []time.Duration, of100 int) time.Duration {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return d[min(len(d)-1, len(d)*of100/100)]
}
