package mcp_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"bottle/bottle"
	"bottle/mcp"
)

// A fakeQueue is a queue in memory that behaves as the spool does: it joins like asks, knows
// keys, bounds what is pending, and is decided from outside.
type fakeQueue struct {
	mu      sync.Mutex
	tickets []*bottle.Ticket
	keys    map[string]*bottle.Ticket
	changed chan struct{} // closed at each change
	limit   int
	fail    error // returned by all calls
	ended   int   // waits that ended because their context did
}

var _ mcp.Queue = (*fakeQueue)(nil)

func newFakeQueue() *fakeQueue {
	return &fakeQueue{keys: map[string]*bottle.Ticket{}, changed: make(chan struct{}), limit: 10}
}

func (q *fakeQueue) Submit(_ context.Context, ask bottle.Ask, key string) (bottle.Ticket, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.fail != nil {
		return bottle.Ticket{}, q.fail
	}
	if t := q.keys[key]; t != nil && key != "" {
		return *t, nil
	}
	ask, err := ask.Canonical()
	if err != nil {
		return bottle.Ticket{}, err
	}
	now := time.Now().UTC()
	pending := 0
	for _, t := range q.tickets {
		if t.Status() != bottle.Pending {
			continue
		}
		pending++
		if t.Request.Ask.Digest() == ask.Digest() {
			t.Request.Attempts++
			t.Request.LastAt = now
			joined := *t
			joined.Joined = true
			q.remember(key, t)
			return joined, nil
		}
	}
	if pending >= q.limit {
		return bottle.Ticket{}, fmt.Errorf("pending requests: %d wait for the operator, and at most %d may; wait for a decision (wait_for_decision) or cancel one (cancel_request): %w", pending, q.limit, bottle.ErrLimit)
	}
	t := &bottle.Ticket{Request: bottle.Request{
		Schema: bottle.Schema, ID: fmt.Sprintf("0193a000-0000-7000-8000-%012d", len(q.tickets)+1),
		Ask: ask, CreatedAt: now, Attempts: 1, LastAt: now,
	}}
	q.tickets = append(q.tickets, t)
	q.remember(key, t)
	return *t, nil
}

func (q *fakeQueue) remember(key string, t *bottle.Ticket) {
	if key != "" {
		q.keys[key] = t
	}
}

// find is called with the lock held.
func (q *fakeQueue) find(id string) (*bottle.Ticket, error) {
	if q.fail != nil {
		return nil, q.fail
	}
	for i, t := range q.tickets {
		if t.Request.ID == id || "r"+strconv.Itoa(i+1) == id {
			return t, nil
		}
	}
	return nil, fmt.Errorf("id: no request %q in this bottle; list_requests shows those that there are: %w", id, bottle.ErrNotFound)
}

func (q *fakeQueue) Get(_ context.Context, id string) (bottle.Ticket, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	t, err := q.find(id)
	if err != nil {
		return bottle.Ticket{}, err
	}
	return *t, nil
}

func (q *fakeQueue) List(context.Context) ([]bottle.Ticket, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	var out []bottle.Ticket
	for _, t := range q.tickets {
		out = append(out, *t)
	}
	return out, q.fail
}

func (q *fakeQueue) Cancel(_ context.Context, id string) (bottle.Ticket, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	t, err := q.find(id)
	switch {
	case err != nil:
		return bottle.Ticket{}, err
	case t.Status() != bottle.Pending:
		return bottle.Ticket{}, fmt.Errorf("request %s is %s: %w", id, t.Status(), bottle.ErrState)
	}
	q.answer(t, bottle.Answer{Status: bottle.Cancelled})
	return *t, nil
}

func (q *fakeQueue) Wait(ctx context.Context, id string) (bottle.Ticket, error) {
	for {
		q.mu.Lock()
		t, err := q.find(id)
		if err != nil || t.Status().Decided() {
			defer q.mu.Unlock()
			if err != nil {
				return bottle.Ticket{}, err
			}
			return *t, nil
		}
		now, changed := *t, q.changed
		q.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			q.mu.Lock()
			q.ended++
			q.poke()
			q.mu.Unlock()
			return now, ctx.Err()
		}
	}
}

