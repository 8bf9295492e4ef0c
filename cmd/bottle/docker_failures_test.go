package main_test

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
)

// Ctrl-C in the middle of a start, and what an agent's end leaves: nothing, on the engine and in the process table.
func TestDockerStart(t *testing.T) {
	d := newDock(t)
	if d == nil {
		return
	}
	p := pot(t, d, randomName(), "")
	runs := func() bool { _, err := os.Stat(filepath.Join(p.workspace, "runs")); return err == nil }
	for _, c := range []struct {
		moment string
		come   func() bool
		signal syscall.Signal // 0: that of Ctrl-C
	}{
		{moment: "something is made", come: func() bool { return len(p.onEngine()) > 0 }},
		{moment: "the keeper runs", come: func() bool { m, err := p.dir.LoadMetadata(); return err == nil && m.Keeper.Alive() }},
		{moment: "compose makes a container", come: func() bool {
			cs, err := d.cli.ContainerList(t.Context(), container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", "bottle.name="+p.name))})
			return err == nil && len(cs) > 0
		}},
		{moment: "the agent runs", come: runs},
		{moment: "the agent runs, by the end of the terminal", come: runs, signal: syscall.SIGHUP},
	} {
		t.Run("interrupted when "+c.moment, func(t *testing.T) {
			p := p.in(t)
			_ = os.Remove(filepath.Join(p.workspace, "runs"))
			start := p.begin()
			eventually(t, func() string {
				if c.come() {
					return ""
				}
				return "not yet"
			})
			if err := syscall.Kill(-start.Process.Pid, cmp.Or(c.signal, syscall.SIGINT)); err != nil { // as a terminal does
				t.Fatal(err)
			}
			if err := start.Wait(); err == nil {
				t.Errorf("it says it went well:\n%s", &start.out)
			}
			if strings.Contains(start.out.String(), "panic") || start.ProcessState.ExitCode() < 0 {
				t.Errorf("%v:\n%s", start.ProcessState, &start.out)
			}
			for _, left := range p.onEngine() {
				t.Errorf("left: %s\n%s", left, &start.out)
			}
			for _, pid := range p.world.processes() {
				t.Errorf("left: process %d: %s", pid, cmdline(pid))
			}
			// Before the manifest was accepted there was no start.
			if out := p.bottle("ls"); !strings.Contains(out, " stopped ") && !strings.Contains(out, " never-started ") {
				t.Error(out)
			}
		})
	}
	t.Run("the agent's exit code is that of start", func(t *testing.T) {
		p := p.in(t)
		says(t, p.code(5, "start", "-f", p.manifest, "--", "sh", "-c", "echo from $PWD; exit 5"), "from /workspace\n", "is stopped")
		if left := p.onEngine(); len(left) > 0 {
			t.Errorf("left: %q", left)
		}
	})
	t.Run("the reader of its output goes away", func(t *testing.T) {
		p := p.in(t)
		start := p.command("start", "-f", p.manifest, "--", "sh", "-c", "while :; do echo on and on; sleep 0.05; done")
		out, err := start.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		start.Stderr = new(bytes.Buffer)
		if err := start.Start(); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(out).ReadString('\n'); line != "on and on\n" {
			t.Errorf("%q, %v", line, err)
		}
		_ = out.Close()
		if _ = start.Wait(); start.ProcessState.ExitCode() != 1 {
			t.Errorf("%v", start.ProcessState)
		}
		says(t, p.bottle("ls"), " stopped ")
		if left := p.onEngine(); len(left) > 0 {
			t.Errorf("left: %q", left)
		}
	})
	t.Run("compose fails under the keeper", func(t *testing.T) {
		p := p.in(t)
		docker, err := exec.LookPath("docker")
		if err != nil {
			t.Fatal(err)
		}
		fake := t.TempDir()
		script := `#!/bin/sh
case " $* " in *" up "*) echo "write /var/lib/x: no space left on device" >&2; exit 1;; esac
exec ` + docker + ` "$@"
`
		if err := os.WriteFile(filepath.Join(fake, "docker"), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		start := p.command("start", "-f", p.manifest, "--detach")
		start.Env = append(start.Env, "PATH="+fake+":"+os.Getenv("PATH"))
		out, err := start.CombinedOutput()
		if err == nil {
			t.Error("it started")
		}
		says(t, string(out), "the engine has no space left", "/var/lib/x")
		says(t, p.bottle("ls"), " stopped ")
		if left := p.onEngine(); len(left) > 0 {
			t.Errorf("left: %q", left)
		}
	})
	t.Run("a program that the image has not", func(t *testing.T) {
		p := p.in(t)
		says(t, p.code(127, "start", "-f", p.manifest, "--", "no-such-program"), "bottle: the agent's command no-such-program was not found in its image", "is stopped")
	})
	t.Run("at a terminal", func(t *testing.T) {
		p := p.in(t)
		out, err := p.dialogue("? which code\n< 9\n", "start", "-f", p.manifest, "--backend", "docker", "--", "sh", "-c", "tty; echo which code; read code; exit $code")
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 9 {
			t.Errorf("%v\n%s", err, out)
		}
		says(t, out, "/dev/pts/", "is stopped")
	})
}

// A kill -9 of all that would tear a bottle down leaves it to bottle cleanup.
func TestDockerCleanup(t *testing.T) {
	d := newDock(t)
	if d == nil {
		return
	}
	p := pot(t, d, randomName(), "")
	start := p.begin()
	eventually(t, func() string {
		if _, err := os.Stat(filepath.Join(p.workspace, "runs")); err != nil {
			return "the agent does not run"
		}
		return ""
	})
	if out := p.bottle("cleanup"); out != "nothing was left\n" {
		t.Errorf("of a bottle that lives: %s", out)
	}
	for _, pid := range []int{start.Process.Pid, p.metadata().Keeper.PID} {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	_ = start.Wait()
	eventually(t, func() string {
		if p.metadata().Keeper.Alive() {
			return "the keeper does not die"
		}
		return ""
	})
	says(t, p.bottle("ls"), " unattended ")
	// Another operator's cleanup leaves it alone.
	other := p.command("cleanup", "--state-dir", t.TempDir())
	if out, err := other.CombinedOutput(); err != nil || string(out) != "nothing was left\n" {
		t.Errorf("%v, %s", err, out)
	}
	out := p.bottle("cleanup")
	project := "bottle-" + p.name
	says(t, out, "removed container "+project+"-sidecars-1", "removed container "+project+"-agent-1",
		"removed network "+project+"-internal", "removed network "+project+"-outgoing", "removed volume "+project+"-socket")
	if left := p.onEngine(); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	if out := p.bottle("cleanup"); out != "nothing was left\n" {
		t.Error(out)
	}
	says(t, p.bottle("ls"), " down ")
	p.bottle("start", "-f", p.manifest, "--", "true")
}

// A starting is a bottle start that runs.
type starting struct {
	*exec.Cmd
	out bytes.Buffer // to be read once it has ended
}

// begin starts the bottle with an agent that says in its workspace that it runs, and does so for ever.
func (p *potted) begin() *starting {
	p.t.Helper()
	s := &starting{Cmd: p.command("start", "-f", p.manifest, "--", "sh", "-c", "echo > /workspace/runs; sleep 1000")}
	s.Stdout, s.Stderr = &s.out, &s.out
	if err := s.Start(); err != nil {
		p.t.Fatal(err)
	}
	return s
}
