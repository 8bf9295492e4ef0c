package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"bottle/bottle"
	"bottle/bottle/audit"
	"bottle/bottle/keep"
	"bottle/bottle/launch"
	"bottle/bottle/pipelock"
	"bottle/bottle/prompt"
)

func (a *app) startCmd() *cobra.Command {
	var file, on string
	var detach, accept, unconfined bool
	c := &cobra.Command{
		Use: "start -f FILE [-- COMMAND...]", Short: "start a bottle, and the agent in it",
		Long: `start brings up the bottle's daemons and runs the agent: the command after --, or the
manifest's. It stops the bottle when the agent ends, with the agent's exit code. Without
a command it waits, and stops the bottle on Ctrl-C; with --detach it returns once the
bottle is ready, and bottle attach runs agents in it.

On the docker backend the daemons and the agent are two containers. On the local backend
the daemons are processes of this machine, and the agent runs in a sandbox (bubblewrap).
Without --backend a manifest that names an image runs on docker, any other locally.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if file == "" {
				return usagef("-f FILE is required: the bottle's manifest (examples/local.yaml is one)")
			}
			if len(args) > 0 && cmd.ArgsLenAtDash() != 0 {
				return usagef("put the agent's command after --: bottle start -f %s -- %s", file, strings.Join(args, " "))
			}
			if detach && len(args) > 0 {
				return usagef("--detach starts no agent; leave the command out, or leave --detach out")
			}
			return a.start(cmd.Context(), startOptions{file: file, on: on, accept: accept, detach: detach, unconfined: unconfined, argv: args})
		},
	}
	c.Flags().StringVarP(&file, "file", "f", "", "the manifest (required)")
	c.Flags().BoolVar(&detach, "detach", false, "return once the bottle is ready, without an agent")
	c.Flags().BoolVar(&accept, "accept", false, "accept a manifest that differs from the one at the last start")
	c.Flags().StringVar(&on, "backend", "", "local or docker (BOTTLE_BACKEND; default: docker if the manifest names an image)")
	c.Flags().BoolVar(&unconfined, "unconfined", false, "run the agent without a sandbox; local backend alone")
	return c
}

type startOptions struct {
	file, on                   string
	accept, detach, unconfined bool
	argv                       []string
}

func (a *app) start(ctx context.Context, o startOptions) error {
	// A reader of our output that has gone (start ... | head) would end us by this signal, before the bottle is stopped;
	// now the write fails, and that is an end like others.
	pipe := make(chan os.Signal, 1)
	signal.Notify(pipe, syscall.SIGPIPE)
	defer signal.Stop(pipe)
	text, err := os.ReadFile(o.file)
	if err != nil {
		return fmt.Errorf("-f: %w", err)
	}
	m, err := parseManifest(text, o.file)
	if err != nil {
		return err
	}
	at := place{pickBackend(cmp.Or(o.on, a.set.Backend), m), o.unconfined}
	if err := supported(m, at); err != nil {
		return err
	}
	argv := o.argv
	if len(argv) == 0 && !o.detach {
		argv = m.Agent.Command
	}
	if err := runnable(argv, m.Agent.Workspace, at); err != nil {
		return err
	}
	if at.backend == backendLocal && !at.unconfined && len(argv) > 0 {
		if err := checkConfinement(ctx); err != nil {
			return err
		}
	}
	dir, err := a.dirOf(m.Name)
	if err != nil {
		return err
	}
	if err := readable(ctx, dir, m, at, argv); err != nil {
		return err
	}
	if err := dir.Create(); err != nil {
		return err
	}
	c, err := a.assemble(dir, m, at, quiet())
	if err != nil {
		return err
	}
	defer c.Close()
	path, err := filepath.Abs(o.file)
	if err != nil {
		return err
	}
	if err := c.prepare(ctx, a, at, path, o.accept); err != nil {
		return err
	}
	if l, ok := c.backend.(*localBackend); ok {
		if err := l.checkAgent(ctx, argv); err != nil {
			return errors.Join(err, c.stop(context.WithoutCancel(ctx)))
		}
	}
	if err := c.noteWorkspace(a.err); err != nil {
		return errors.Join(err, c.stop(context.WithoutCancel(ctx)))
	}
	if d, ok := c.backend.(*launch.Docker); ok {
		a.warnImage(ctx, d)
	}
	if err := c.bringUp(ctx, a); err != nil {
		return err
	}
	a.announce(m, at)
	if o.detach {
		return nil
	}
	runErr := a.runAgent(ctx, c, argv)
	stopErr := c.stop(context.WithoutCancel(ctx))
	if stopErr == nil {
		fmt.Fprintf(a.err, "bottle %s is stopped\n", m.Name)
	}
	c.reportWorkspace(a.err)
	if runErr != nil {
		if stopErr != nil {
			fmt.Fprintln(a.err, "bottle: "+prompt.Text(stopErr.Error()))
		}
		return runErr
	}
	return stopErr
}

// announce says that the bottle is ready, what it is not, and what it lacks.
func (a *app) announce(m *bottle.Manifest, at place) {
	fmt.Fprintf(a.err, "bottle %s is ready; decide what its agent asks for with: bottle review\n", m.Name)
	if at.unconfined {
		fmt.Fprintln(a.err, "the agent is not confined, as you said: it can reach the network around egress, read your files and tokens, and decide requests")
	}
	if m.Pipelock.Binary != "" {
		for _, gap := range pipelock.RealGaps(at.backend == backendLocal) {
			fmt.Fprintln(a.err, gap)
		}
	}
	if why := unwritable(m.Agent.Workspace); why != "" {
		fmt.Fprintf(a.err, "agent.workspace: the agent can't write in %s: %s; chown or chmod it if it should\n", prompt.Text(m.Agent.Workspace), why)
	}
	a.missingTokens(m)
}

// missingTokens says which credentials the keeper will not have: it reads them from our environment.
func (a *app) missingTokens(m *bottle.Manifest) {
	for _, name := range slices.Sorted(keysOf(m.Credentials)) {
		if env := m.Credentials[name].TokenEnv; os.Getenv(env) == "" {
			fmt.Fprintf(a.err, "credential %s: %s is not set, so what needs it will be refused; set it, then bottle restart %s\n", name, env, m.Name)
		}
	}
}

// prepare settles what an earlier run left, checks the manifest against the accepted one,
// and writes what the bundle starts with.
func (c *cell) prepare(ctx context.Context, a *app, at place, path string, accept bool) error {
	old, err := c.dir.LoadMetadata()
	fresh := errors.Is(err, bottle.ErrNotFound)
	if err != nil && !fresh {
		return err
	}
	up := old.Keeper.Alive()
	if !fresh && !up {
		if up, err = running(ctx, c.dir, old); err != nil {
			return err
		}
	}
	if up {
		return fmt.Errorf("bottle %[1]s is running already; bottle attach %[1]s runs an agent in it, bottle stop %[1]s ends it, bottle restart %[1]s starts its daemons anew", c.name)
	}
	if !fresh {
		if err := c.endSession(ctx); err != nil {
			return err
		}
	}
	if err := c.acceptManifest(ctx, a, accept); err != nil {
		return err
	}
	return c.locked(ctx, func() (err error) {
		err = c.dir.UpdateMetadata(func(m *bottle.Metadata) error {
			m.Backend, m.Unconfined, m.Manifest, m.StartedAt, m.StoppedAt = at.backend, at.unconfined, path, time.Now().UTC(), time.Time{}
			return nil
		})
		if err != nil {
			return err
		}
		defer func() { // or it would be listed as one whose daemons are down
			if err != nil {
				err = errors.Join(err, c.dir.UpdateMetadata(func(m *bottle.Metadata) error { m.StoppedAt = m.StartedAt; return nil }))
			}
		}()
		base, err := c.apply.Expected(ctx)
		if err != nil {
			return err
		}
		if err := c.backend.Prepare(ctx, launch.Files(base)); err != nil {
			return err
		}
		permanent, err := permanentRoutes(base.Routes)
		if err != nil {
			return err
		}
		accepted := *c.manifest
		accepted.Egress.Routes = append(slices.Clone(c.manifest.Egress.Routes), permanent...)
		text, err := accepted.Encode()
		if err != nil {
			return err
		}
		return bottle.WriteFile(c.dir.Manifest(), text, 0o600)
	})
}

// endSession settles what a killed apply left, and ends the grants that last until the
// bottle stops. No bundle runs.
func (c *cell) endSession(ctx context.Context) error {
	if _, err := os.Stat(c.dir.Routes()); errors.Is(err, fs.ErrNotExist) {
		return nil // the first start did not come that far
	}
	if _, err := c.apply.Recover(ctx); err != nil {
		return err
	}
	_, err := c.apply.EndSession(ctx)
	return err
}

// bringUp starts the keeper, which starts the bundle, and waits for both.
func (c *cell) bringUp(ctx context.Context, a *app) error {
	err := c.startKeeper(ctx, a)
	if err == nil {
		_, err = c.backend.WaitReady(ctx)
	}
	if err != nil {
		return errors.Join(err, c.stop(context.WithoutCancel(ctx)))
	}
	return c.trail.Record(ctx, bottle.Event{Name: string(audit.Started), By: actor()})
}

// startKeeper runs bottle keep in a session of its own. It inherits the environment, where
// the tokens are, and keeps it from the bundle and from the agent.
func (c *cell) startKeeper(ctx context.Context, a *app) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	logFile, err := os.OpenFile(c.dir.Path("keep.log"), os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("start the keeper: %w", err)
	}
	defer logFile.Close()
	before, err := c.dir.LoadMetadata()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, "keep", c.name, "--state-dir", a.set.StateDir) //nolint:gosec,noctx // G204: ourselves, to outlive us
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the keeper: %w", err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // why it ended stands in its log
	}()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	for {
		m, err := c.dir.LoadMetadata()
		if err == nil && m.Keeper.PID == cmd.Process.Pid && startedAnew(before, m) {
			return nil
		}
		select {
		case <-ended:
			return fmt.Errorf("the keeper did not come up: %s", lastLine(c.dir.Path("keep.log")))
		case <-ctx.Done():
			_ = cmd.Process.Signal(syscall.SIGTERM)
			<-ended
			return errors.Join(ctx.Err(), c.stop(context.WithoutCancel(ctx)))
		case <-look.C:
			if why := cantStart(c.dir, cmd.Process.Pid); why != "" {
				return errors.New(why)
			}
		case <-tick.C:
		}
	}
}

// cantStart is why a keeper could not start the bundle, if it could not. It would try on for ever, with nobody told.
func cantStart(dir *bottle.Dir, keeper int) string {
	st, err := keep.ReadStatus(dir)
	if err != nil || st.PID != keeper {
		return ""
	}
	for _, p := range st.Problems {
		if why, ok := strings.CutPrefix(p, "bundle: "); ok {
			return why
		}
	}
	return ""
}

// startedAnew reports whether the keeper has started a bundle since.
func startedAnew(before, now bottle.Metadata) bool {
	if now.Backend == backendDocker {
		return now.Docker != nil && now.Docker.Sidecars != "" && (before.Docker == nil || now.Docker.Sidecars != before.Docker.Sidecars)
	}
	return now.Init != before.Init
}

func lastLine(path string) string {
	b, err := bottle.ReadFile(path, 16<<20)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1] + " (log: " + path + ")"
}

func (a *app) stopCmd() *cobra.Command {
	return &cobra.Command{
		Use: "stop NAME", Short: "stop a bottle; its session and once grants end", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.open(args[0], quiet())
			if err != nil {
				return err
			}
			defer c.Close()
			if err := c.stop(cmd.Context()); err != nil {
				return err
			}
			fmt.Fprintf(a.out, "bottle %s is stopped\n", c.name)
			c.reportWorkspace(a.err)
			return nil
		},
	}
}

// stop ends the keeper, then the bundle, then the grants. Each part may be gone already.
func (c *cell) stop(ctx context.Context) error {
	m, err := c.dir.LoadMetadata()
	if err != nil {
		return err
	}
	if err := launch.EndProcess(ctx, m.Keeper); err != nil {
		return err
	}
	if err := c.backend.Stop(ctx); err != nil {
		return err
	}
	if err := c.endSession(ctx); err != nil {
		return err
	}
	return c.locked(ctx, func() error {
		if !m.StoppedAt.IsZero() {
			return nil // it was stopped before
		}
		if err := c.trail.Record(ctx, bottle.Event{Name: string(audit.Stopped), By: actor()}); err != nil {
			return err
		}
		return c.dir.UpdateMetadata(func(m *bottle.Metadata) error { m.StoppedAt = time.Now().UTC(); return nil })
	})
}

func actor() *bottle.Actor {
	by := operator()
	return &by
}

func (a *app) restartCmd() *cobra.Command {
	return &cobra.Command{
		Use: "restart NAME", Short: "start a bottle's daemons anew; grants, revisions and the agent's MCP session stay", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			c, err := a.open(args[0], quiet())
			if err != nil {
				return err
			}
			defer c.Close()
			m, err := c.dir.LoadMetadata()
			if err != nil {
				return err
			}
			if !m.StoppedAt.IsZero() {
				return fmt.Errorf("bottle %s is stopped; bottle start -f %s starts it", c.name, m.Manifest)
			}
			if err := launch.EndProcess(ctx, m.Keeper); err != nil {
				return err
			}
			if err := c.backend.StopBundle(ctx); err != nil {
				return err
			}
			if err := c.startKeeper(ctx, a); err != nil {
				return err
			}
			if _, err := c.backend.WaitReady(ctx); err != nil {
				return err
			}
			fmt.Fprintf(a.out, "bottle %s is ready again\n", c.name)
			a.missingTokens(c.manifest)
			return nil
		},
	}
}
