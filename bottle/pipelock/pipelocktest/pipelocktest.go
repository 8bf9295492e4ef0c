// Package pipelocktest is a stand-in for the real pipelock 2.3, in the manner of
// net/http/httptest: a program for the tests of whoever supervises it, which can't count on
// the real one being at hand. A test binary becomes it by calling [Main] from its TestMain.
//
// It behaves as the real one was measured to, above all where that is awkward: it drops the
// newest of several rapid reloads, refuses a "security downgrade" in strict mode that a new
// process accepts, comes up as balanced (all hosts reachable) on an empty file, says that it
// started before it listens, logs nothing for a reload of what it loaded less than 2 s ago,
// never acknowledges a signal otherwise, refuses everything after a SIGUSR1, leaves open
// tunnels alone when the allowlist narrows, and waits up to 30 s for them when it is told to end. The tests of this package hold each of these against the real one too, where
// BOTTLE_PIPELOCK names its binary.
//
// What it does not do: scan contents, limit rates, verify SNI, intercept TLS, or read those
// keys of a section that concern these. It trusts its caller, and is no protection at all.
//
// # Knobs
//
// Knobs make it misbehave. They come from the environment, and from the lines NAME=value of
// the file FILE.knobs beside the config FILE, which win and can change between two starts:
//
//	PIPELOCKTEST_START_DELAY=300ms  pause before it handles SIGHUP, says that it started, and listens
//	PIPELOCKTEST_HANG=1             never get that far
//	PIPELOCKTEST_EXIT=some words    print them to standard error and exit with 1
//	PIPELOCKTEST_IGNORE_TERM=1      do not end on SIGTERM
//	PIPELOCKTEST_NO_WATCH=1         do not watch the config's directory, as if its file were mounted
//	PIPELOCKTEST_RELOAD_TIME=1s     what building a new configuration takes, instead of 15 ms
//	PIPELOCKTEST_RESOLVE=a.test=127.0.0.1,b.test=::1  addresses of names, before the system's resolver
package pipelocktest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Times of the real one: what building a new configuration takes on two cores, and how long
// it waits, told to end, for requests and then for tunnels. (It waits for tunnels in some runs
// and not in others, by a race. Here it does in all, for the sake of its supervisor's tests.)
const (
	reloadTime   = 15 * time.Millisecond
	drainTimeout = 5 * time.Second
	tunnelDrain  = 30 * time.Second
)

const usage = "usage: run --config FILE --listen HOST:PORT"

// Main is the program, args those after its name: run --config FILE --listen HOST:PORT. It
// returns the exit code: 0 after SIGTERM or SIGINT, 1 for all that keeps it from serving.
// It takes over the process's signals, standard output and standard error.
func Main(args []string) int {
	var config, listen string
	flags := flag.NewFlagSet("run", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&config, "config", "", "")
	flags.StringVar(&listen, "listen", "", "")
	if len(args) == 0 || args[0] != "run" || flags.Parse(args[1:]) != nil || flags.NArg() > 0 || config == "" || listen == "" {
		fmt.Fprintln(os.Stderr, usage)
		return 1
	}
	if err := run(config, listen); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func run(config, listen string) error {
	k, err := readKnobs(config)
	if err != nil {
		return err
	}
	ctx := context.Background()
	if k.ignoreTerm {
		signal.Ignore(syscall.SIGTERM)
	} else {
		var stop context.CancelFunc
		ctx, stop = signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
		defer stop()
	}
	if k.exit != "" {
		return errors.New(k.exit)
	}
	s, err := load(config)
	if err != nil {
		return fmt.Errorf("loading config: %w", err)
	}
	if k.hang {
		fmt.Fprintln(os.Stderr, "pipelocktest: hangs, as it was told")
		<-ctx.Done()
		return nil
	}
	select { // a SIGHUP up to here kills the process
	case <-time.After(k.startDelay):
	case <-ctx.Done():
		return nil
	}

	p := newProxy(s, k)
	r := newReloader(config, p, k)
	stopReloads, err := r.start(ctx)
	if err != nil {
		return err
	}
	defer stopReloads()

	fmt.Fprintf(os.Stderr, "Pipelock v%s starting\n  Mode:   %s\n  Listen: %s\n  Health: http://%s/health\n  Config: %s (hot-reload enabled, SIGHUP to reload)\n",
		version, s.Mode, listen, listen, config)
	// Before it listens, and even if it then can't, as the real one.
	emit(line{Level: "info", Event: "startup", Listen: listen, Mode: s.Mode, Version: version, ConfigHash: s.hash, Message: "pipelock started"})
	srv := &http.Server{Addr: listen, Handler: p, ReadHeaderTimeout: 5 * time.Second}
	served := make(chan error, 1)
	go func() { served <- srv.ListenAndServe() }()
	select {
	case err := <-served:
		return fmt.Errorf("proxy error: %w", err)
	case <-ctx.Done():
	}
	emit(line{Level: "info", Event: "shutdown", Reason: "signal received", Message: "pipelock stopping"})
	soft, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	_ = srv.Shutdown(soft)
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("proxy error: %w", err)
	}
	idle := make(chan struct{})
	go func() { p.tunnels.Wait(); close(idle) }() // ends with the process, at the latest
	select {
	case <-idle:
	case <-time.After(tunnelDrain):
	}
	fmt.Fprintln(os.Stderr, "\nPipelock stopped.")
	return nil
}

type knobs struct {
	startDelay, reloadTime    time.Duration
	hang, ignoreTerm, noWatch bool
	exit                      string
	resolve                   map[string]string
}

func readKnobs(config string) (k knobs, err error) {
	set := map[string]string{}
	add := func(lines []string) {
		for _, l := range lines {
			if name, value, ok := strings.Cut(l, "="); ok && strings.HasPrefix(name, "PIPELOCKTEST_") {
				set[strings.TrimPrefix(name, "PIPELOCKTEST_")] = value
			}
		}
	}
	add(os.Environ())
	b, err := os.ReadFile(filepath.Clean(config + ".knobs"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return k, err
	}
	add(strings.Split(string(b), "\n"))

	k = knobs{reloadTime: reloadTime, resolve: map[string]string{}}
	for name, value := range set {
		var err error
		switch name {
		case "START_DELAY":
			k.startDelay, err = time.ParseDuration(value)
		case "RELOAD_TIME":
			k.reloadTime, err = time.ParseDuration(value)
		case "HANG":
			k.hang = value == "1"
		case "IGNORE_TERM":
			k.ignoreTerm = value == "1"
		case "NO_WATCH":
			k.noWatch = value == "1"
		case "EXIT":
			k.exit = value
		case "RESOLVE":
			for pair := range strings.SplitSeq(value, ",") {
				host, addr, _ := strings.Cut(pair, "=")
				k.resolve[host] = addr
			}
		default:
			err = errors.New("no such knob")
		}
		if err != nil {
			return k, fmt.Errorf("PIPELOCKTEST_%s=%s: %w", name, value, err)
		}
	}
	return k, nil
}
