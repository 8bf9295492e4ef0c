package mcp

import (
	"context"
	"errors"
	"fmt"
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
	t, err := s.queue.Get(ctx, in.ID)
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
	return s.byID(ctx, req, s.queue.Get)
}

func (s *Server) cancelRequest(ctx context.Context, req request) (any, error) {
	return s.byID(ctx, req, s.queue.Cancel)
}

func (s *Server) byID(ctx context.Context, req request, do func(context.Context, string) (bottle.Ticket, error)) (any, error) {
	in, err := decode[struct {
		ID string `json:"id"`
	}](req)
	if err != nil {
		return nil, err
	}
	t, err := do(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	return newTicketResult(t), nil
}

func (s *Server) listRequests(ctx context.Context, _ request) (any, error) {
	tickets, err := s.queue.List(ctx)
	if err != nil {
		return nil, err
	}
	return newTicketList(tickets), nil
}
