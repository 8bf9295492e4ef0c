package bundle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"sync"
	"syscall"
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
	cfg    Config
	log    *slog.Logger
	reaper *reaper
	sink   *sink
	exits  chan exit
	procs  sync.WaitGroup // the per-child goroutines

	env     []string
	bundle  *bottle.BundleConfig
	daemons []*daemon // in the order of their start
	files   map[string]*file
	started time.Time

	// What a pass will do once its file has verified.
	forward map[*daemon]syscall.Signal
	replace bool // pipelock

	stopping bool
	failure  error // why the bundle ends, if not on request

	written   bottle.InitStatus
	statusErr error
	statusAt  time.Time // a write that failed is repeated then
}

type exit struct {
	d  *daemon
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
		cfg.Command = func(daemon string) ([]string, error) { return Command(dir, daemon) }
	}
	if cfg.Environ == nil {
		cfg.Environ = os.Environ()
	}
	if cfg.Output == nil {
		cfg.Output = os.Stderr
	}
	return &Supervisor{
		cfg: cfg, log: cfg.Logger, sink: &sink{w: cfg.Output},
		exits: make(chan exit), files: map[string]*file{}, forward: map[*daemon]syscall.Signal{},
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
	s.started = time.Now().UTC()
	if err := s.prepare(); err != nil {
		s.failure = err
		s.writeStatus(time.Now())
		return err
	}

	stop := make(chan struct{})
	s.reaper = newReaper(s.cfg.Signals.child, stop)
	s.loop(ctx)
	s.sweep()
	s.procs.Wait()
	close(stop)
	s.reaper.wg.Wait()
	return s.failure
}

// prepare reads what the host wrote and clears what an earlier init left: its published
// files (the host may have narrowed them since) and status files (pids repeat).
func (s *Supervisor) prepare() error {
	dir := s.cfg.Dir
	if os.Getpid() != 1 {
		// PID 1 gets the orphans anyway; a child has to ask for them.
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("become the subreaper: %w", err)
		}
	}
	unix.Umask(0o077)
	// A descriptor that somebody leaked to this process is not for the daemons.
	if err := closeOnExec(); err != nil {
		return err
	}
	var err error
	if s.bundle, err = loadConfig(dir.BundleConfig()); err != nil {
		return err
	}
	names, err := pickDaemons(lookup(s.cfg.Environ, EnvDaemons), s.bundle.Daemons)
	if err != nil {
		return err
	}
	s.env = childEnv(s.cfg.Environ, s.bundle.Credentials)
	now := time.Now()
	for _, n := range names {
		d := &daemon{name: n}
		switch n {
		case bottle.DaemonEgress:
			d.file = s.addFile(bottle.RoutesFile, dir.Routes())
		case bottle.DaemonPipelock:
			d.file = s.addFile(bottle.PipelockFile, dir.Pipelock())
		}
		if d.file != nil {
			if err := remove(d.file.live); err != nil {
				return err
			}
			d.file.begin(now)
		}
		if err := remove(dir.DaemonStatus(n)); err != nil {
			return err
		}
		s.daemons = append(s.daemons, d)
	}
	return writeLive(dir, s.bundle)
}

func (s *Supervisor) addFile(name, mounted string) *file {
	f := &file{name: name, mounted: mounted, live: s.cfg.Dir.Live(name)}
	s.files[name] = f
	return f
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
		if s.stopping && !slices.ContainsFunc(s.daemons, func(d *daemon) bool { return d.proc != nil }) {
			return
		}
		if at := s.nextDue(); at.IsZero() {
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
			s.onRestartEgress()
		case got := <-sig.stop:
			s.shutdown("signal " + got.String())
		case <-done:
			done = nil
			s.shutdown(context.Cause(ctx).Error())
		case e := <-s.exits:
			s.onExit(e)
		case <-timer.C:
		}
	}
}

// act does what is due: files, then ends that TERM did not bring, starts, and readiness.
func (s *Supervisor) act(now time.Time) {
	for _, d := range s.daemons {
		if d.proc != nil && !d.killAt.IsZero() && !now.Before(d.killAt) {
			s.log.Warn("daemon ignores TERM, killing it", "daemon", d.name, "pid", d.proc.pid)
			s.reaper.signal(d.proc, unix.SIGKILL, true)
			d.killAt = time.Time{}
		}
	}
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
			s.start(d)
		}
		if d.proc != nil {
			d.check(now, s.cfg.Dir.DaemonStatus(d.name))
			if d.handles && d.pending != 0 {
				s.reaper.signal(d.proc, d.pending, false)
				d.pending = 0
			}
		}
	}
}

