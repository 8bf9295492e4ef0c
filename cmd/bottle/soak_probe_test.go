package main_test

import (
	"context"
	"fmt"
	"time"

	"bottle/bottle"
	"bottle/bottle/audit"
)

// revokedWithin is how long a revoked host may still be reached: issue and THREATS say so.
const revokedWithin = time.Second

// A soakProbe uses a grant, and goes on trying when it is revoked.
type soakProbe struct {
	o      *soakOperator
	ask    soakAsk
	signal chan time.Time // when the revocation was done
}

func newSoakProbe(o *soakOperator, ask soakAsk) *soakProbe {
	return &soakProbe{o, ask, make(chan time.Time, 2)}
}

// begin sees that the grant is in force, opens a stream in it, and goes on with both until
// a while after revoked was called.
func (p *soakProbe) begin(ctx context.Context) {
	door, port := p.o.bottle.door, p.o.port
	for try := 0; ; try++ {
		began := time.Now()
		_, err := door.get(ctx, p.ask.host, port, p.ask.path)
		if err == nil {
			break
		}
		p.o.book.lost(kindConn, began, fmt.Errorf("%s%s was granted: %w", p.ask.host, p.ask.path, err))
		if try == 3 {
			p.o.book.fault("%s%s was granted, but is not reached", p.ask.host, p.ask.path)
			break
		}
	}
	stream := make(chan time.Time, 1)
	opened := make(chan struct{})
	p.o.probes.Go(func() {
		defer close(stream)
		began := time.Now()
		c, r, err := door.stream(ctx, p.ask.host, port, p.ask.path+"/stream", "")
		close(opened)
		if err != nil {
			p.o.book.lost(kindConn, began, err)
			return
		}
		defer c.Close()
		_ = c.SetReadDeadline(time.Now().Add(time.Minute)) // far beyond what a revocation takes
		for err == nil {
			_, err = r.ReadString('\n')
		}
		stream <- time.Now()
	})
	<-opened
	p.o.probes.Go(func() { p.try(ctx) })
	p.o.probes.Go(func() { p.watch(stream) })
}

// revoked says that the revocation is done.
func (p *soakProbe) revoked(at time.Time) { p.signal <- at; p.signal <- at }

// try makes a new connection after the other, and finds the last that got through.
func (p *soakProbe) try(ctx context.Context) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var last, at time.Time // the start of the last that reached the host; the revocation
	for at.IsZero() || time.Since(at) < revokedWithin+300*time.Millisecond {
		f := p.o.age.enter()
		began := time.Now()
		_, err := p.o.bottle.door.get(ctx, p.ask.host, p.o.port, p.ask.path)
		p.o.age.leave(f)
		switch class := classOf(err); {
		case err == nil:
			last = began
		case class == classRefused, class == classTimeout: // what is revoked is answered or cut, and at once
			p.o.book.lost(kindConn, began, err)
		}
		select {
		case at = <-p.signal:
		case <-tick.C:
		}
	}
	p.o.book.count("probed after a revocation")
	if d := last.Sub(at); d > 0 {
		p.o.book.longest("reached after a revocation", d)
		if d > revokedWithin {
			p.o.book.fault("%s%s was reached %s after its revocation", p.ask.host, p.ask.path, d.Round(time.Millisecond))
		}
	}
}

// watch sees that the stream ends in time.
func (p *soakProbe) watch(stream <-chan time.Time) {
	end, opened := <-stream
	at := <-p.signal
	if !opened {
		return
	}
	d := max(0, end.Sub(at)) // cut before the command had returned, or by a kill
	p.o.book.count("streams cut by a revocation")
	p.o.book.longest("stream cut after a revocation", d)
	if d > revokedWithin {
		p.o.book.fault("a stream of %s%s was cut %s after its revocation", p.ask.host, p.ask.path, d.Round(time.Millisecond))
	}
}

// finish denies what waits until no agent asks any more, revokes what is granted, and holds
// what every agent was told against what the operator did, and against the audit trail.
func (o *soakOperator) finish(ctx context.Context, agents <-chan struct{}) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for done := false; !done; {
		wait, err := o.waiting(ctx)
		if err != nil {
			return err
		}
		for _, w := range wait {
			o.deny(ctx, w)
		}
		select {
		case <-agents:
			done = true
		case <-ctx.Done():
			return fmt.Errorf("agents still wait: %w", ctx.Err())
		case <-tick.C:
		}
	}
	o.revokeAllBut(ctx, 0)
	o.probes.Wait()
	return o.account()
}

// account finds each request that was lost, or decided otherwise than once.
func (o *soakOperator) account() error {
	events, err := o.events()
	if err != nil {
		return err
	}
	for _, ask := range o.ledger.asks {
		if ask.id == "" {
			continue // the agent has said why
		}
		d, have := o.decided[ask.id], events[ask.id]
		delete(events, ask.id)
		if d == nil {
			o.book.fault("request %s of %s was never seen by the operator; the trail has %v", ask.id, ask.path, have)
			continue
		}
		want := map[audit.Event]int{audit.RequestSeen: 1}
		switch d.status { //nolint:exhaustive // no others are written down
		case bottle.Denied:
			want[audit.Denied] = 1
		case bottle.Applied:
			want[audit.Applied] = 1
			if d.revoked {
				want[audit.Revoked] = 1
			}
		case bottle.Failed:
			want[audit.Failed] = 1
		}
		for _, e := range []audit.Event{audit.RequestSeen, audit.Denied, audit.Applied, audit.Failed, audit.Revoked} {
			if have[e] != want[e] {
				o.book.fault("%s was %s: the trail has %d times %q, not %d", d.short, d.status, have[e], e, want[e])
			}
		}
		if told := ask.told; told != d.status && (told != bottle.Revoked || !d.revoked) {
			o.book.fault("%s was %s, but its agent was told %q", d.short, d.status, told)
		}
		o.book.count("decisions accounted for")
	}
	for id, have := range events {
		o.book.fault("the trail has a request that no agent made: %s %v", id, have)
	}
	return nil
}

// events counts the trail's events of each request.
func (o *soakOperator) events() (map[string]map[audit.Event]int, error) {
	out := map[string]map[audit.Event]int{}
	for from := uint64(1); ; {
		list, err := audit.Read(o.bottle.dir.Audit(), from, audit.MaxRead)
		if err != nil {
			return nil, err
		}
		if len(list) == 0 {
			return out, nil
		}
		for _, e := range list {
			from = e.Seq + 1
			if e.Request == "" {
				continue
			}
			if out[e.Request] == nil {
				out[e.Request] = map[audit.Event]int{}
			}
			out[e.Request][e.Event]++
		}
	}
}
