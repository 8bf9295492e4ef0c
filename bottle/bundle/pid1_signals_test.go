package bundle_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"

	"bottle/bottle"
)

// A revision that was published is confirmed, however many signals ask for it, and no older one
// is ever said to be in force after it.
func TestSignalsCoalesce(t *testing.T) {
	b := newBed(t)
	b.start()
	b.ready()
	rng := rand.New(rand.NewPCG(3, 4))
	seen := &ledger{order: map[bottle.Hash]int{}}
	quit := make(chan struct{})
	var watchers sync.WaitGroup
	for _, d := range []string{bottle.DaemonEgress, bottle.DaemonPipelock} {
		watchers.Go(func() {
			tick := time.NewTicker(500 * time.Microsecond)
			defer tick.Stop()
			newest := 0
			for {
				select {
				case <-quit:
					return
				case <-tick.C:
				}
				n := seen.number(b.daemonStatus(d).Revision)
				if n != 0 && n < newest {
					t.Errorf("%s: revision %d after %d", d, n, newest)
				}
				newest = max(newest, n)
			}
		})
	}
	for round := 1; round <= 300; round++ {
		var signals []bottle.Signal
		which := 1 + rng.IntN(3) // egress' file, pipelock's, both
		var routes, pipelock bottle.Hash
		if which&1 != 0 {
			routes = seen.write(b, bottle.RoutesFile, fmt.Sprintf("routes: [] # %d\n", round))
			signals = append(signals, bottle.SignalReload)
		}
		if which&2 != 0 {
			pipelock = seen.write(b, bottle.PipelockFile, fmt.Sprintf("mode: strict # %d\n", round))
			if round%15 == 0 {
				signals = append(signals, bottle.SignalReplacePipelock)
			} else {
				signals = append(signals, bottle.SignalReloadPipelock)
			}
		}
		var senders sync.WaitGroup
		for _, s := range signals {
			for range 1 + rng.IntN(20) {
				senders.Go(func() { _ = b.cmd.Process.Signal(syscall.Signal(s)) })
			}
		}
		senders.Wait()
		eventually(t, fmt.Sprintf("round %d in force", round), func() bool {
			return (routes == "" || b.daemonStatus(bottle.DaemonEgress).Revision == routes) &&
				(pipelock == "" || b.daemonStatus(bottle.DaemonPipelock).Revision == pipelock)
		})
	}
	close(quit)
	watchers.Wait()
	st := b.ready()
	for _, name := range []string{bottle.DaemonEgress, bottle.DaemonSupervise} {
		if st.Daemons[name].Restarts != 0 {
			t.Errorf("%s: %+v", name, st.Daemons[name])
		}
	}
	for _, name := range []string{bottle.DaemonEgress, bottle.DaemonPipelock} {
		if e := b.daemonStatus(name).Error; e != "" {
			t.Errorf("%s saw a file that is not verified: %s", name, e)
		}
	}
}

// A ledger numbers the revisions in the order in which they were written.
type ledger struct {
	mu    sync.Mutex
	order map[bottle.Hash]int
}

// write enters the revision before anybody can read it.
func (l *ledger) write(b *bed, file, body string) bottle.Hash {
	b.t.Helper()
	_, rev := bottle.Seal([]byte(body))
	l.mu.Lock()
	l.order[rev] = len(l.order) + 1
	l.mu.Unlock()
	return b.write(file, body)
}

// number is 0 for what was never written.
func (l *ledger) number(rev bottle.Hash) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.order[rev]
}
