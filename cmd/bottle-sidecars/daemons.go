package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"bottle/bottle"
	"bottle/bottle/bundle"
	"bottle/bottle/egress"
	"bottle/bottle/pipelock"
	"bottle/bottle/queue"
	"bottle/mcp"
)

// A daemon is what each of them is given.
type daemon struct {
	name   string
	dir    *bottle.Dir
	config *bottle.BundleConfig
	reload <-chan struct{}
	log    *slog.Logger
}

// serve runs a daemon until TERM or INT. The handlers are installed before the config is read,
// so a reload that comes meanwhile is one pass too many and never one too few.
func serve(ctx context.Context, name, root string, run func(context.Context, *daemon) error) error {
	ctx, stop := signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT)
	defer stop()
	reload, done := reloads(name)
	defer done()
	dir, err := stateDir(root)
	if err != nil {
		return err
	}
	config, err := bundle.LoadConfig(dir)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := run(ctx, &daemon{name, dir, config, reload, newLogger().With("daemon", name)}); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// reloads gives a value for each reload signal of the daemon; those that come faster than
// they are taken are one.
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

func runEgress(ctx context.Context, d *daemon) error {
	s, err := egress.New(egress.Config{
		Routes:      d.dir.Live(bottle.RoutesFile),
		StatusPath:  d.dir.DaemonStatus(d.name),
		SpentPath:   d.dir.SpentFile(),
		CACert:      d.dir.CACert(),
		CAKey:       d.dir.CAKey(),
		KeySocket:   d.dir.KeySocket(),
		Listen:      d.config.Egress,
		Pipelock:    d.config.Pipelock,
		UpstreamCA:  []byte(d.config.UpstreamCA),
		Credentials: d.config.Credentials,
		Reload:      d.reload,
		Logger:      d.log,
	})
	if err != nil {
		return err
	}
	return s.Run(ctx)
}

func runPipelock(ctx context.Context, d *daemon) error {
	var allow []netip.Prefix
	for _, c := range d.config.AllowCIDRs {
		p, err := netip.ParsePrefix(c)
		if err != nil {
			return fmt.Errorf("bundle.json: allow_cidrs %q: %w", c, err)
		}
		allow = append(allow, p)
	}
	g, err := pipelock.NewGate(pipelock.GateConfig{
		Config:     d.dir.Live(bottle.PipelockFile),
		Listen:     d.config.Pipelock,
		StatusPath: d.dir.DaemonStatus(d.name),
		Resolve:    d.config.Resolve,
		AllowCIDRs: allow,
		Reload:     d.reload,
		Logger:     d.log,
	})
	if err != nil {
		return err
	}
	return g.Run(ctx)
}

func runSupervise(ctx context.Context, d *daemon) error {
	spool, err := queue.NewSpool(queue.SpoolConfig{
		Requests: d.dir.Requests(), Cancels: d.dir.Cancels(), Decisions: d.dir.Decisions(),
		MaxPending: d.config.MaxPending, Logger: d.log,
	})
	if err != nil {
		return err
	}
	defer spool.Close()
	server, err := mcp.NewServer(mcp.Config{
		Queue:    spool,
		Enforcer: &egress.Client{Proxy: d.config.Egress},
		Name:     "bottle",
		Logger:   d.log,
	})
	if err != nil {
		return err
	}
	l, err := mcp.Listen(d.dir.MCPSocket())
	if err != nil {
		return err
	}
	status := bottle.DaemonStatus{
		Schema: bottle.Schema, Daemon: d.name, PID: os.Getpid(), Instance: uuid.NewString(),
		LoadedAt: time.Now().UTC(), Listen: d.dir.MCPSocket(),
	}
	if err := bottle.WriteStatus(d.dir.DaemonStatus(d.name), status); err != nil {
		_ = l.Close()
		return err
	}
	return server.Serve(ctx, l)
}

var (
	_ mcp.Queue    = (*queue.Spool)(nil)
	_ mcp.Enforcer = (*egress.Client)(nil)
)
