package main_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// maxOldPipelocks is how many replaced pipelocks the supervisor lets drain at a time. The
// fourth ends the oldest, and what it still carries: so a client that knows it holds a
// connection across three replacements and then renews it, and one that is cut before that
// was cut by an apply.
const maxOldPipelocks = 3

// A soakAge tells flows when they have lived through as many replacements as they can. Those
// that are not held end by themselves, and are waited for: on a busy machine a connection
// may take as long as several replacements.
type soakAge struct {
	mu           sync.Mutex
	replacements int
	flows        map[*soakFlow]struct{}
}

// A soakFlow is one connection.
type soakFlow struct {
	born  int           // replacements before it
	renew chan struct{} // holds a token: time to renew
}

func (a *soakAge) enter() *soakFlow {
	a.mu.Lock()
	defer a.mu.Unlock()
	f := &soakFlow{a.replacements, make(chan struct{}, 1)}
	if a.flows == nil {
		a.flows = map[*soakFlow]struct{}{}
	}
	a.flows[f] = struct{}{}
	return f
}

func (a *soakAge) leave(f *soakFlow) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.flows, f)
}

// replace makes way for n replacements: it returns, and counts them, when no flow is left
// that would not outlive them.
func (a *soakAge) replace(ctx context.Context, n int) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(2 * soakPatience); ; {
		a.mu.Lock()
		old := 0
		for f := range a.flows {
			if a.replacements+n-f.born > maxOldPipelocks {
				old++
				select {
				case f.renew <- struct{}{}:
				default: // it has been told
				}
			}
		}
		if old == 0 {
			a.replacements += n
			a.mu.Unlock()
			return nil
		}
		a.mu.Unlock()
		if time.Now().After(end) {
			return fmt.Errorf("%d held connections are not renewed after %s", old, 2*soakPatience)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// A soakHeld holds connections and makes them anew: those that were cut, and those whose
// time has come.
type soakHeld struct {
	door soakDoor
	up   *soakUpstream
	book *soakBook
	age  *soakAge
}

// A soakSession is what goes on in a held connection.
type soakSession struct {
	conn net.Conn
	next func() error // waits for what comes next, and checks it; io.EOF: it is over, as it should be
	beat func() error // says something; nil: it only listens
	// finish brings it to its end, after which next must return io.EOF; nil: there is no such end.
	finish func() error
}

// keep holds a connection of a kind until ctx ends.
func (h *soakHeld) keep(ctx context.Context, kind string, every time.Duration, open func(ctx context.Context) (soakSession, error)) {
	for ctx.Err() == nil {
		f := h.age.enter()
		began := time.Now()
		s, err := open(ctx)
		switch {
		case err == nil:
			h.book.count(kind)
			if err := h.hold(ctx, f, every, s); err != nil {
				h.book.lost(kind, began, err)
			}
			_ = s.conn.Close()
		case ctx.Err() == nil:
			h.book.lost(kindAgain, began, err)
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond): // not to count one outage a thousand times
			}
		}
		h.age.leave(f)
	}
}

func (h *soakHeld) hold(ctx context.Context, f *soakFlow, every time.Duration, s soakSession) error {
	heard, gone := make(chan error), make(chan struct{})
	var listener sync.WaitGroup
	defer listener.Wait()
	defer s.conn.Close()
	defer close(gone)
	listener.Go(func() {
		for {
			err := s.next()
			select {
			case heard <- err:
			case <-gone:
				return
			}
			if err != nil {
				return
			}
		}
	})
	tick := time.NewTicker(every)
	defer tick.Stop()
	for last := time.Now(); ; {
		select {
		case err := <-heard:
			if err != nil {
				return err
			}
			last = time.Now()
		case <-ctx.Done():
			return endSession(s, heard)
		case <-f.renew:
			h.book.count("renewed")
			return endSession(s, heard)
		case now := <-tick.C:
			if s.finish == nil && now.Sub(last) > soakPatience {
				return fmt.Errorf("nothing came for %s", soakPatience)
			}
			if s.beat == nil {
				continue
			}
			if err := s.beat(); err != nil {
				return err
			}
		}
	}
}

func endSession(s soakSession, heard <-chan error) error {
	if s.finish == nil {
		return nil
	}
	if err := s.finish(); err != nil {
		return err
	}
	select {
	case err := <-heard:
		if err == io.EOF { //nolint:errorlint // the session's own word, not a cut
			return nil
		}
		return err
	case <-time.After(soakPatience):
		return fmt.Errorf("no end after %s", soakPatience)
	}
}
