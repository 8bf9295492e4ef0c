package mcp

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"sync"
	"time"

	protocol "github.com/mark3labs/mcp-go/mcp"

	"bottle/bottle"
)

// defaultWait is how long wait_for_decision waits if the call doesn't say.
const defaultWait = 60

// progressEvery is well below the 20 s after which an impatient client might give up.
const progressEvery = 15 * time.Second

func (s *Server) submit(ctx context.Context, req request) (any, error) {
	in, err := decode[struct {
		bottle.Ask
		WaitSeconds int `json:"wait_seconds"`
	}](req)
	if err != nil {
		return nil, err
	}
	in.Kind = bottle.KindAccess
	t, err := s.queue.Submit(ctx, in.Ask, req.key)
	if err != nil {
		return nil, err
	}
	if slot := taskSlotOf(ctx); slot != nil && !t.Status().Decided() {
		slot.ticket = &t // the client looks itself, so there is nothing to wait for
		return newTicketResult(t), nil
	}
	if in.WaitSeconds > 0 && !t.Status().Decided() {
		joined := t.Joined
		if t, err = s.wait(ctx, t, time.Duration(in.WaitSeconds)*time.Second, req.token); err != nil {
			return nil, err
		}
		t.Joined = joined
	}
	return newTicketResult(t), nil
}

func (s *Server) waitForDecision(ctx context.Context, req request) (any, error) {
	in, err := decode[struct {
		ID             string `json:"id"`
		TimeoutSeconds *int   `json:"timeout_seconds"`
	}](req)
	if err != nil {
		return nil, err
	}
	seconds := defaultWait
	if in.TimeoutSeconds != nil {
		seconds = *in.TimeoutSeconds
	}
	t, err := known(ctx, s.queue.Get, in.ID)
	if err != nil {
		return nil, err
	}
	if seconds > 0 && !t.Status().Decided() {
		if t, err = s.wait(ctx, t, time.Duration(seconds)*time.Second, req.token); err != nil {
			return nil, err
		}
	}
	return newTicketResult(t), nil
}

// wait returns the ticket when it is decided or when the time is up, which is no error.
// Meanwhile it reports progress; the text tells nothing that the agent wrote.
func (s *Server) wait(ctx context.Context, t bottle.Ticket, limit time.Duration, token protocol.ProgressToken) (bottle.Ticket, error) {
	begin := time.Now()
	timed, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var reporter sync.WaitGroup
	defer reporter.Wait()
	if token != nil {
		stopped := make(chan struct{})
		defer close(stopped)
		reporter.Go(func() {
			tick := time.NewTicker(progressEvery)
			defer tick.Stop()
			for {
				waited := time.Since(begin).Round(time.Second)
				progress(ctx, token, waited.Seconds(), limit.Seconds(),
					fmt.Sprintf("request %s waits for the operator: %s of at most %s", nameOf(t), waited, limit))
				select {
				case <-tick.C:
				case <-stopped:
					return
				}
			}
		})
	}
	latest, err := s.queue.Wait(timed, t.Request.ID)
	switch {
	case ctx.Err() != nil:
		return t, ctx.Err()
	case errors.Is(err, context.DeadlineExceeded):
		if latest.Request.ID == "" {
			latest = t
		}
		return latest, nil
	}
	return latest, err
}

func (s *Server) getRequest(ctx context.Context, req request) (any, error) {
	t, err := byID(ctx, req, s.queue.Get)
	if err != nil {
		return nil, err
	}
	return newTicketResult(t), nil
}

// cancelWait is how long cancel_request waits for the host to confirm.
const cancelWait = time.Second

// cancelRequest waits a little for the host's answer, which is usually quick. Without it the
// cancellation is filed all the same, so there is nothing left for the agent to do.
func (s *Server) cancelRequest(ctx context.Context, req request) (any, error) {
	t, err := byID(ctx, req, s.queue.Cancel)
	if err != nil {
		return nil, err
	}
	if !t.Status().Decided() {
		latest, err := s.wait(ctx, t, cancelWait, nil)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err == nil: // a wait that fails undoes nothing
			t = latest
		}
	}
	r := newTicketResult(t)
	if r.Status == bottle.Pending {
		r.Next = "taken back; nothing more to do"
	}
	return r, nil
}

type lookup = func(ctx context.Context, id string) (bottle.Ticket, error)

func byID(ctx context.Context, req request, find lookup) (bottle.Ticket, error) {
	in, err := decode[struct {
		ID string `json:"id"`
	}](req)
	if err != nil {
		return bottle.Ticket{}, err
	}
	return known(ctx, find, in.ID)
}

// The host gives a request its short ID a moment after it was filed. So long, and so often,
// is a short ID that nobody knows looked up again.
const (
	shortWait  = 500 * time.Millisecond
	shortEvery = 50 * time.Millisecond
)

var shortID = regexp.MustCompile(`^[rR][1-9][0-9]{0,8}$`)

// known looks a request up, and gives a short ID time to become known.
func known(ctx context.Context, find lookup, id string) (bottle.Ticket, error) {
	t, err := find(ctx, id)
	if !errors.Is(err, bottle.ErrNotFound) || !shortID.MatchString(id) {
		return t, err
	}
	limit, tick := time.NewTimer(shortWait), time.NewTicker(shortEvery)
	defer limit.Stop()
	defer tick.Stop()
	for errors.Is(err, bottle.ErrNotFound) {
		select {
		case <-tick.C:
			t, err = find(ctx, id)
		case <-limit.C:
			return t, err
		case <-ctx.Done():
			return bottle.Ticket{}, ctx.Err()
		}
	}
	return t, err
}

func (s *Server) listRequests(ctx context.Context, _ request) (any, error) {
	tickets, err := s.queue.List(ctx)
	if err != nil {
		return nil, err
	}
	return newTicketList(tickets), nil
}
