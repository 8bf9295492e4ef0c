package queue

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"bottle/bottle"
)

// Get returns the ticket of a request by its UUID or short ID, or [bottle.ErrNotFound].
func (s *Spool) Get(ctx context.Context, id string) (bottle.Ticket, error) {
	if err := ctx.Err(); err != nil {
		return bottle.Ticket{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	id, err := s.resolve(id)
	if err != nil {
		return bottle.Ticket{}, err
	}
	s.refresh(id)
	return s.ticket(id), nil
}

// List returns all tickets, newest first.
func (s *Spool) List(ctx context.Context) ([]bottle.Ticket, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]bottle.Ticket, 0, len(s.requests))
	for id := range s.requests {
		s.refresh(id)
		out = append(out, s.ticket(id))
	}
	// UUIDv7 begins with the time.
	slices.SortFunc(out, func(a, b bottle.Ticket) int { return strings.Compare(b.Request.ID, a.Request.ID) })
	return out, nil
}

// Cancel tells the host, durably, that a request is no longer wanted, and returns the
// ticket so far: it is cancelled when the host says so, see [Spool.Wait]. What is decided
// already gives [bottle.ErrState].
func (s *Spool) Cancel(ctx context.Context, id string) (bottle.Ticket, error) {
	if err := ctx.Err(); err != nil {
		return bottle.Ticket{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	id, err := s.resolve(id)
	if err != nil {
		return bottle.Ticket{}, err
	}
	s.refresh(id)
	t := s.ticket(id)
	switch st := t.Status(); {
	case st == bottle.Cancelled:
		return t, nil
	case st != bottle.Pending:
		return t, fmt.Errorf("id: request %s is %s and can't be cancelled any more: %w", id, st, bottle.ErrState)
	case s.leaving[id]:
		return t, nil
	}
	if err := bottle.WriteJSON(filepath.Join(s.cfg.Cancels, id+ext), cancel{Schema: bottle.Schema, ID: id}); err != nil {
		return t, fmt.Errorf("file the cancellation: %w", err)
	}
	s.leaving[id] = true
	return t, nil
}

// Wait returns the ticket once it is decided. When ctx is done before, it returns the
// ticket so far and ctx's error; when the spool is closed, [fs.ErrClosed].
func (s *Spool) Wait(ctx context.Context, id string) (bottle.Ticket, error) {
	s.mu.Lock()
	id, err := s.resolve(id)
	s.mu.Unlock()
	if err != nil {
		return bottle.Ticket{}, err
	}
	changed, leave := s.watch.join(id)
	defer leave()
	for {
		s.mu.Lock()
		s.refresh(id)
		t := s.ticket(id)
		s.mu.Unlock()
		if t.Status().Decided() {
			return t, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return t, ctx.Err()
		case <-s.watch.done:
			return t, fmt.Errorf("wait for request %s: the queue is shutting down: %w", id, fs.ErrClosed)
		}
	}
}

// resolve turns a UUID or short ID into the UUID of a request of ours.
func (s *Spool) resolve(id string) (string, error) {
	low := strings.ToLower(strings.TrimSpace(id))
	if s.requests[low] != nil {
		return low, nil
	}
	if shortNumber(low) > 0 {
		if full, ok := s.shorts[low]; ok {
			return full, nil
		}
		for id := range s.requests {
			if s.answers[id] == nil {
				s.refresh(id)
			}
		}
		if full, ok := s.shorts[low]; ok {
			return full, nil
		}
	}
	if len(id) > 40 {
		id = id[:40]
	}
	return "", fmt.Errorf("id: no request %q in this bottle; list_requests shows those that there are: %w", id, bottle.ErrNotFound)
}

// refresh reads the host's answer anew, unless the last one was final.
func (s *Spool) refresh(id string) {
	if a := s.answers[id]; a != nil && a.Status.Final() {
		return
	}
	var a bottle.Answer
	err := bottle.ReadJSON(filepath.Join(s.cfg.Decisions, id+ext), maxAnswer, &a)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return
	case err == nil && a.ID != id:
		err = fmt.Errorf("it answers request %q: %w", a.ID, bottle.ErrCorrupt)
	}
	if err != nil {
		// The last good answer stands; the host writes it anew from its record.
		s.cfg.Logger.Warn("can't read the answer to a request", "request", id, "error", err)
		return
	}
	s.answers[id] = &a
	if shortNumber(a.Short) > 0 {
		s.shorts[a.Short] = id
	}
	if a.Status.Decided() {
		delete(s.open, id)
		delete(s.leaving, id)
	}
}

func (s *Spool) ticket(id string) bottle.Ticket {
	t := bottle.Ticket{Request: *s.requests[id]}
	if a := s.answers[id]; a != nil {
		c := *a
		t.Answer = &c
	}
	return t
}