// decide is the operator.
func (q *fakeQueue) decide(id string, a bottle.Answer) {
	q.mu.Lock()
	defer q.mu.Unlock()
	t, err := q.find(id)
	if err != nil {
		panic(err)
	}
	q.answer(t, a)
}

func (q *fakeQueue) answer(t *bottle.Ticket, a bottle.Answer) {
	a.Schema, a.ID, a.UpdatedAt = bottle.Schema, t.Request.ID, time.Now().UTC()
	a.Short = "r" + strconv.Itoa(slices.Index(q.tickets, t)+1)
	t.Answer = &a
	q.poke()
}

// poke tells all who wait that something has changed. It is called with the lock held.
func (q *fakeQueue) poke() {
	close(q.changed)
	q.changed = make(chan struct{})
}

// awaitEnded returns when n waits have ended because their context did.
func (q *fakeQueue) awaitEnded(t *testing.T, n int) {
	t.Helper()
	for {
		q.mu.Lock()
		ended, changed := q.ended, q.changed
		q.mu.Unlock()
		if ended >= n {
			return
		}
		select {
		case <-changed:
		case <-t.Context().Done():
			t.Fatalf("%d waits have ended, not %d", ended, n)
		}
	}
}

// A fakeEgress has one route and one refusal.
type fakeEgress struct {
	routes int // further ones
	fail   error
}

var _ mcp.Enforcer = (*fakeEgress)(nil)

func (e *fakeEgress) Routes(context.Context) (bottle.InForce, error) {
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	ends := at.Add(time.Hour)
	f := bottle.InForce{Revision: "sha256:1111", LoadedAt: at, Routes: []bottle.RouteInfo{
		{Host: "api.example.com", Ports: []int{443}, TLS: bottle.Intercept, Credential: "example", Source: "manifest"},
		{Host: "*.example.org", TLS: bottle.Intercept, Source: "grant", Grant: "r1", Duration: "1h0m0s", ExpiresAt: &ends, Matches: []bottle.Match{{Method: "GET", Path: &bottle.PathMatch{Type: bottle.PathPrefix, Value: "/v1"}}}},
	}}
	for i := range e.routes {
		f.Routes = append(f.Routes, bottle.RouteInfo{Host: bottle.Host(fmt.Sprintf("h%d.example.net", i)), TLS: bottle.Intercept, Source: "manifest"})
	}
	return f, e.fail
}

func (e *fakeEgress) ask() *bottle.Ask {
	return &bottle.Ask{Kind: bottle.KindAccess, Add: []bottle.Entry{{Host: "blocked.example.net", Matches: []bottle.Match{{Method: "GET"}}}}}
}

func (e *fakeEgress) Denials(_ context.Context, limit int) ([]bottle.Denial, error) {
	if limit == 1 {
		return nil, e.fail
	}
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	return []bottle.Denial{{Host: "blocked.example.net", Port: 443, Method: "GET", Path: "/", Layer: "egress", Reason: "no route for this host", Count: 2, First: at, Last: at, Ask: e.ask()}}, e.fail
}

func (e *fakeEgress) Check(_ context.Context, url, method string) (bottle.Check, error) {
	switch url {
	case "https://panic.example.com/":
		panic("a secret detail")
	case "https://api.example.com/v1":
		return bottle.Check{URL: url, Method: method, Allowed: true, Rule: "api.example.com:443", Reason: "allowed"}, e.fail
	case "https://10.0.0.1/":
		return bottle.Check{URL: url, Method: method, Reason: "an IP address is never routed"}, e.fail
	}
	return bottle.Check{URL: url, Method: method, Nearest: "api.example.com: another host", Reason: "no route for this host", Ask: e.ask()}, e.fail
}

var errDisk = errors.New("write /bundle/queue/requests/x.json: no space left on device")
