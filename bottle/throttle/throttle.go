// Package throttle bounds how fast an agent can make a daemon write its log.
//
// Whoever may cause a line may cause a million, and each can be new in some way: a host, a
// path, a reason. A full disk would then stand in the way of a revocation. So what an agent
// causes is logged at a bounded rate, and of the rest the number is: the log says that
// there was more. What the operator causes goes to the log by itself, so that no flood of
// the agent's hides it.
package throttle

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// PerSecond is the number of lines that pass in a second, and at once after a quiet one.
const PerSecond = 10

// A Handler passes on [PerSecond] records a second, by their own time, and drops the rest.
// The first that passes after some were dropped is preceded by a record with their number.
// All handlers derived from one share its rate.
type Handler struct {
	next  slog.Handler
	state *state
}

type state struct {
	root slog.Handler // without what With added: the number dropped is of no one record

	mu      sync.Mutex
	tokens  float64
	last    time.Time
	dropped int
}

// New returns a handler in front of next.
func New(next slog.Handler) *Handler {
	return &Handler{next: next, state: &state{root: next, tokens: PerSecond}}
}

// Enabled implements [slog.Handler].
func (h *Handler) Enabled(ctx context.Context, l slog.Level) bool { return h.next.Enabled(ctx, l) }

// Handle implements [slog.Handler].
func (h *Handler) Handle(ctx context.Context, r slog.Record) error {
	ok, dropped := h.state.take(r.Time)
	if !ok {
		return nil
	}
	if dropped > 0 {
		more := slog.NewRecord(r.Time, slog.LevelWarn, "more than is logged of what the agent causes", 0)
		more.AddAttrs(slog.Int("left_out", dropped))
		if err := h.state.root.Handle(ctx, more); err != nil {
			return err
		}
	}
	return h.next.Handle(ctx, r)
}

// WithAttrs implements [slog.Handler].
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &Handler{next: h.next.WithAttrs(attrs), state: h.state}
}

// WithGroup implements [slog.Handler].
func (h *Handler) WithGroup(name string) slog.Handler {
	return &Handler{next: h.next.WithGroup(name), state: h.state}
}

// take takes a token of the bucket, and on success the number of records dropped before.
func (s *state) take(now time.Time) (ok bool, dropped int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if since := now.Sub(s.last); since > 0 {
		s.tokens = min(s.tokens+since.Seconds()*PerSecond, PerSecond)
		s.last = now
	}
	if s.tokens < 1 {
		s.dropped++
		return false, 0
	}
	s.tokens--
	dropped, s.dropped = s.dropped, 0
	return true, dropped
}