// nextDue is when the loop must turn without being told; zero: never.
func (s *Supervisor) nextDue() time.Time {
	var due time.Time
	sooner := func(t time.Time) {
		if !t.IsZero() && (due.IsZero() || t.Before(due)) {
			due = t
		}
	}
	sooner(s.statusAt)
	for _, d := range s.daemons {
		sooner(d.killAt)
		if !s.stopping {
			sooner(d.look)
			if d.proc == nil && d.hasConfig() {
				sooner(d.startAt)
			}
		}
	}
	if !s.stopping {
		for _, f := range s.files {
			sooner(f.next)
		}
	}
	return due
}

// start starts the daemon on the bytes that were verified.
func (s *Supervisor) start(d *daemon) {
	d.starts++
	if err := s.tryStart(d); err != nil {
		// Not even a process: no exit will come.
		s.log.Error("daemon could not be started", "daemon", d.name, "error", err)
		d.crashes++
		d.startAt = time.Now().Add(backoff(d.crashes))
		d.lastExit = err.Error()
		if !d.came && d.crashes >= firstTries {
			s.fail(&StartError{Daemon: d.name, Code: 1, Reason: err.Error()})
		}
		return
	}
	s.log.Info("daemon started", "daemon", d.name, "pid", d.proc.pid, "restarts", d.starts-1)
}

func (s *Supervisor) tryStart(d *daemon) error {
	if d.file != nil {
		if err := d.file.restore(); err != nil {
			return err
		}
	}
	if err := remove(s.cfg.Dir.DaemonStatus(d.name)); err != nil {
		return err
	}
	argv, err := s.cfg.Command(d.name)
	if err != nil {
		return err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	out, w, err := capture(d.name, s.sink, &s.procs)
	if err != nil {
		return err
	}
	defer w.Close()
	proc, err := s.reaper.start(argv, s.env, []*os.File{null, w, w})
	if err != nil {
		return err
	}
	now := time.Now()
	d.proc, d.out, d.startedAt, d.look = proc, out, now.UTC(), now
	s.procs.Go(func() {
		ws := <-proc.done
		// The reason for its end may still be in the pipe.
		select {
		case <-out.done:
		case <-time.After(drainFor):
			out.close()
		}
		s.exits <- exit{d, ws}
	})
	return nil
}

func (s *Supervisor) onExit(e exit) {
	d, pid := e.d, e.d.proc.pid
	expected := d.replace || s.stopping
	last := d.out.lastLine()
	failed := d.ended(time.Now(), e.ws)
	if expected {
		s.log.Info("daemon stopped", "daemon", d.name, "pid", pid, "exit", d.lastExit)
		return
	}
	s.log.Warn("daemon ended", "daemon", d.name, "pid", pid, "exit", d.lastExit, "last_line", last, "start_again_at", d.startAt)
	if failed {
		s.fail(startError(d.name, e.ws, last))
	}
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
	for _, d := range s.daemons {
		s.stop(d)
	}
}

// stop sends TERM to the daemon's group; KILL follows after the grace, also if the
// group is stopped (TERM waits for CONT then, KILL doesn't).
func (s *Supervisor) stop(d *daemon) {
	if d.proc == nil || !d.killAt.IsZero() {
		return
	}
	s.reaper.signal(d.proc, unix.SIGTERM, true)
	d.killAt = time.Now().Add(s.cfg.Grace)
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

// initStatus is the state as the host may see it.
func (s *Supervisor) initStatus() bottle.InitStatus {
	st := bottle.InitStatus{
		Schema: bottle.Schema, Ready: !s.stopping && len(s.daemons) > 0, PID: os.Getpid(), StartedAt: s.started,
		Daemons: map[string]bottle.ChildStatus{}, Files: map[string]bottle.MountedFile{},
	}
	for _, d := range s.daemons {
		st.Daemons[d.name] = d.status()
		if d.serving.IsZero() {
			st.Ready = false
		}
		if d.proc == nil && !d.hasConfig() && d.file.refused != nil {
			st.Error = fmt.Sprintf("%s is not started until %s is valid: %s", d.name, d.file.name, d.file.refused.Error)
		}
	}
	for name, f := range s.files {
		st.Files[name] = f.status()
	}
	if s.failure != nil {
		st.Error = s.failure.Error()
	}
	return st
}

// writeStatus writes status/init.json if it changed.
func (s *Supervisor) writeStatus(now time.Time) {
	st := s.initStatus()
	if now.Before(s.statusAt) || reflect.DeepEqual(st, s.written) {
		return
	}
	err := bottle.WriteStatus(s.cfg.Dir.InitStatus(), st)
	if err != nil {
		if s.statusErr == nil || s.statusErr.Error() != err.Error() {
			s.log.Error("status could not be written", "error", err)
		}
		s.statusErr, s.statusAt = err, now.Add(retryStatus)
		return
	}
	if st.Ready && !s.written.Ready {
		s.log.Info("ready", "took", now.Sub(s.started).Round(time.Millisecond))
	}
	s.written, s.statusErr, s.statusAt = st, nil, time.Time{}
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
