package main

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"bottle/bottle"
	"bottle/bottle/launch"
	"bottle/bottle/prompt"
)

// followEvery is how often --follow looks for more.
const followEvery = 250 * time.Millisecond

type logsOptions struct {
	egress, refused, follow bool
	since                   string
}

func (a *app) logsCmd() *cobra.Command {
	var o logsOptions
	c := &cobra.Command{
		Use: "logs NAME", Short: "print the logs of a bottle's daemons and of its keeper, or what its agent requested", Args: cobra.ExactArgs(1),
		Long: `logs prints what a bottle's daemons and its keeper have logged.

With --egress it prints the access log instead: a line for each request of the agent's, and
for each tunnel that was passed through at its end: when it ended, the status that the agent
got, what became of it (allowed, REFUSED, or FAILED and by whom), how long it took, the bytes
that went out and came in, the request, and the route or grant that allowed it, or why not.

  17:04:05.678 200 allowed          41ms     120    3.4k  GET api.example.com/v1/models  (api.example.com  GET /v1/*)
  17:04:06.120 403 REFUSED egress    0ms       -       -  GET example.org/
               no route allows the host example.org

Of a query the number of parameters is logged (?2) and nothing else, since their values, and
even their names, can be secrets; no header and no body is. Egress logs up to 500 allowed
requests a second and 100 others, and says how many lines are missing. The newest 8 to 16
MiB of both are kept, in status/ of the bottle's state directory.

With --json each line is the JSON object that egress wrote, in ASCII; times are in UTC.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !o.egress && (o.refused || o.since != "" || a.json) {
				return usagef("--json, --refused and --since are for the access log: add --egress")
			}
			dir, err := a.dirOf(args[0])
			if err != nil {
				return err
			}
			m, err := dir.LoadMetadata()
			if err != nil {
				return err
			}
			if o.egress {
				err = a.accessLog(cmd.Context(), dir, o)
			} else {
				err = a.daemonLogs(cmd.Context(), dir, m, o.follow)
			}
			if o.follow && cmd.Context().Err() != nil {
				return nil // which is how it ends
			}
			return err
		},
	}
	c.Flags().BoolVar(&o.egress, "egress", false, "the access log: what the agent requested, and what became of it")
	c.Flags().BoolVarP(&o.follow, "follow", "f", false, "go on with what is logged, until Ctrl-C")
	c.Flags().BoolVar(&o.refused, "refused", false, "with --egress: only what did not get through")
	c.Flags().StringVar(&o.since, "since", "", "with --egress: only lines since then, a time span such as 10m or a time such as 2026-01-02T15:04:05Z")
	c.Flags().BoolVar(&a.json, "json", false, "with --egress: for programs, one JSON object a line, in ASCII")
	return c
}

// daemonLogs prints the logs of the daemons and of the keeper, with nothing in them that could act on the terminal.
func (a *app) daemonLogs(ctx context.Context, dir *bottle.Dir, m bottle.Metadata, follow bool) (err error) {
	out := &lockedWriter{w: a.out}
	var files []*logTail
	switch {
	case m.Backend != backendDocker:
		files = append(files, newLogTail(dir.Path("sidecars.log"), ""))
	case !m.StoppedAt.IsZero():
		files = append(files, newLogTail(dir.Path("compose.log"), ""))
	case !follow:
		if err := copyContainerLogs(ctx, dir, out, false); err != nil {
			return err
		}
	default:
		var wg sync.WaitGroup
		var said error
		ctx, cancel := context.WithCancel(ctx)
		wg.Go(func() { said = copyContainerLogs(ctx, dir, out, true) })
		defer func() {
			cancel()
			wg.Wait()
			err = errors.Join(err, said)
		}()
	}
	files = append(files, newLogTail(dir.Path("keep.log"), ""))
	writers := make([]io.Writer, len(files))
	for i := range files {
		writers[i] = prompt.LineWriter(out)
		defer files[i].Close()
	}
	return poll(ctx, follow, func() error {
		for i, f := range files {
			b, err := f.more()
			if err != nil {
				return err
			}
			if _, err := writers[i].Write(b); err != nil {
				return err
			}
		}
		return nil
	})
}

// poll calls do, and with follow again and again until ctx ends.
func poll(ctx context.Context, follow bool, do func() error) error {
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		if err := do(); err != nil || !follow {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// copyContainerLogs prints what the containers of a bottle have printed, which the engine has.
func copyContainerLogs(ctx context.Context, dir *bottle.Dir, w io.Writer, follow bool) error {
	d, err := launch.NewDocker(launch.DockerConfig{Dir: dir, Logger: quiet()})
	if err != nil {
		return err
	}
	defer d.Close()
	return d.CopyLogs(ctx, prompt.LineWriter(w), follow)
}

// A lockedWriter is for lines of several writers.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

// Write implements [io.Writer].
func (l *lockedWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}
