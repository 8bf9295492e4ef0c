package bundle

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"bottle/bottle"
)

const (
	graceDefault = time.Second
	graceMax     = 1500 * time.Millisecond
	drainFor     = 100 * time.Millisecond // for a dead child's last lines
	sweepFor     = 200 * time.Millisecond // for orphans, after the daemons
	retryStatus  = time.Second            // after a write that failed (disk full)
)

// A Supervisor runs the daemons of one bundle.
type Supervisor struct {
	cfg     Config
	log     *slog.Logger
	reaper  *reaper
	sink    *sink
	exits   chan exit
	reports chan report
	over    chan struct{}  // closed when the loop has ended
	procs   sync.WaitGroup // the per-child goroutines

	env     []string
	bundle  *bottle.BundleConfig
	daemons []*daemon // in the order of their start
	files   map[string]*file
	access  accessFiles
	started time.Time

	// What daemons are started with, and egress is pointed at.
	proxy, inside, keys, mcp *socket // inside: the proxy's, for a sandbox without a network
	slots                    []*slot
	handover                 pair // by which our pipelocks hand tunnels over; nil for those that are not ours
	passing                  pair // by which they pass connections to egress; likewise
	hop                      string
	ending                   []*instance // what was taken over from or dropped, and is on its way out
	lookAt                   time.Time   // not before, at who is connected to an old pipelock

	// What a pass will do once its file has verified.
	forward map[*daemon]bool
	replace bool // pipelock

	stopping bool
	failure  error // why the bundle ends, if not on request

	written   bottle.InitStatus
	statusErr error
	statusAt  time.Time // a write that failed is repeated then
}

type exit struct {
	i  *instance
	ws unix.WaitStatus
}

// New checks the config. Nothing is started or touched.
func New(cfg Config) (*Supervisor, error) {
	switch {
	case cfg.Dir == nil:
		return nil, fmt.Errorf("bundle: Dir is required: %w", bottle.ErrInvalid)
	case cfg.Signals == nil:
		return nil, fmt.Errorf("bundle: Signals is required; call Notify first thing in main: %w", bottle.ErrInvalid)
	case cfg.Logger == nil:
		return nil, fmt.Errorf("bundle: Logger is required: %w", bottle.ErrInvalid)
	case cfg.Grace < 0 || cfg.Grace > graceMax:
		return nil, fmt.Errorf("bundle: Grace %v: at most %v: %w", cfg.Grace, graceMax, bottle.ErrInvalid)
	}
	if cfg.Grace == 0 {
		cfg.Grace = graceDefault
	}
	if cfg.Command == nil {
		dir := cfg.Dir
		cfg.Command = func(daemon, listen string) ([]string, error) { return Command(dir, daemon, listen) }
	}
	if cfg.Environ == nil {
		cfg.Environ = os.Environ()
	}
	if cfg.Output == nil {
		cfg.Output = os.Stderr
	}
	return &Supervisor{
		cfg: cfg, log: cfg.Logger, sink: &sink{w: cfg.Output},
		exits: make(chan exit), reports: make(chan report), over: make(chan struct{}),
		files: map[string]*file{}, forward: map[*daemon]bool{},
	}, nil
}

// Run starts the daemons and keeps them until TERM, INT or the end of ctx, which give nil,
// or until one can't come up at its first start: then the error is a [*StartError]. Either
// way every process below this one is gone when it returns, within 2 s. A second Run
// on the same directory, in any process, fails with [bottle.ErrLocked]. It may be called
// once, and it collects every child of this process: nothing else here may use exec.Cmd.
func (s *Supervisor) Run(ctx context.Context) error {
	unlock, err := lockBundle(s.cfg.Dir)
	if err != nil {
		return err
	}
	defer unlock()
	s.access.dir = s.cfg.Dir
	defer s.access.close()
	s.started = time.Now().UTC()
	defer s.closeSockets()
	if err := s.prepare(ctx); err != nil {
		s.failure = err
		s.writeStatus(time.Now())
		return err
	}

	stop := make(chan struct{})
	s.reaper = newReaper(s.cfg.Signals.child, stop)
	s.loop(ctx)
	close(s.over)
	s.sweep()
	s.procs.Wait()
	close(stop)
	s.reaper.wg.Wait()
	return s.failure
}

