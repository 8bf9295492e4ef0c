package egress

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
)

// errCut is the cause of a context that a reload, or the end of a grant, cancelled.
var errCut = errors.New("no longer allowed")

// A registry holds what is open: an exchange in flight, an upgraded stream, a spliced tunnel.
//
// The order closes the race with a reload. Whoever opens something registers it, notes the
// generation, judges by the snapshot and the clock of then, leaves the question, and looks
// whether the generation is still that one; if not, it judges again. A reload, or the end
// of a grant, first takes effect, then raises the generation, then sweeps. So either the
// sweep finds the question, or the flow finds the generation raised.
type registry struct {
	generation atomic.Uint64

	mu    sync.Mutex
	flows map[*flow]struct{}
}

// A flow is something open.
type flow struct {
	// question is what allowed the flow, to be asked again; nil until it was allowed.
	question atomic.Pointer[func() bool]
	cancel   context.CancelCauseFunc
	conn     *clientConn // the agent's side
	stream   *stream     // of conn, if the flow is but one of several on it
	claimed  string      // the once grant that the flow has spent; its own goroutine alone reads it
	entry    *entry      // of the access log
}

func newRegistry() *registry { return &registry{flows: map[*flow]struct{}{}} }

func (r *registry) add(f *flow) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.flows[f] = struct{}{}
}

func (r *registry) len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.flows)
}

func (r *registry) remove(f *flow) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.flows, f)
}

// forget takes a flow that is over out of the registry, and says so of the grant that it
// had spent.
func (s *Server) forget(f *flow) {
	s.flows.remove(f)
	if f.claimed == "" {
		return
	}
	if err := s.spent.done(f.claimed); err != nil {
		s.log.Warn("a grant that is used up stays listed as open until the next start", "grant", f.claimed, "err", err)
	}
}

// sweep asks every flow's question again and cuts those that it no longer allows. It
// returns how many. It does not wait for the network.
func (r *registry) sweep() int {
	r.generation.Add(1)
	r.mu.Lock()
	open := make([]*flow, 0, len(r.flows))
	for f := range r.flows {
		open = append(open, f)
	}
	r.mu.Unlock()
	n := 0
	for _, f := range open {
		if allowed := f.question.Load(); allowed != nil && !(*allowed)() {
			f.cut()
			n++
		}
	}
	return n
}

// cut ends both sides. The agent's gets a reset, not an end of file: what it has so far
// must not pass for a whole answer, and nothing that still lies in a buffer goes out.
func (f *flow) cut() {
	if f.stream != nil {
		f.cancel(errCut)
		f.stream.reset()
		return
	}
	_ = f.conn.SetLinger(0)
	f.cancel(errCut)
	_ = f.conn.Close()
}
