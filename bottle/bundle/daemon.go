package bundle

import (
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"bottle/bottle"
)

const (
	backoffMin   = 50 * time.Millisecond
	backoffMax   = 5 * time.Second
	healthyAfter = 10 * time.Second // serving for that long forgets earlier crashes
	// firstTries bounds the starts of a daemon that has never served.
	firstTries = 5
)

// backoff is how long to wait before the start that follows the nth crash in a row
// (n >= 1): 50 ms doubled for each, at most 5 s, half of it jittered so that daemons that died together
// don't come back together.
func backoff(n int) time.Duration {
	d := backoffMax
	if shift := n - 1; shift < 7 {
		d = min(backoffMin<<shift, backoffMax)
	}
	if d == backoffMin {
		return d + rand.N(d/2) //nolint:gosec // G404: jitter, not a secret
	}
	return d/2 + rand.N(d/2) //nolint:gosec // G404: jitter, not a secret
}

// A daemon is one of the bundle's daemons in the supervisor's eyes. The event loop owns it.
type daemon struct {
	name string
	file *file // the config that it needs; nil for none

	cur  *instance   // serves, or comes up; nil while it is down
	next *instance   // pipelock: comes up to take over from cur
	old  []*instance // pipelock: were taken over from and drain, the oldest first

	starts   int
	lastExit string
	came     bool // it has served once
	crashes  int  // in a row

	startAt time.Time       // not before
	fresh   bool            // it may not start before its file has verified again
	replace bool            // a new instance is to take over
	refused *bottle.Refusal // why the newest that was to take over did not

	written bottle.DaemonStatus // status/<daemon>.json
}

// An instance is one process of a daemon.
type instance struct {
	d       *daemon
	proc    *process
	out     *output
	slot    *slot       // pipelock's address
	foreign bool        // not a program of ours
	loads   bottle.Hash // the revision that was published when it was started

	startedAt time.Time
	reported  bool // it has handlers now: a signal before that would kill it
	serving   time.Time
	status    bottle.DaemonStatus // its newest report
	pending   syscall.Signal      // to be sent once it has handlers; 0: none
	againAt   time.Time           // of one that is not ours: sent again then
	againTill time.Time

	killAt   time.Time // TERM was sent and KILL is due then; zero: neither
	expected bool      // its end is our doing
	ended    bool
	fatal    string    // why we killed it
	giveUpAt time.Time // of next: its time to take over ends
	pointed  bool      // egress was told to use it
	unused   time.Time // of old: nobody has been connected to it since; zero: somebody is
}

// instances are all processes of the daemon.
func (d *daemon) instances() []*instance {
	var all []*instance
	if d.cur != nil {
		all = append(all, d.cur)
	}
	if d.next != nil {
		all = append(all, d.next)
	}
	return append(all, d.old...)
}

// startable reports whether the daemon is down and due. One whose config has not been verified
// is not started: pipelock on a torn file lets hosts through that nobody listed. One whose
// successor comes up needn't be.
func (d *daemon) startable(now time.Time) bool {
	return d.cur == nil && d.next == nil && !now.Before(d.startAt) && d.hasConfig()
}

func (d *daemon) hasConfig() bool {
	return d.file == nil || d.file.bytes != nil && !d.fresh
}

// crashed takes note of an end that nobody asked for, and says when the daemon may start
// again. failed is set if it never came up and has used its tries.
func (d *daemon) crashed(now, serving time.Time) (failed bool) {
	if !serving.IsZero() && now.Sub(serving) >= healthyAfter {
		d.crashes = 0
	}
	d.crashes++
	d.startAt = now.Add(backoff(d.crashes))
	return !d.came && d.crashes >= firstTries
}

func (d *daemon) childStatus() bottle.ChildStatus {
	c := bottle.ChildStatus{Restarts: max(0, d.starts-1), LastExit: d.lastExit, Draining: len(d.old)}
	if d.cur != nil {
		c.PID, c.StartedAt = d.cur.proc.pid, d.cur.startedAt
	}
	return c
}

// status is what status/<daemon>.json should say; false: nothing, since it is down.
func (d *daemon) status() (bottle.DaemonStatus, bool) {
	if d.cur == nil || !d.cur.reported {
		return bottle.DaemonStatus{}, false
	}
	st := d.cur.status
	if d.refused != nil && d.refused.Revision == d.file.published {
		st.Refused = d.refused
	}
	return st, true
}

func describe(ws unix.WaitStatus) string {
	switch {
	case ws.Signaled():
		return "killed by " + unix.SignalName(ws.Signal())
	default:
		return fmt.Sprintf("exit code %d", ws.ExitStatus())
	}
}

// A StartError says which daemon did not come up, and why. The bundle ends with it.
type StartError struct {
	Daemon string
	Code   int    // the daemon's exit code, never 0; 128+n if signal n ended it
	Reason string // the last line that it wrote, or how it ended
}

func (e *StartError) Error() string {
	return fmt.Sprintf("daemon %s does not come up (%d tries): %s", e.Daemon, firstTries, e.Reason)
}

func startError(daemon string, ws unix.WaitStatus, lastLine string) *StartError {
	e := &StartError{Daemon: daemon, Code: ws.ExitStatus(), Reason: reason(ws, lastLine)}
	if ws.Signaled() {
		e.Code = 128 + int(ws.Signal())
	}
	if e.Code <= 0 { // an exit with 0 is no success either: it did not serve
		e.Code = 1
	}
	return e
}

// reason is how a process ended, and its last words.
func reason(ws unix.WaitStatus, lastLine string) string {
	if lastLine == "" {
		return describe(ws)
	}
	return describe(ws) + ": " + lastLine
}
