package main_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"bottle/bottle/pipelock/pipelocktest"
)

// The scripts drive the real programs, built once for the run, with a real keeper and
// bundle for each script: what testscript runs in the test binary is the agent's part alone
// (see agent_test.go) and a few steps that a script can't write (steps_test.go).

// BOTTLE_TEST_RACE=1 builds the programs with the race detector. It is not the default, even
// where the tests run with it: a script starts dozens of processes, each of which then takes
// many times as long to start.

// programs is the directory of the programs under test.
var programs string

// suite builds the programs around the tests' run, and takes them away again.
type suite struct{ *testing.M }

func (s suite) Run() int {
	dir, err := os.MkdirTemp("", "bottle-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	args, env := []string{"build", "-o", dir + "/"}, append(os.Environ(), "CGO_ENABLED=0") // as make build has it
	if os.Getenv("BOTTLE_TEST_RACE") != "" {
		args, env = append(args, "-race"), os.Environ()
	}
	build := exec.CommandContext(context.Background(), "go", append(args, "../...")...)
	build.Env = env
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go %s: %v\n%s", strings.Join(build.Args[1:], " "), err, out)
		return 1
	}
	programs = dir
	return s.M.Run()
}

// program is a call of one of the programs under test.
func program(name string, args ...string) *exec.Cmd {
	return exec.CommandContext(context.Background(), filepath.Join(programs, name), args...)
}

func TestMain(m *testing.M) {
	testscript.Main(suite{m}, map[string]func(){"fetch": fetchMain, "pipelock": func() { os.Exit(pipelocktest.Main(os.Args[1:])) }})
}

func TestScripts(t *testing.T) { runScripts(t, "testdata/script") }

func runScripts(t *testing.T, dir string) {
	up := newUpstream(t)
	left := &leftovers{}
	t.Run("script", func(t *testing.T) {
		testscript.Run(t, testscript.Params{
			Dir:                 dir,
			RequireExplicitExec: true,
			RequireUniqueNames:  true,
			Setup:               func(env *testscript.Env) error { return setup(env, up, left) },
			Cmds:                steps,
		})
	})
	for _, l := range left.list {
		t.Error(l)
	}
}

// A world is what a script's steps share.
type world struct {
	state   string // the operator's state directory
	mounted string // to be unmounted
	agents  map[string]*agent
}

type worldKey struct{}

func worldOf(ts *testscript.TestScript) *world {
	w, ok := ts.Value(worldKey{}).(*world)
	if !ok {
		ts.Fatalf("no world in the script's values")
	}
	return w
}

// setup gives a script its own state directory, with a path that leaves room for sockets,
// and fills $PORT and the like into its manifests.
func setup(env *testscript.Env, up *upstream, left *leftovers) error {
	state, err := os.MkdirTemp("/tmp", "b") // t.TempDir is too long for a socket's path
	if err != nil {
		return err
	}
	w := &world{state: state, agents: map[string]*agent{}}
	env.Values[worldKey{}] = w
	name := filepath.Base(strings.TrimPrefix(env.WorkDir, os.TempDir()))
	env.Defer(func() {
		for _, a := range w.agents {
			a.close()
		}
		left.add(name, w.clear())
		if f, ok := env.T().(interface{ Failed() bool }); ok && f.Failed() {
			env.T().Log(w.logs())
		}
		if w.mounted != "" {
			_ = unix.Unmount(w.mounted, unix.MNT_DETACH)
		}
		_ = os.RemoveAll(state)
	})
	home := filepath.Join(env.WorkDir, "home")
	if err := os.MkdirAll(home, 0o700); err != nil {
		return err
	}
	env.Setenv("HOME", home)
	env.Setenv("XDG_CONFIG_HOME", filepath.Join(home, ".config"))
	env.Setenv("PATH", programs+":"+env.Getenv("PATH"))
	env.Setenv("STATE", state)
	env.Setenv("BOTTLE_STATE_DIR", state)
	env.Setenv("PORT", up.port)
	env.Setenv("BADPORT", up.badPort)
	env.Setenv("DOWNPORT", up.downPort)
	standIn, err := exec.LookPath("pipelock") // among testscript's own commands
	if err != nil {
		return err
	}
	if standIn, err = filepath.EvalSymlinks(standIn); err != nil {
		return err
	}
	env.Setenv("PIPELOCK", standIn)
	ca := filepath.Join(env.WorkDir, "upstream-ca.pem")
	if err := os.WriteFile(ca, up.ca, 0o600); err != nil {
		return err
	}
	return fillManifests(env.WorkDir, strings.NewReplacer("$PORT", up.port, "$BADPORT", up.badPort, "$DOWNPORT", up.downPort, "$CA", ca, "$PIPELOCK", standIn))
}

// manifest is what a script gets that brings none of its own.
const manifest = `name: b
egress:
  routes:
    - host: open.corp.example
      ports: [$PORT]
  resolve:
    open.corp.example: 127.0.0.1
    api.corp.example: 127.0.0.1
    data.corp.example: 127.0.0.1
  allow_cidrs: [127.0.0.0/8]
  upstream_ca: $CA
`

func fillManifests(dir string, values *strings.Replacer) error {
	own := filepath.Join(dir, "b.yaml")
	if _, err := os.Stat(own); errors.Is(err, os.ErrNotExist) {
		if err := os.WriteFile(own, []byte(manifest), 0o600); err != nil {
			return err
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil {
		return err
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		if err := os.WriteFile(f, []byte(values.Replace(string(b))), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// leftovers are the processes that outlived the bottle stop of their script.
type leftovers struct {
	mu   sync.Mutex
	list []string
}

func (l *leftovers) add(name string, found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range found {
		l.list = append(l.list, name+": "+f)
	}
}

// clear stops what runs in the state directory, as an operator would, and returns what is
// wrong: a process that outlived its bottle's stop, or a data race in a log. Nothing is left
// running in any case.
func (w *world) clear() (found []string) {
	stopped := true
	bottles, _ := filepath.Glob(filepath.Join(w.state, "*", "metadata.json"))
	for _, m := range bottles {
		cmd := program("bottle", "stop", filepath.Base(filepath.Dir(m)), "--state-dir", w.state)
		stopped = cmd.Run() == nil && stopped
	}
	for _, pid := range w.processes() {
		if stopped {
			found = append(found, fmt.Sprintf("process %d outlived bottle stop: %s", pid, cmdline(pid)))
		}
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	for end := time.Now().Add(5 * time.Second); len(w.processes()) > 0; {
		if time.Now().After(end) {
			return append(found, fmt.Sprintf("processes %v don't end on KILL", w.processes()))
		}
		<-time.After(5 * time.Millisecond)
	}
	if strings.Contains(w.logs(), "DATA RACE") {
		found = append(found, w.logs())
	}
	return found
}

// processes finds those with the state directory in their command line.
func (w *world) processes() []int {
	var out []int
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		var pid int
		if _, err := fmt.Sscan(filepath.Base(d), &pid); err == nil && pid != os.Getpid() && strings.Contains(cmdline(pid), w.state) {
			out = append(out, pid)
		}
	}
	return out
}

func cmdline(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return ""
	}
	return string(bytes.ReplaceAll(b, []byte{0}, []byte(" ")))
}

// logs are the bundle's and the keeper's, of every bottle.
func (w *world) logs() string {
	var out strings.Builder
	files, _ := filepath.Glob(filepath.Join(w.state, "*", "*.log"))
	for _, f := range files {
		b, _ := os.ReadFile(f)
		fmt.Fprintf(&out, "== %s\n%s", f, b)
	}
	return out.String()
}
