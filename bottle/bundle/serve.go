package bundle

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"bottle/bottle"
)

// A Daemon is what each of the bundle's daemons is given.
type Daemon struct {
	Name   string
	Dir    *bottle.Dir
	Config *bottle.BundleConfig
	Reload <-chan struct{} // a value for each reload signal; those that come faster than they are taken are one
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
	reload, done := reloads(name)
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
	if err := run(ctx, &Daemon{name, dir, config, reload, inherited, logger.With("daemon", name)}); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// reloads makes the channel of Daemon.Reload.
func reloads(name string) (<-chan struct{}, func()) {
	// HUP and USR2 are taken by all, so that a stray one kills none.
	sigs := make(chan os.Signal, 1)
	ignored := make(chan os.Signal, 1)
	mine := map[string]syscall.Signal{bottle.DaemonEgress: unix.SIGHUP, bottle.DaemonPipelock: unix.SIGUSR2}[name]
	for _, s := range []syscall.Signal{unix.SIGHUP, unix.SIGUSR2} {
		if s == mine {
			signal.Notify(sigs, s)
		} else {
			signal.Notify(ignored, s)
		}
	}
	out, quit := make(chan struct{}, 1), make(chan struct{})
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
		signal.Stop(ignored)
		close(quit)
		wg.Wait()
	}
}
