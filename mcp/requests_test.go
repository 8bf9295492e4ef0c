package mcp_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bottle/bottle"
)

// A lateQueue takes after the host, which answers a while later: a request has no short ID,
// and a cancelled one is still pending, until then.
type lateQueue struct {
	*fakeQueue
	start  time.Time
	after  time.Duration // since start; below 0: never
	broken bool          // Wait fails
}

func (q *lateQueue) silent() bool { return q.after < 0 || time.Since(q.start) < q.after }

func (q *lateQueue) Get(ctx context.Context, id string) (bottle.Ticket, error) {
	if strings.HasPrefix(id, "r") && q.silent() {
		return bottle.Ticket{}, fmt.Errorf("id: no request %q: %w", id, bottle.ErrNotFound)
	}
	return q.fakeQueue.Get(ctx, id)
}

func (q *lateQueue) Cancel(ctx context.Context, id string) (bottle.Ticket, error) {
	return q.Get(ctx, id)
}

func (q *lateQueue) Wait(ctx context.Context, id string) (bottle.Ticket, error) {
	if q.broken {
		return bottle.Ticket{}, errDisk
	}
	t, err := q.Get(ctx, id)
	if err != nil || q.after < 0 {
		<-ctx.Done()
		return t, ctx.Err()
	}
	select {
	case <-time.After(q.after - time.Since(q.start)):
		return q.fakeQueue.Cancel(ctx, id)
	case <-ctx.Done():
		return t, ctx.Err()
	}
}

const firstID = "0193a000-0000-7000-8000-000000000001"

func TestTheHostIsLate(t *testing.T) {
	for _, tt := range []struct {
		name, tool, id string
		after          time.Duration
		broken         bool
		want           string
		took           time.Duration
	}{
		{"a short id that comes", "get_request", "r1", 120 * time.Millisecond, false, `"status":"pending"`, 150 * time.Millisecond},
		{"a short id that nobody has", "get_request", "r1", -1, false, `no request "r1"`, 500 * time.Millisecond},
		{"a short id in upper case", "get_request", "R1", 0, false, `no request "R1"`, 500 * time.Millisecond},
		{"no id at all", "get_request", "first", -1, false, `no request "first"`, 0},
		{"wait for a short id that comes", "wait_for_decision", "r1", 120 * time.Millisecond, false, `"status":"cancelled"`, 150 * time.Millisecond},
		{"a cancellation confirmed", "cancel_request", firstID, 300 * time.Millisecond, false, "cancelled; nothing was changed", 300 * time.Millisecond},
		{"a cancellation by a short id that comes", "cancel_request", "r1", 120 * time.Millisecond, false, "cancelled; nothing was changed", 150 * time.Millisecond},
		{"a cancellation not confirmed", "cancel_request", firstID, -1, false, "taken back; nothing more to do", time.Second},
		{"a wait that fails", "cancel_request", firstID, -1, true, "taken back; nothing more to do", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := &lateQueue{fakeQueue: newFakeQueue(), start: time.Now(), after: tt.after, broken: tt.broken}
				b := newToolbox(t, q, &fakeEgress{})
				mustCall(t, b, "request_allowlist_change", `{"add":[{"host":"a.example.com"}],"reason":"x"}`)
				text, _ := b.call(t, tt.tool, fmt.Sprintf(`{"id":%q}`, tt.id))
				if !strings.Contains(text, tt.want) {
					t.Errorf("answer %s; want %s", text, tt.want)
				}
				if took := time.Since(q.start); took != tt.took {
					t.Errorf("took %s, not %s", took, tt.took)
				}
			})
		})
	}
}

// TestErrorsAreForReaders: what wrapping adds for programs is not told.
func TestErrorsAreForReaders(t *testing.T) {
	twice := fmt.Errorf("credential: %w: %w", fmt.Errorf("name: too long: %w", bottle.ErrInvalid), bottle.ErrInvalid)
	for _, tt := range []struct {
		err  error
		want string
	}{
		{twice, "credential: name: too long; correct that field and call again"},
		{errors.Join(twice), "credential: name: too long; correct that field and call again"},
		{fmt.Errorf("pending requests: cancel one: %w", bottle.ErrLimit), "pending requests: cancel one"},
		{fmt.Errorf("id: list_requests shows them: %w", bottle.ErrNotFound), "id: list_requests shows them"},
		{fmt.Errorf("request x is denied: %w", bottle.ErrState), "request x is denied; look with get_request at what has become of it"},
		{fmt.Errorf("records/x.json: %w", bottle.ErrTampered), "the queue's files don't agree with each other: tell the operator"},
	} {
		q := newFakeQueue()
		q.fail = tt.err
		if text, isError := newToolbox(t, q, &fakeEgress{}).call(t, "get_request", `{"id":"x"}`); !isError || text != tt.want {
			t.Errorf("%v: told %q; want %q", tt.err, text, tt.want)
		}
	}
	failed := newFakeQueue()
	b := newToolbox(t, failed, &fakeEgress{})
	mustCall(t, b, "request_allowlist_change", `{"add":[{"host":"a.example.com"}],"reason":"x"}`)
	failed.decide("r1", bottle.Answer{Status: bottle.Failed, Error: "routes[1].path: too long: invalid; old rules kept: invalid"})
	if text := mustCall(t, b, "get_request", `{"id":"r1"}`); strings.Contains(text, ": invalid") {
		t.Errorf("told %s", text)
	}
}
