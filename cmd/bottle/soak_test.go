package main_test

import (
	"context"
	"os"
	"sync"
	"testing"
	"time"
)

// A soakPlan says how long, how fast and how much.
type soakPlan struct {
	span      time.Duration
	kills     time.Duration // from one to the next
	perSecond int           // new connections
	tunnels   int
	agents    int
	decisions time.Duration // from one to the next: in a minute, agents may file 30 requests
	samples   time.Duration
	rounds    int // of SIGTERM and start again
}

func newSoakPlan(t *testing.T) soakPlan {
	t.Helper()
	p := soakPlan{span: 30 * time.Second, kills: 6 * time.Second, perSecond: 200, tunnels: 20, agents: 5, decisions: 2600 * time.Millisecond, samples: 500 * time.Millisecond, rounds: 3}
	if text := os.Getenv("BOTTLE_SOAK"); text != "" {
		d, err := time.ParseDuration(text)
		if err != nil || d < 10*time.Second {
			t.Fatalf("BOTTLE_SOAK %q: give a duration of 10s or more, such as 10m", text)
		}
		p.span = d
	}
	if p.span >= 2*time.Minute {
		p.kills, p.samples, p.rounds = 20*time.Second, 2*time.Second, 10
	}
	if soakRace { // these clients are then what takes the time, not what they measure
		p.perSecond = 20
	}
	return p
}

// TestSoak runs a bottle as its operator and its agents would, only without a pause, and
// counts what they lose. Its clients are:
//
//   - an operator, who decides what five agents ask for over MCP, takes grants back, and
//     edits both config files, alternately widening and narrowing (soak_operator_test.go);
//   - agents that always have a call waiting (soak_agent_test.go);
//   - 200 new connections a second, each with one request (soak_load_test.go);
//   - 20 tunnels, a stream of events and a long upload, which are held (soak_held_test.go);
//   - for each grant that is revoked, one that tries to go on (soak_probe_test.go).
//
// Meanwhile a daemon is killed every so often. What was under way through it is lost, and no
// supervisor could help that: it is counted apart. Nothing else may be lost, no connection
// refused, no decision doubled, no revoked host reached for more than a second.
//
// Next to it the same clients use a pipelock that is ended and started again (soak_plain_test.go).
//
// BOTTLE_SOAK is how long the bottle is soaked: 10m in make soak, and 30s otherwise.
func TestSoak(t *testing.T) {
	plan := newSoakPlan(t)
	up := newSoakUpstream(t)
	s := &soak{plan: plan, up: up, bottle: startSoakBottle(t, up), book: newSoakBook()}
	s.run(t)
	if err := s.bottle.stop(t.Context()); err != nil {
		s.book.fault("%v", err)
	}
	plain := runSoakPlain(t, up, plan.rounds, plan.perSecond, plan.tunnels, 2*time.Second)
	s.report(t, plain)
}

// A soak is the bottle's part of the run.
type soak struct {
	plan     soakPlan
	up       *soakUpstream
	bottle   *soakBottle
	book     *soakBook
	load     *soakLoad
	operator *soakOperator
	meter    *soakMeter
	from, to time.Time
}

// run starts every client, and returns when the last has ended.
func (s *soak) run(t *testing.T) {
	t.Helper()
	door, age, ledger := s.bottle.door, &soakAge{}, &soakLedger{}
	s.load = &soakLoad{door: door, host: soakOpen, port: s.up.port, path: "/open", book: s.book, age: age}
	s.meter = &soakMeter{bottle: s.bottle}
	s.meter.before = s.meter.sample()
	s.operator = &soakOperator{
		bottle: s.bottle, book: s.book, ledger: ledger, age: age, port: s.up.port, pace: s.plan.decisions,
		decided: map[string]*soakDecision{}, took: map[string][]time.Duration{},
	}
	held := &soakHeld{door: door, up: s.up, book: s.book, age: age}

	s.from = time.Now()
	// No deadline: a dial that begins just after one times out, before the context says that it is over.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	over := time.AfterFunc(s.plan.span, cancel)
	defer over.Stop()
	var agents, clients sync.WaitGroup
	for n := range s.plan.agents {
		a := &soakAgent{n: n, socket: s.bottle.dir.MCPSocket(), port: s.up.port, book: s.book, ledger: ledger}
		agents.Go(func() { a.run(ctx) })
	}
	for range s.plan.tunnels {
		clients.Go(func() { held.tunnel(ctx) })
	}
	clients.Go(func() { held.stream(ctx) })
	clients.Go(func() { held.upload(ctx) })
	clients.Go(func() { s.load.run(ctx, s.plan.perSecond) })
	clients.Go(func() { s.bottle.kills(ctx, s.plan.kills, s.from.Add(s.plan.span), s.book) })
	clients.Go(func() { s.meter.run(ctx, s.plan.samples) })
	s.operator.run(ctx)
	clients.Wait()
	s.to = time.Now()

	done := make(chan struct{})
	go func() { agents.Wait(); close(done) }()
	last, cancelLast := context.WithTimeout(t.Context(), time.Minute)
	defer cancelLast()
	if err := s.operator.finish(last, done); err != nil {
		s.book.fault("at the end: %v", err)
	}
	<-done // each gives up by itself
	s.meter.rest(t.Context())
}
