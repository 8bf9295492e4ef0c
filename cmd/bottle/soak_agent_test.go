package main_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"bottle/bottle"
)

// A soakAsk is one request of an agent: what was asked, and what its agent was told.
type soakAsk struct {
	host, path string
	id         string        // set once it is filed
	filings    int           // how often it was filed: more than once after a lost answer alone
	told       bottle.Status // what wait_for_decision said
}

// A soakLedger is every request that the soak's agents made.
type soakLedger struct {
	mu   sync.Mutex
	asks []*soakAsk
	byID map[string]*soakAsk
}

func (l *soakLedger) add(a *soakAsk) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asks = append(l.asks, a)
}

func (l *soakLedger) filed(a *soakAsk, id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a.id = id
	if l.byID == nil {
		l.byID = map[string]*soakAsk{}
	}
	l.byID[id] = a
}

func (l *soakLedger) tell(a *soakAsk, s bottle.Status) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a.told = s
}

// find is a copy of the ask with this id.
func (l *soakLedger) find(id string) (soakAsk, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a := l.byID[id]; a != nil {
		return *a, true
	}
	return soakAsk{}, false
}

// A soakAgent asks, waits until it is decided, and asks again: a call of its waits at any time.
type soakAgent struct {
	n      int
	socket string
	port   int // of the upstream
	book   *soakBook
	ledger *soakLedger
	wire   *soakWire
}

// run asks until ctx ends, and then waits for the last decision.
func (a *soakAgent) run(ctx context.Context) {
	defer func() {
		if a.wire != nil {
			_ = a.wire.conn.Close()
		}
	}()
	last := context.WithoutCancel(ctx)
	for n := 0; ctx.Err() == nil; n++ {
		// Every second ask is for more of a host that is listed already: routes.yaml alone.
		ask := &soakAsk{host: soakOpen, path: fmt.Sprintf("/agent%d-%d", a.n, n)}
		if (a.n+n)%2 == 0 {
			ask.host = fmt.Sprintf("h%d.corp.example", (a.n+5*n)%soakHosts)
		}
		a.ledger.add(ask)
		if err := a.file(last, ask); err != nil {
			a.book.fault("agent %d can't ask for %s%s: %v", a.n, ask.host, ask.path, err)
			return
		}
		if err := a.wait(last, ask); err != nil {
			a.book.fault("agent %d does not learn what became of %s: %v", a.n, ask.id, err)
			return
		}
	}
}

// file makes the request. An answer that was lost with its connection is looked for before
// it is made again: what is pending would be joined, but what is decided would be doubled.
func (a *soakAgent) file(ctx context.Context, ask *soakAsk) error {
	entry := bottle.Entry{Host: bottle.Host(ask.host), Ports: []int{a.port}, Matches: []bottle.Match{{Path: &bottle.PathMatch{Type: bottle.PathPrefix, Value: ask.path}}}}
	return a.persist(ctx, func(w *soakWire) error {
		if ask.filings > 0 {
			list, err := w.tool("list_requests", map[string]any{}, soakPatience)
			if err != nil {
				return err
			}
			for _, t := range list.Requests {
				if t.asks(ask.path) {
					a.ledger.filed(ask, t.ID)
					return nil
				}
			}
		}
		ask.filings++
		t, err := w.tool("request_allowlist_change", map[string]any{"add": []bottle.Entry{entry}, "reason": "the soak asks for " + ask.path}, soakPatience)
		if err != nil {
			return err
		}
		a.ledger.filed(ask, t.ID)
		return nil
	})
}

func (a *soakAgent) wait(ctx context.Context, ask *soakAsk) error {
	return a.persist(ctx, func(w *soakWire) error {
		for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); {
			t, err := w.tool("wait_for_decision", map[string]any{"id": ask.id, "timeout_seconds": 20}, 20*time.Second+soakPatience)
			if err != nil {
				return err
			}
			if t.ID != ask.id {
				return fmt.Errorf("was told of %s: %w", t.ID, errTool)
			}
			if t.Status.Decided() {
				a.ledger.tell(ask, t.Status)
				return nil
			}
		}
		return fmt.Errorf("undecided for two minutes: %w", errTool)
	})
}

// persist does what it is given on the agent's connection, and on a new one when that is cut.
func (a *soakAgent) persist(ctx context.Context, do func(w *soakWire) error) error {
	var err error
	for end := time.Now().Add(2 * soakPatience); ; {
		if a.wire == nil {
			began := time.Now()
			if a.wire, err = dialWire(ctx, a.socket); err != nil {
				a.wire = nil
				a.book.lost(kindMCP, began, err)
			} else {
				a.book.count(kindMCP)
			}
		}
		if a.wire != nil {
			if err = do(a.wire); err == nil || errors.Is(err, errTool) {
				return err
			}
			a.book.lost(kindMCP, a.wire.began, err)
			_ = a.wire.conn.Close()
			a.wire, end = nil, time.Now().Add(2*soakPatience)
			continue
		}
		if time.Now().After(end) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}
