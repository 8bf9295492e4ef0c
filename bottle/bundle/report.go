package bundle

import (
	"bufio"
	"encoding/json"
	"errors"
	"os"
	"time"

	"bottle/bottle"
)

const (
	maxReport   = 64 << 10 // bytes of one report
	reportBurst = 100      // reports at once; then
	reportEvery = 5 * time.Millisecond
)

// A report is what came to be known of an instance: its own status, or, of a pipelock that is
// not ours, what its log and its health say.
type report struct {
	i      *instance
	status bottle.DaemonStatus
	hash   string // sha256 in hex of the file that it loaded, where it knows no revision
	fatal  string // why it must not serve
}

// readReports passes on what a daemon of ours reports, until it ends. A daemon may have been
// taken over, so what it says is bounded in size and rate: it waits in the pipe meanwhile.
func (s *Supervisor) readReports(i *instance, r *os.File) {
	defer r.Close()
	br := bufio.NewReaderSize(r, maxReport)
	next := time.Now()
	for {
		line, err := br.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			s.log.Warn("reports are not read on: one is too long", "daemon", i.d.name, "pid", i.proc.pid, "bound", maxReport)
			return
		}
		if err != nil {
			return
		}
		var st bottle.DaemonStatus
		if err := json.Unmarshal(line, &st); err != nil {
			s.log.Warn("reports are not read on: one is not a status", "daemon", i.d.name, "pid", i.proc.pid, "error", err)
			return
		}
		if !s.tell(report{i: i, status: st}) {
			return
		}
		now := time.Now()
		if idle := now.Add(-reportBurst * reportEvery); next.Before(idle) {
			next = idle
		}
		if next = next.Add(reportEvery); next.After(now) {
			select {
			case <-time.After(next.Sub(now)):
			case <-s.over:
				return
			}
		}
	}
}

// tell hands a report to the loop; false: there is no loop any more.
func (s *Supervisor) tell(r report) bool {
	select {
	case s.reports <- r:
		return true
	case <-s.over:
		return false
	}
}

// onReport takes note of what an instance is now.
func (s *Supervisor) onReport(r report) {
	i, d := r.i, r.i.d
	if i.proc == nil || i.ended {
		return
	}
	if r.fatal != "" {
		s.log.Error("daemon may not serve, killing it", "daemon", d.name, "pid", i.proc.pid, "reason", r.fatal)
		i.fatal = r.fatal
		s.kill(i)
		return
	}
	st := r.status
	st.Schema, st.Daemon, st.PID = bottle.Schema, d.name, i.proc.pid
	if r.hash != "" {
		st.Revision = d.file.revisionOf(r.hash)
	}
	if st.Refused != nil && i.foreign {
		refused := *st.Refused
		refused.Revision = d.file.published
		st.Refused = &refused
	}
	i.status, i.reported = st, true
	if st.Listen != "" && i.serving.IsZero() {
		i.serving = time.Now()
		if d.cur == i {
			d.came = true
		}
	}
}
