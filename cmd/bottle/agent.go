package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"bottle/bottle"
	"bottle/bottle/launch"
)

// runAgent runs an agent in the bottle, or waits for Ctrl-C.
func (a *app) runAgent(ctx context.Context, c *cell, argv []string) error {
	if len(argv) == 0 {
		env, err := c.backend.AgentEnv()
		if err != nil {
			return err
		}
		fmt.Fprintf(a.err, "no agent was given; bottle attach %s -- COMMAND runs one in the bottle, or run yours with this environment, unconfined (Ctrl-C stops the bottle):\n\n", c.name)
		for _, kv := range env {
			fmt.Fprintln(a.out, "export "+kv)
		}
		return c.untilStopped(ctx, a)
	}
	own, err := c.manifest.Agent.Environ(os.LookupEnv)
	if err != nil {
		return err
	}
	agent := launch.Agent{Argv: argv, Dir: c.manifest.Agent.Workspace}
	for _, k := range slices.Sorted(keysOf(own)) {
		agent.Env = append(agent.Env, k+"="+own[k])
	}
	if agent.In, agent.Out, agent.Err, err = a.files(); err != nil {
		return err
	}
	agent.TTY = term.IsTerminal(int(agent.In.Fd())) && term.IsTerminal(int(agent.Out.Fd()))
	code, err := c.backend.RunAgent(ctx, agent)
	switch {
	case code == 0:
		return err
	case err != nil:
		return codedError{code, err}
	}
	return silentExit(code)
}

// files are the streams that an agent gets: a terminal among them must be it, and no copy.
func (a *app) files() (in, out, errOut *os.File, err error) {
	out, okOut := a.out.(*os.File)
	errOut, okErr := a.err.(*os.File)
	if a.in == nil || !okOut || !okErr {
		return nil, nil, nil, errors.New("the agent needs files for its input and output")
	}
	return a.in, out, errOut, nil
}

// someShell becomes the shell that the bottle's environment names, else bash, else sh: it is
// only inside that one can see which there are.
var someShell = []string{"/bin/sh", "-c", `for s in "$SHELL" bash; do command -v "$s" >/dev/null 2>&1 && exec "$s"; done; exec /bin/sh`}

func (a *app) attachCmd() *cobra.Command {
	return &cobra.Command{
		Use: "attach NAME [-- COMMAND...]", Short: "run another agent, or a shell, in a running bottle",
		Long: `attach runs a command in a bottle that runs: the one after --, else the manifest's, else a
shell ($SHELL of agent.env, bash, or sh). It is a new program beside those that run there: what an earlier attach or start
shows stays with it. The bottle goes on when the command ends.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, argv := args[0], args[1:]
			if len(argv) > 0 && cmd.ArgsLenAtDash() != 1 {
				return usagef("put the command after --: bottle attach %s -- %s", name, strings.Join(argv, " "))
			}
			c, err := a.open(name, quiet())
			if err != nil {
				return err
			}
			defer c.Close()
			up, err := c.backend.Running(cmd.Context())
			if err != nil {
				return err
			}
			if !up {
				return fmt.Errorf("bottle %s does not run; bottle start -f FILE starts it", name)
			}
			if len(argv) == 0 {
				argv = c.manifest.Agent.Command
			}
			if len(argv) == 0 {
				argv = someShell
			}
			m, err := c.dir.LoadMetadata()
			if err != nil {
				return err
			}
			if err := runnable(argv, c.manifest.Agent.Workspace, place{m.Backend, m.Unconfined}); err != nil {
				return err
			}
			return a.runAgent(cmd.Context(), c, argv)
		},
	}
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
func supported(m *bottle.Manifest, at place) error {
	switch {
	case at.backend != backendLocal && at.backend != backendDocker:
		return usagef("backend %q is not there; use local or docker", at.backend)
	case at.backend == backendDocker && at.unconfined:
		return usagef("--unconfined is for the local backend; a container is what it is")
	case at.backend == backendDocker && m.Agent.Image == "" && m.Agent.Build == nil:
		return errors.New("agent.image: the docker backend needs one (or build); bottle image build makes bottle-claude")
	case len(m.Git) > 0:
		return errors.New("git: needs git-gate, which this version has not; remove it, and route the host under egress.routes")
	case m.Approvals.Policy != "":
		return errors.New("approvals.policy: this version has no policies; remove it, every request waits for you")
	case len(m.Pipelock.PassthroughDomains) > 0:
		return errors.New("pipelock.passthrough_domains: is about the interception of the real pipelock, which bottle does not turn on; remove it (a route's tls: passthrough is what you may want)")
	case m.Pipelock.Binary == "":
		return nil
	case at.backend == backendLocal && len(m.Egress.Resolve) > 0:
		return errors.New("egress.resolve: the real pipelock takes names from this machine alone; put them into /etc/hosts, or leave pipelock.binary empty for the built-in gate")
	}
	if _, err := exec.LookPath(m.Pipelock.Binary); err != nil {
		return fmt.Errorf("pipelock.binary: %w; leave it empty for the built-in gate", err)
	}
	return nil
}

// runnable looks for the agent's command before anything is started for it, with the exit
// codes that a shell has for this.
func runnable(argv []string, workspace string, at place) error {
	if len(argv) == 0 {
		return nil
	}
	if st, err := os.Stat(workspace); err != nil || !st.IsDir() {
		return fmt.Errorf("agent.workspace: %s is not a directory; make it, or name another", workspace)
	}
	if at.backend == backendDocker {
		return nil // the command is the image's
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
