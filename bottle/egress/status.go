package egress

import (
	"os"
	"sync/atomic"

	"bottle/bottle"
)

// A counter is something that the status counts.
type counter int

const (
	countRequests counter = iota // judged
	countRefused                 // forbidden
	countTunnels                 // CONNECTs accepted
	countCut                     // cut by a reload or the end of a grant
	counters
)

func (c counter) String() string {
	return [counters]string{"requests", "refused", "tunnels", "cut"}[c]
}

type counts [counters]atomic.Uint64

func (s *Server) count(c counter) { s.counts[c].Add(1) }

// A verdict is what came of the newest reload. The zero one means that all went well.
type verdict struct {
	refused *bottle.Refusal // the routes
	hop     error           // why hop.json could not be followed
}

// report says what is in force. It is called after that is so, never before.
func (s *Server) report(v verdict) {
	snap := s.snap.Load()
	st := bottle.DaemonStatus{
		Schema: bottle.Schema, Daemon: bottle.DaemonEgress, PID: os.Getpid(), Instance: s.instance,
		Revision: snap.revision, LoadedAt: snap.loadedAt, Refused: v.refused,
		Listen: s.listener.Addr().String(), Hop: s.hop.address(), Needs: s.keys.needs(), Counters: map[string]uint64{},
	}
	for c := range counters {
		st.Counters[c.String()] = s.counts[c].Load()
	}
	st.Counters["connections"] = uint64(s.crowd.len()) //nolint:gosec // G115: a length
	if v.hop != nil {
		st.Error = v.hop.Error()
	}
	if err := s.cfg.Report(st); err != nil {
		s.log.Error("status can't be told, so that no change can be confirmed", "error", err)
	}
}
