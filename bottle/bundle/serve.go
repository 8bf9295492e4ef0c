package bundle

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"

	"bottle/bottle"
)

// A Daemon is what each of the bundle's daemons is given.
type Daemon struct {
	Name   string
	Dir    *bottle.Dir
	Config *bottle.BundleConfig
	Reload <-chan struct{} // a value for each reload signal; those that come faster than they are taken are one
	Drain  <-chan struct{} // of pipelock: a value once another has taken over
	*Inheritance
	Logger *slog.Logger
}

// Serve runs a daemon until TERM or INT. The handlers are installed before the config is read,
// so a reload that comes meanwhile is one pass too many and never one too few.
//
// Before all that the process makes itself undumpable: egress will hold tokens and the CA's
// key, and Landlock keeps only its siblings from reading its memory, not the agent, who on
// the local backend is of the same uid. And before it reads anything but bundle.json it
// confines itself, on all its threads, to the rights of the daemon that name says. That
// is as good as being started confined, since until then it runs nothing but our own
// start, on the host's word, and it saves the start of a launcher for each.
func Serve(ctx context.Context, name string, dir *bottle.Dir, logger *slog.Logger, run func(context.Context, *Daemon) error) error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("%s: hide its memory: %w", name, err)
	}
	ctx, stop := signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT)
	defer stop()
	reload, drain, done := levels(name)
	defer done()
	inherited, err := Inherit()
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	config, err := LoadConfig(dir, name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	unix.Umask(0o077)
	warn := func(gap string) {
		logger.Warn("the kernel can't confine this daemon fully", "daemon", name, "gap", gap)
	}
	if err := confine(name, dir, config, warn); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := run(ctx, &Daemon{name, dir, config, reload, drain, inherited, logger.With("daemon", name)}); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// levels makes the channels of Daemon.Reload and Daemon.Drain. All three signals are taken by
// each daemon, so that a stray one kills none.
func levels(name string) (reload, drain <-chan struct{}, done func()) {
	hup, stopHUP := level(unix.SIGHUP)
	usr1, stopUSR1 := level(unix.SIGUSR1)
	usr2, stopUSR2 := level(unix.SIGUSR2)
	switch name {
	case bottle.DaemonEgress:
		reload = hup
	case bottle.DaemonPipelock:
		reload, drain = usr2, usr1
	}
	return reload, drain, func() {
		stopHUP()
		stopUSR1()
		stopUSR2()
	}
}

// level gives a value for a signal, and one for any number that come before it is taken.
func level(sig os.Signal) (<-chan struct{}, func()) {
	sigs, out, quit := make(chan os.Signal, 1), make(chan struct{}, 1), make(chan struct{})
	signal.Notify(sigs, sig)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-sigs:
				select {
				case out <- struct{}{}:
				default: // one is due that has not been taken
				}
			case <-quit:
				return
			}
		}
	})
	return out, func() {
		signal.Stop(sigs)
		close(quit)
		wg.Wait()
	}
}
