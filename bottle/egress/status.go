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

// writeStatus says what is in force. It is called after that is so, never before.
func (s *Server) writeStatus(refused *bottle.Refusal) {
	snap := s.snap.Load()
	st := bottle.DaemonStatus{
		Schema: bottle.Schema, Daemon: bottle.DaemonEgress, PID: os.Getpid(), Instance: s.instance,
		Revision: snap.revision, LoadedAt: snap.loadedAt, Refused: refused,
		Listen: s.addr, Needs: s.keys.needs(), Counters: map[string]uint64{},
	}
	for c := range counters {
		st.Counters[c.String()] = s.counts[c].Load()
	}
	st.Counters["connections"] = uint64(s.listener.len()) //nolint:gosec // G115: a length
	if err := bottle.WriteStatus(s.cfg.StatusPath, st); err != nil {
		s.log.Error("status can't be written, so that no change can be confirmed", "error", err)
	}
}
