package egress

import (
	"os"
	"sync/atomic"
	"time"

	"bottle/bottle"
)

// A counter is something that the status counts, since this process began. What is long is
// counted when it ends.
type counter int

const (
	countRequests        counter = iota // judged
	countAllowed                        // requests and tunnels that got through
	countRefused                        // requests and tunnels that were forbidden
	countRefusedEgress                  // of those, by egress
	countRefusedPipelock                // and by pipelock
	countFailed                         // nothing forbade it, but it did not work
	countUpstream                       // of those, for the upstream's sake
	countTunnels                        // CONNECTs accepted
	countCut                            // cut by a reload or the end of a grant
	countUp                             // bytes of bodies and tunnels from the agent
	countDown                           // and to it
	countDropped                        // lines that the access log is missing
	counters
)

func (c counter) String() string {
	return [counters]string{
		"requests", "allowed", "refused", "refused_egress", "refused_pipelock", "failed", "upstream_failures",
		"tunnels", "cut", "bytes_up", "bytes_down", "access_log_dropped",
	}[c]
}

type counts [counters]atomic.Uint64

func (s *Server) count(c counter) { s.counts[c].Add(1) }

// countRefusal counts what did not get through, by whose doing.
func (s *Server) countRefusal(r *refusal) {
	switch {
	case !r.failure && r.layer == layerPipelock:
		s.count(countRefused)
		s.count(countRefusedPipelock)
	case !r.failure:
		s.count(countRefused)
		s.count(countRefusedEgress)
	case r.layer == layerUpstream:
		s.count(countFailed)
		s.count(countUpstream)
	default:
		s.count(countFailed)
	}
}

// statusEvery is how old the counters in the status may be, while they change. All else in it is told at once.
const statusEvery = 10 * time.Second

// tally are the counters of now. The number of open connections and flows is left out: it goes
// along, but is no reason to tell anything.
func (s *Server) tally() (t [counters]uint64) {
	for c := range counters {
		t[c] = s.counts[c].Load()
	}
	return t
}

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
	s.told = s.tally()
	for c, n := range s.told {
		st.Counters[counter(c).String()] = n
	}
	st.Counters["connections"] = uint64(s.crowd.len()) //nolint:gosec // G115: a length
	st.Counters["open"] = uint64(s.flows.len())        //nolint:gosec // G115: a length
	if v.hop != nil {
		st.Error = v.hop.Error()
	}
	if err := s.cfg.Report(st); err != nil {
		s.log.Error("status can't be told, so that no change can be confirmed", "error", err)
	}
}
