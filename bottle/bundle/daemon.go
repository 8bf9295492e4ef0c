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
	// firstTries bounds the starts of a daemon that has never served: enough (0.75 s and
	// more) for a port that a predecessor is about to let go of.
	firstTries = 5
	lookEvery  = 2 * time.Millisecond   // at the status file of a daemon that is coming up
	lookSlowly = 100 * time.Millisecond // once it has taken lookFast
	lookFast   = 2 * time.Second
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

	proc *process // nil while it is down
	out  *output

	startedAt time.Time
	starts    int
	lastExit  string

	handles bool           // signals: until it wrote its status, a HUP would kill it
	pending syscall.Signal // to be sent once it does; 0: none
	serving time.Time      // since when; zero: not (yet)
	look    time.Time      // when to look at its status file next
	came    bool           // it has served once
	crashes int            // in a row

	startAt time.Time // not before
	killAt  time.Time // TERM was sent and KILL is due then; zero: neither
	replace bool      // its end is our doing: start anew at once
	fresh   bool      // it may not start before its file has verified again
}

// startable reports whether the daemon is down and due. A daemon whose config has not
// been verified is not started: pipelock on a torn file lets hosts through that nobody listed.
func (d *daemon) startable(now time.Time) bool {
	return d.proc == nil && !now.Before(d.startAt) && d.hasConfig()
}

func (d *daemon) hasConfig() bool {
	return d.file == nil || d.file.bytes != nil && !d.fresh
}

// ended takes note of the daemon's end and says when it may start again. failed is set if
// it never came up and has used its tries.
func (d *daemon) ended(now time.Time, ws unix.WaitStatus) (failed bool) {
	d.lastExit = describe(ws)
	if !d.serving.IsZero() && now.Sub(d.serving) >= healthyAfter {
		d.crashes = 0
	}
	d.proc, d.serving, d.look, d.killAt = nil, time.Time{}, time.Time{}, time.Time{}
	d.handles, d.pending = false, 0 // what it asked for is in the published file
	if d.replace {
		d.replace, d.startAt = false, now
		return false
	}
	d.crashes++
	d.startAt = now.Add(backoff(d.crashes))
	return !d.came && d.crashes >= firstTries
}

// check looks whether the daemon serves, by its own word: a status file with this very
// pid. (The file of an earlier process was removed before this one was started, since
// pids repeat, in a container at each start.) A daemon installs its handlers before it
// loads its config, and loads that before it writes its status.
func (d *daemon) check(now time.Time, statusPath string) {
	if d.look.IsZero() || now.Before(d.look) {
		return
	}
	var st bottle.DaemonStatus
	err := bottle.ReadJSON(statusPath, 0, &st)
	d.handles = err == nil && st.PID == d.proc.pid
	if d.handles && st.Listen != "" {
		d.serving, d.look, d.came = now, time.Time{}, true
		return
	}
	d.look = now.Add(lookEvery)
	if now.Sub(d.startedAt) > lookFast {
		d.look = now.Add(lookSlowly)
	}
}

func (d *daemon) status() bottle.ChildStatus {
	c := bottle.ChildStatus{Restarts: max(0, d.starts-1), LastExit: d.lastExit}
	if d.proc != nil {
		c.PID, c.StartedAt = d.proc.pid, d.startedAt
	}
	return c
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
	e := &StartError{Daemon: daemon, Code: ws.ExitStatus(), Reason: describe(ws)}
	if ws.Signaled() {
		e.Code = 128 + int(ws.Signal())
	}
	if e.Code <= 0 { // an exit with 0 is no success either: it did not serve
		e.Code = 1
	}
	if lastLine != "" {
		e.Reason += ": " + lastLine
	}
	return e
}
