package claudetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
)

// maxRequest bounds a request's body, in bytes. The tools alone are some hundred KiB.
const maxRequest = 32 << 20

// idle is what the model says where the script has nothing for it.
const idle = "Noted."

// A Server is a Messages API that follows a script. It is safe for concurrent use.
type Server struct {
	http *httptest.Server

	mu       sync.Mutex
	script   []Step // those that are left
	requests []Request
	changed  chan struct{} // closed at each request and fault
	err      error         // all faults
}

// New starts a server on a port of the loopback's. The caller closes it.
func New(script ...Step) *Server {
	s := &Server{script: script, changed: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/messages", s.serve)
	mux.HandleFunc("POST /v1/messages/count_tokens", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, map[string]int{"input_tokens": 1000})
	})
	s.http = httptest.NewServer(mux)
	return s
}

// Close ends the server, and waits for requests in hand.
func (s *Server) Close() { s.http.Close() }

// URL is what ANTHROPIC_BASE_URL is to be.
func (s *Server) URL() string { return s.http.URL }

// Left returns the steps that were not taken, and the faults of requests and steps.
func (s *Server) Left() ([]Step, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.script, s.err
}

// Requests returns what was asked so far, and a channel that is closed when there is more.
func (s *Server) Requests() ([]Request, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Request(nil), s.requests...), s.changed
}

// Await returns when at most left steps are left. Its error tells what came instead.
func (s *Server) Await(ctx context.Context, left int) error {
	for {
		s.mu.Lock()
		script, changed, err := s.script, s.changed, s.err
		last := "nothing"
		if n := len(s.requests); n > 0 {
			last = s.requests[n-1].Last
		}
		s.mu.Unlock()
		if len(script) <= left || err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("claudetest: %d steps are left, the next on %q: %w; what came last is %q", len(script), script[0].On, ctx.Err(), clip(last))
		}
	}
}

// next takes the request down, and the step that it calls for off the script.
func (s *Server) next(r Request) (step Step, id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, r)
	s.wake()
	id = fmt.Sprintf("msg_%d", len(s.requests))
	if len(r.Tools) == 0 || len(s.script) == 0 || !strings.Contains(r.Last, s.script[0].On) {
		return Step{Say: idle}, id
	}
	step = s.script[0]
	s.script = s.script[1:]
	return step, id
}

// wake tells all who wait that something has changed. It is called with the lock held.
func (s *Server) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Server) serve(w http.ResponseWriter, req *http.Request) {
	var in wireRequest
	if err := json.NewDecoder(io.LimitReader(req.Body, maxRequest)).Decode(&in); err != nil {
		s.fail(w, fmt.Errorf("claudetest: request: %w", err))
		return
	}
	step, id := s.next(in.request())
	m, err := newMessage(id, in.Model, step)
	switch {
	case err != nil:
		s.fail(w, fmt.Errorf("claudetest: step on %q: %w", step.On, err))
	case in.Stream:
		w.Header().Set("Content-Type", "text/event-stream")
		for _, e := range m.events() {
			if err := e.write(w); err != nil {
				return // the client has gone
			}
		}
	default:
		writeJSON(w, m)
	}
}

func (s *Server) fail(w http.ResponseWriter, err error) {
	s.mu.Lock()
	s.err = errors.Join(s.err, err)
	s.wake()
	s.mu.Unlock()
	http.Error(w, err.Error(), http.StatusBadRequest)
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // a client that has gone needs no answer
}
