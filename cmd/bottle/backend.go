package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"bottle/bottle"
	"bottle/bottle/launch"
)

// The backends, as flags, settings and metadata.json name them.
const (
	backendLocal  = "local"
	backendDocker = "docker"
)

// bundleImage is the image of the bundle, which image build makes and start looks for. A build
// may stamp another name, as of a registry, or so that two versions don't share one.
var bundleImage = launch.BundleImage

// A backend is what a bottle's daemons and its agents run on.
type backend interface {
	launch.Backend
	// Prepare writes what the bundle is started with. The caller holds the lock, and no bundle runs.
	Prepare(ctx context.Context, f launch.Files) error
	// StopBundle ends the daemons, and leaves agents that can bear it.
	StopBundle(ctx context.Context) error
	// AgentEnv is what an agent in the bottle has in its environment.
	AgentEnv() ([]string, error)
	// RunAgent runs one more agent in the bottle, and returns its exit code. A code that is
	// not the agent's own word, as a shell has 127, comes with its reason as an error.
	RunAgent(ctx context.Context, a launch.Agent) (code int, err error)
	Close() error
}

var (
	_ backend = (*localBackend)(nil)
	_ backend = (*launch.Docker)(nil)
)

// newBackend opens a backend; nothing is started or asked.
func newBackend(name string, dir *bottle.Dir, m *bottle.Manifest, unconfined bool, logger *slog.Logger) (backend, error) {
	if name == backendDocker {
		return launch.NewDocker(launch.DockerConfig{Dir: dir, Logger: logger, Manifest: m, Image: bundleImage, Bridge: findBinary("bottle-mcp")})
	}
	l, err := launch.NewLocal(launch.LocalConfig{Dir: dir, Sidecars: findBinary("bottle-sidecars"), Logger: logger})
	if err != nil {
		return nil, err
	}
	return &localBackend{Local: l, dir: dir, manifest: m, unconfined: unconfined}, nil
}

// pickBackend is what a start runs on: what the operator said, else docker for a manifest that
// names an image, else this machine. No image is passed over in silence.
func pickBackend(said string, m *bottle.Manifest) string {
	switch {
	case said != "":
		return said
	case m.Agent.Image != "" || m.Agent.Build != nil:
		return backendDocker
	}
	return backendLocal
}

// askTimeout bounds a question to an engine that may be away.
const askTimeout = 5 * time.Second

// running reports whether a bottle's bundle runs, by the host's own knowledge.
func running(ctx context.Context, dir *bottle.Dir, m bottle.Metadata) (bool, error) {
	b, err := newBackend(m.Backend, dir, nil, m.Unconfined, quiet())
	if err != nil {
		return false, err
	}
	defer b.Close()
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return b.Running(ctx)
}

// localBackend runs the daemons as child processes, and the agent beside them in a sandbox, or
// without one if the operator said so.
type localBackend struct {
	*launch.Local
	dir        *bottle.Dir
	manifest   *bottle.Manifest
	unconfined bool
}

func (l *localBackend) Prepare(ctx context.Context, f launch.Files) error {
	return launch.Prepare(l.dir, l.manifest, f)
}

func (l *localBackend) StopBundle(ctx context.Context) error { return l.Stop(ctx) }

func (l *localBackend) Close() error { return nil }

func (l *localBackend) AgentEnv() ([]string, error) { return launch.AgentEnv(l.dir) }

func (l *localBackend) RunAgent(ctx context.Context, a launch.Agent) (int, error) {
	if !l.unconfined {
		return l.runConfined(ctx, a)
	}
	env, err := launch.AgentEnv(l.dir)
	if err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, a.Argv[0], a.Argv[1:]...) //nolint:gosec // G204: the operator's own agent
	cmd.Env = launch.Environ(os.Environ(), append(env, a.Env...), l.manifest.Credentials)
	cmd.Dir = a.Dir
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.In, a.Out, a.Err
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			return 128 + int(ws.Signal()), nil // as a shell has it
		}
		return exit.ExitCode(), nil
	case err != nil:
		return 0, fmt.Errorf("run the agent: %w", err)
	}
	return 0, nil
}

// runConfined runs an agent in a sandbox.
func (l *localBackend) runConfined(ctx context.Context, a launch.Agent) (int, error) {
	s, argv, err := l.sandbox(ctx, a.Argv)
	if err != nil {
		return 0, err
	}
	if gap := s.Unbounded(); gap != "" {
		fmt.Fprintln(a.Err, "bottle: "+gap)
	}
	a.Argv = argv
	return s.RunAgent(ctx, a)
}

// sandbox makes one in which the program is shown, wherever it lies on this machine.
func (l *localBackend) sandbox(ctx context.Context, argv []string) (*launch.Sandbox, []string, error) {
	argv, shown, err := showProgram(argv, l.manifest.Agent.Workspace)
	if err != nil {
		return nil, nil, err
	}
	s, err := launch.NewSandbox(ctx, launch.SandboxConfig{
		Dir: l.dir, Workspace: l.manifest.Agent.Workspace, MCP: findBinary("bottle-mcp"), ReadOnly: shown,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("%w; --unconfined runs the agent without a sandbox", err)
	}
	return s, argv, nil
}

// checkAgent says before the daemons are started why an agent could not be.
func (l *localBackend) checkAgent(ctx context.Context, argv []string) error {
	if l.unconfined || len(argv) == 0 {
		return nil
	}
	_, _, err := l.sandbox(ctx, argv)
	return err
}

// systemDirs are those that every sandbox shows.
var systemDirs = []string{"/usr/", "/bin/", "/sbin/", "/lib/", "/lib64/"}

// showProgram finds a command as this machine's PATH has it. If it lies outside of the system's
// directories, the sandbox is to show the directory of the program and of what it is a link to.
func showProgram(argv []string, workspace string) (out, shown []string, err error) {
	name := argv[0]
	if strings.Contains(name, "/") && !filepath.IsAbs(name) {
		return argv, nil, nil // below the workspace
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return nil, nil, err
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, nil, err
	}
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, nil, err
	}
	for _, p := range []string{path, target} {
		seen := strings.HasPrefix(p, workspace+"/") || slices.ContainsFunc(systemDirs, func(d string) bool { return strings.HasPrefix(p, d) })
		if dir := filepath.Dir(p); !seen && !slices.Contains(shown, dir) {
			shown = append(shown, dir)
		}
	}
	return append([]string{path}, argv[1:]...), shown, nil
}

// checkConfinement says before anything is started why an agent can't be confined here.
func checkConfinement(ctx context.Context) error {
	for _, f := range launch.CheckSandbox(ctx) {
		if f.State == launch.FindingFailed {
			return fmt.Errorf("the agent can't be confined on this machine: %s: %s; fix: %s; or --unconfined runs it without a sandbox", f.What, f.Detail, f.Fix)
		}
	}
	return nil
}
