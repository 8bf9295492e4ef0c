package apply

import (
	"context"
	"fmt"
	"slices"
	"time"

	"bottle/bottle"
)

// kill sees to it that a daemon which did not confirm a narrowing does not go on as it was. If init has published the
// narrower file and obeys, its daemon alone is killed, and comes back on that file or not at all. If it has not, or
// says which file it has only by halves, killing the daemon would bring it back as it was, so init itself is stopped,
// which the host can do whatever the bundle says; the keeper starts it again and it loads what is in the files then.
//
// The error wraps why, which is a bottle.ErrUnconfirmed, and says what became of the daemon.
func (a *Applier) kill(ctx context.Context, c *change, f fileChange, why error) error {
	daemon := daemonOf(f.File)
	if !slices.Contains(c.Unconfirmed, daemon) {
		c.Unconfirmed = append(c.Unconfirmed, daemon)
	}
	a.cfg.Fault("kill " + daemon)
	if a.killDaemon(ctx, f) {
		return fmt.Errorf("%w; the narrower config stays, and %s was killed and stays down until it has loaded it", why, daemon)
	}
	a.cfg.Fault("stop bundle")
	if err := a.cfg.Signaler.Stop(ctx); err != nil {
		return fmt.Errorf("%w; the narrower config stays, but the bundle can't be stopped (%w): end it by hand", why, err)
	}
	c.stopped = true
	return fmt.Errorf("%w; the narrower config stays, and all daemons were stopped; the keeper starts them again, on it", why)
}

// killDaemon reports whether init says that it has published the file and then, told to kill its daemon, that it did.
func (a *Applier) killDaemon(ctx context.Context, f fileChange) bool {
	rev, err := bottle.CheckSeal(f.New)
	if r := a.look(f.File); err != nil || r.published != rev || !r.ours {
		return false
	}
	daemon := daemonOf(f.File)
	before := a.child(daemon)
	if err := a.cfg.Signaler.Signal(ctx, killFor(f.File)); err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, a.cfg.ConfirmTimeout)
	defer cancel()
	tick := time.NewTicker(lastPoll / 4)
	defer tick.Stop()
	for {
		if now := a.child(daemon); now.PID != before.PID || now.Restarts != before.Restarts || a.look(f.File).inForce == rev {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
}

// child is what init says of a daemon's process.
func (a *Applier) child(daemon string) bottle.ChildStatus {
	st, err := a.initStatus()
	if err != nil {
		return bottle.ChildStatus{}
	}
	return st.Daemons[daemon]
}
