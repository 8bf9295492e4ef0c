package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"bottle/bottle"
	"bottle/bottle/launch"
)

// runAgent runs the agent's command with the bottle's environment, or waits for Ctrl-C.
func (a *app) runAgent(ctx context.Context, c *cell, argv []string) error {
	env, err := launch.AgentEnv(c.dir)
	if err != nil {
		return err
	}
	if len(argv) == 0 {
		fmt.Fprintf(a.err, "no agent was given; run yours with this environment (Ctrl-C stops the bottle):\n\n")
		for _, kv := range env {
			fmt.Fprintln(a.out, "export "+kv)
		}
		return c.untilStopped(ctx, a)
	}
	own, err := c.manifest.Agent.Environ(os.LookupEnv)
	if err != nil {
		return err
	}
	for k, v := range own {
		env = append(env, k+"="+v)
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...) //nolint:gosec // G204: the operator's own agent
	cmd.Env = launch.Environ(os.Environ(), env, c.manifest.Credentials)
	cmd.Dir = c.manifest.Agent.Workspace
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.in, a.out, a.err
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			return silentExit(128 + int(ws.Signal())) // as a shell has it
		}
		return silentExit(exit.ExitCode())
	case err != nil:
		return fmt.Errorf("run the agent: %w", err)
	}
	return nil
}

// untilStopped waits for Ctrl-C, or for bottle stop from elsewhere.
func (c *cell) untilStopped(ctx context.Context, a *app) error {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if m, err := c.dir.LoadMetadata(); err == nil && !m.StoppedAt.IsZero() {
			fmt.Fprintf(a.err, "bottle %s was stopped from elsewhere\n", c.name)
			return nil
		}
	}
}

// supported refuses what the manifest can say and this version does not do: a key that is
// passed over in silence would be taken for one that works.
func supported(m *bottle.Manifest) error {
	switch {
	case m.Agent.Image != "" || m.Agent.Build != nil:
		return errors.New("agent.image: needs the docker backend, which this version has not; remove it (and build) to run the agent on this machine, unconfined")
	case len(m.Git) > 0:
		return errors.New("git: needs git-gate, which this version has not; remove it, and route the host under egress.routes")
	case m.Approvals.Policy != "":
		return errors.New("approvals.policy: this version has no policies; remove it, every request waits for you")
	case m.Pipelock.Binary != "":
		return errors.New("pipelock.binary: this version runs the built-in gate only; remove it")
	case len(m.Pipelock.PassthroughDomains) > 0:
		return errors.New("pipelock.passthrough_domains: is for the real pipelock, which this version does not run; remove it (a route's tls: passthrough is what you may want)")
	}
	return nil
}

// runnable looks for the agent's command before anything is started for it, with the exit
// codes that a shell has for this.
func runnable(argv []string, workspace string) error {
	if len(argv) == 0 {
		return nil
	}
	if st, err := os.Stat(workspace); err != nil || !st.IsDir() {
		return fmt.Errorf("agent.workspace: %s is not a directory; make it, or name another", workspace)
	}
	_, err := exec.LookPath(argv[0])
	switch {
	case err == nil, strings.Contains(argv[0], "/") && !filepath.IsAbs(argv[0]): // relative to the workspace
		return nil
	case errors.Is(err, fs.ErrPermission):
		return codedError{126, fmt.Errorf("the agent's command %s can't be executed", argv[0])}
	}
	return codedError{127, fmt.Errorf("the agent's command %s was not found", argv[0])}
}