// loop is the only place that changes the supervisor's state. Each turn does all that is
// due and then waits for the next thing.
func (s *Supervisor) loop(ctx context.Context) {
	sig := s.cfg.Signals
	timer := time.NewTimer(0)
	defer timer.Stop()
	done := ctx.Done()
	for {
		now := time.Now()
		s.act(now)
		s.writeStatus(now)
		if s.stopping && len(s.all()) == 0 {
			return
		}
		if at := s.nextDue(time.Now()); at.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(time.Until(at))
		}
		select {
		case <-sig.reload:
			s.onReload()
		case <-sig.reloadPipelock:
			s.onReloadPipelock()
		case <-sig.replacePipelock:
			s.onReplacePipelock()
		case <-sig.restartEgress:
			s.onRestart(bottle.DaemonEgress)
		case <-sig.restartPipelock:
			if s.passing != nil { // egress may hold on to what pipelock has passed to it
				s.onRestart(bottle.DaemonEgress)
			}
			s.onRestart(bottle.DaemonPipelock)
		case got := <-sig.stop:
			s.shutdown("signal " + got.String())
		case <-done:
			done = nil
			s.shutdown(context.Cause(ctx).Error())
		case e := <-s.exits:
			s.onExit(e)
		case r := <-s.reports:
			s.onReport(r)
		case <-timer.C:
		}
	}
}

// act does what is due: files, then ends that TERM did not bring, starts, a replacement, signals.
func (s *Supervisor) act(now time.Time) {
	s.killDue(now)
	if s.stopping {
		return
	}
	for _, f := range s.files {
		keep := f.bytes == nil || slices.ContainsFunc(s.daemons, func(d *daemon) bool { return d.file == f && d.fresh })
		if f.look(now, keep) {
			s.onVerified(now, f)
		} else if !f.pending {
			s.dropActions(f)
		}
	}
	for _, d := range s.daemons {
		if d.startable(now) {
			s.startCurrent(d)
		}
	}
	s.advance(now)
	for _, i := range s.all() {
		s.signalPending(now, i)
	}
	s.flushSlots(now)
}

// nextDue is when the loop must turn without being told; zero: never.
func (s *Supervisor) nextDue(now time.Time) time.Time {
	var due time.Time
	sooner := func(t time.Time) {
		if !t.IsZero() && (due.IsZero() || t.Before(due)) {
			due = t
		}
	}
	sooner(s.statusAt)
	for _, i := range s.all() {
		sooner(i.killAt)
		if !s.stopping {
			sooner(i.giveUpAt)
			sooner(i.againAt)
		}
	}
	if s.stopping {
		return due
	}
	for _, d := range s.daemons {
		if d.cur == nil && d.next == nil && d.hasConfig() {
			sooner(d.startAt)
		}
		if len(d.old) > 0 {
			sooner(s.lookAt)
		}
	}
	for _, f := range s.files {
		sooner(f.next)
	}
	if slices.ContainsFunc(s.slots, func(sl *slot) bool { return s.mustFlush(now, sl) }) {
		sooner(now.Add(flushEvery))
	}
	return due
}

// fail ends the bundle.
func (s *Supervisor) fail(err error) {
	if s.failure == nil {
		s.failure = err
	}
	s.shutdown(err.Error())
}

func (s *Supervisor) shutdown(why string) {
	if s.stopping {
		return
	}
	s.stopping = true
	s.log.Info("stopping", "reason", why)
	for _, i := range s.all() {
		s.end(i)
	}
}

// sweep ends what the daemons left behind: orphans that made a session of their own, and
// the orphans of those, which become our children only as their parents go.
func (s *Supervisor) sweep() {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(sweepFor); s.reaper.sweep() > 0 && time.Now().Before(end); {
		<-tick.C
	}
}

func (s *Supervisor) daemon(name string) *daemon {
	for _, d := range s.daemons {
		if d.name == name {
			return d
		}
	}
	return nil
}
