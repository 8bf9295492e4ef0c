package launch

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"bottle/bottle"
	"bottle/bottle/proxysock"
)

func TestSandboxRuns(t *testing.T) {
	d := newDen(t)
	if err := os.WriteFile(filepath.Join(d.work, "data"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		argv []string
		code int
		out  string
	}{
		{"the command's code", []string{"sh", "-c", "exit 7"}, 7, ""},
		{"a signal", []string{"sh", "-c", "kill -KILL $$"}, 137, ""},
		{"where it is", []string{"sh", "-c", `test "$PWD" = "$(pwd)" && echo $PWD`}, 0, d.work},
		{"who it is", []string{"sh", "-c", "test $(id -u) -ne 0 && id -un"}, 0, "agent"},
		{"a home that lasts", []string{"sh", "-c", "test ! -e ~/kept && touch ~/kept && ls ~"}, 0, "kept"},
		{"a home that lasted", []string{"sh", "-c", "ls ~"}, 0, "kept"},
		{"the bridge in PATH", []string{"bottle-mcp", "--help"}, 0, "usage: bottle-mcp"},
		{"the MCP configuration", []string{"cat", "/etc/bottle/mcp.json"}, 0, mcpConfig},
		{"the CA", []string{"sh", "-c", `test -r "$SSL_CERT_FILE" && head -1 /etc/bottle/ca.pem`}, 0, "BEGIN CERTIFICATE"},
		{"a private /tmp, for writing", []string{"sh", "-c", "touch /tmp/x /run/x /dev/shm/x && ls /tmp/x"}, 0, "/tmp/x"},
		{"no such command", []string{"nonesuch"}, 127, "nonesuch can't be run in the sandbox"},
		{"no program", []string{d.work + "/data"}, 126, "can't be run in the sandbox"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inner := *d
			inner.t = t
			if code, out := inner.run(tt.argv...); code != tt.code || !strings.Contains(out, tt.out) {
				t.Errorf("%d %q; want %d %q", code, out, tt.code, tt.out)
			}
		})
	}
	t.Run("nothing that was left open", func(t *testing.T) {
		leak, err := os.OpenFile(filepath.Join(d.t.TempDir(), "leaked"), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer leak.Close()
		fd, err := unix.FcntlInt(leak.Fd(), unix.F_DUPFD, 100) // without close-on-exec
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		// PID 1 has the pipe of its own fork for as long as it takes it to close it.
		const list = `n=0; while ls -l /proc/1/fd | grep -q pipe: && [ $n -lt 100 ]; do n=$((n+1)); sleep 0.05; done; ls -l /proc/self/fd /proc/1/fd`
		if _, out := d.run("sh", "-c", list); strings.Contains(out, "leaked") || strings.Count(out, "->") > 11 || strings.Contains(out, "pipe:") {
			t.Error(out)
		}
	})
	for _, kv := range d.box.Env() {
		if strings.Contains(kv, d.dir.Path()) {
			t.Errorf("the environment names a path of the host's: %s", kv)
		}
	}
}

func TestSandboxRefusesAnAgent(t *testing.T) {
	d := newDen(t)
	if _, _, err := d.start(t.Context(), Agent{}); err == nil {
		t.Error("without a command")
	}
	for _, dir := range []string{"/etc", "..", "nonesuch"} {
		if _, _, err := d.start(t.Context(), Agent{Argv: []string{"true"}, Dir: dir}); err == nil {
			t.Errorf("in %s", dir)
		}
	}
	d.box.mcp = "/nonexistent"
	if _, out, err := d.start(t.Context(), Agent{Argv: []string{"true"}}); err == nil || !strings.Contains(err.Error(), "could not build") || !strings.Contains(out, "/nonexistent") {
		t.Errorf("a sandbox that can't be built: %v %q", err, out)
	}
}

// An end from outside is a TERM that the agent can see to; what does not end by it is killed, and so
// is what it left.
func TestSandboxEnds(t *testing.T) {
	d := newDen(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		code, out, err := d.start(ctx, Agent{Argv: []string{"sh", "-c", "trap 'echo bye; exit 5' TERM; sleep 86398 & touch ready; while :; do sleep 0.01; done"}})
		if code != 5 || err != nil || out != "bye\n" {
			t.Errorf("%d %q %v", code, out, err)
		}
	})
	d.until("the agent is ready", func() bool { _, err := os.Stat(filepath.Join(d.work, "ready")); return err == nil })
	cancel()
	wg.Wait()
	if runs("86398") {
		t.Error("left behind")
	}
}

// Whoever started an agent and is killed leaves nothing of it.
func TestSandboxDiesWithItsStarter(t *testing.T) {
	d := newDen(t)
	cmd := exec.CommandContext(t.Context(), filepath.Join(d.work, "probe"), probeArg, "run an agent", d.dir.Path(), d.work, d.box.mcp)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	d.until("the agent is ready", func() bool { _, err := os.Stat(filepath.Join(d.work, "ready")); return err == nil && runs("86397") })
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	d.until("all is gone", func() bool { return !runs("86397") })
}

// runs reports whether a process of this machine has that in its command line.
func runs(what string) bool {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range all {
		if b, _ := os.ReadFile(p); bytes.Contains(b, []byte(what)) {
			return true
		}
	}
	return false
}

func (d *den) until(what string, ok func() bool) {
	d.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(20 * time.Second); !ok(); <-tick.C {
		if time.Now().After(end) {
			d.t.Fatalf("not in 20 s: %s", what)
		}
	}
}

// The way from the sandbox's loopback to the proxy's socket, and how it tells an end from a cut.
func TestSandboxProxy(t *testing.T) {
	d := newDen(t)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: d.dir.ProxySocket(), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			u, err := l.AcceptUnix()
			if err != nil {
				return
			}
			c := proxysock.New(u)
			wg.Go(func() {
				defer c.Close()
				ask, _ := io.ReadAll(c) // until its half is ended
				_, _ = c.Write(bytes.Repeat([]byte("x"), 1<<20))
				if string(ask) == "cut" {
					_ = c.SetLinger(0)
				}
			})
		}
	})
	if err := d.try("ask", "end"); err != nil {
		t.Errorf("an end: %v", err)
	}
	if err := d.try("ask", "cut"); err == nil || !strings.Contains(err.Error(), "reset") {
		t.Errorf("a cut: %v", err)
	}
}

// An operator's terminal, and the agent's that is shown on it.
func TestSandboxTerminal(t *testing.T) {
	d := newDen(t)
	screen, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer screen.Close()
	defer tty.Close()
	if err := pty.Setsize(screen, &pty.Winsize{Rows: 30, Cols: 100}); err != nil {
		t.Fatal(err)
	}
	before, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var seen bytes.Buffer
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 4096)
		for {
			n, err := screen.Read(b)
			if err != nil {
				return
			}
			mu.Lock()
			seen.Write(b[:n])
			mu.Unlock()
		}
	})
	sees := func(what string) {
		t.Helper()
		d.until("the screen shows "+what, func() bool {
			mu.Lock()
			defer mu.Unlock()
			return strings.Contains(seen.String(), what)
		})
	}
	play := func(box *Sandbox, argv ...string) <-chan int {
		done := make(chan int, 1)
		wg.Go(func() {
			code, err := box.RunAgent(t.Context(), Agent{Argv: argv, In: tty, Out: tty, Err: tty, TTY: true})
			if err != nil {
				t.Error(err)
			}
			done <- code
		})
		return done
	}

	// It is the agent's controlling terminal, as large as ours, which Ctrl-C and Ctrl-Z reach by.
	done := play(d.box, "sh", "-c", `stty size; trap 'echo caught' INT; printf 'name? '; read x; echo "hello $x"; until stty size | grep '31 101'; do sleep 0.01; done; exit 3`)
	sees("30 100")
	sees("name? ")
	if err := pty.Setsize(screen, &pty.Winsize{Rows: 31, Cols: 101}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(os.Getpid(), unix.SIGWINCH); err != nil { // as the kernel does for those whose controlling terminal it is
		t.Fatal(err)
	}
	if _, err := screen.Write([]byte{26}); err != nil { // Ctrl-Z: there is no shell to continue it from
		t.Fatal(err)
	}
	if _, err := screen.Write([]byte{3}); err != nil { // Ctrl-C
		t.Fatal(err)
	}
	sees("caught")
	if code := <-done; code != 3 {
		t.Errorf("exit code %d", code)
	}
	sees("hello")
	after, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil || *after != *before {
		t.Errorf("the terminal was not left as it was: %+v %v", after, err)
	}

	// What it might type into it.
	if code := <-play(d.box, d.work+"/probe", probeArg, "type"); code != probeFailed {
		t.Errorf("TIOCSTI: %d", code)
	}
	sees("operation not permitted")
	open := *d.box
	open.without = []guard{guardFilter}
	if legacy, ok := readSysctl("dev/tty/legacy_tiocsti"); !ok || legacy == "1" {
		if code := <-play(&open, d.work+"/probe", probeArg, "type"); code != probeDone {
			t.Errorf("TIOCSTI without the filter: %d", code)
		}
	}
	_ = tty.Close()
	_ = screen.Close()
	wg.Wait()
}

func TestWorkspace(t *testing.T) {
	base, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	home := filepath.Join(base, "home")
	dir, err := bottle.NewDir(filepath.Join(home, "state", "b"))
	if err != nil {
		t.Fatal(err)
	}
	work := filepath.Join(home, "work")
	if err := errors.Join(dir.Create(), os.Mkdir(work, 0o700), os.Symlink(work, filepath.Join(base, "link")), os.Symlink(home, filepath.Join(base, "sneaky")),
		os.WriteFile(filepath.Join(base, "file"), nil, 0o600), os.MkdirAll(filepath.Join(home, "state", "other"), 0o700)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOME", home)
	t.Setenv("XDG_RUNTIME_DIR", filepath.Join(base, "rt"))
	for path, want := range map[string]string{
		work: "", filepath.Join(base, "link"): "", work + "/": "",
		"work":                                "not an absolute path",
		filepath.Join(base, "none"):           "no such file",
		filepath.Join(base, "file"):           "not a directory",
		"/":                                   "whole machine",
		home:                                  "state directory",
		base:                                  "state directory",
		filepath.Join(base, "sneaky"):         "state directory",
		dir.Path():                            "state directory",
		dir.Path("queue"):                     "state directory",
		filepath.Join(home, "state"):          "state directory",
		filepath.Join(home, "state", "other"): "state directory",
		"/usr/share":                          "its own /usr",
		"/etc":                                "its own /etc",
		"/proc/self":                          "its own /proc",
		"/home":                               "/home",
	} {
		got, err := checkWorkspace(path, dir)
		switch {
		case want == "" && (err != nil || got != work):
			t.Errorf("%s: %q %v", path, got, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %q %v; want %q", path, got, err, want)
		}
	}
	t.Setenv("HOME", work)
	if _, err := checkWorkspace(work, dir); err == nil || !strings.Contains(err.Error(), "home directory") {
		t.Errorf("the home directory: %v", err)
	}
	t.Setenv("HOME", home)
	t.Setenv("XDG_RUNTIME_DIR", work)
	if _, err := checkWorkspace(work, dir); err == nil || !strings.Contains(err.Error(), "session's sockets") {
		t.Errorf("the runtime directory: %v", err)
	}
}

func TestCheckSandbox(t *testing.T) {
	for _, f := range CheckSandbox(t.Context()) {
		if f.State == FindingFailed || f.State == FindingWarning && f.Fix == "" {
			t.Errorf("%+v", f)
		}
	}
	empty := t.TempDir()
	t.Setenv("PATH", empty)
	if f := CheckSandbox(t.Context()); len(f) != 1 || f[0].State != FindingFailed || !strings.Contains(f[0].Fix, "install bubblewrap") {
		t.Errorf("without bubblewrap: %+v", f)
	}
	for script, want := range map[string]string{
		"echo bubblewrap 0.3.1": "0.4 or later",
		"echo something else":   "not a version",
		"case $1 in --version) echo bubblewrap 0.8.0;; *) echo setting up uid map: Permission denied >&2; exit 1;; esac": "setting up uid map",
	} {
		if err := os.WriteFile(filepath.Join(empty, "bwrap"), []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		all := CheckSandbox(t.Context())
		found := false
		for _, f := range all {
			found = found || f.State == FindingFailed && f.Fix != "" && strings.Contains(f.Detail, want)
		}
		if !found {
			t.Errorf("%s: %+v; want %q", script, all, want)
		}
	}
}

func TestWhyNoNamespaces(t *testing.T) {
	for _, tt := range []struct {
		name     string
		root     bool
		sysctls  map[string]string
		why, fix string
	}{
		{"no reason", false, nil, "", "container"},
		{"none for anybody", true, map[string]string{"user/max_user_namespaces": "0"}, "max_user_namespaces is 0", "user.max_user_namespaces = 15000"},
		{"Debian", false, map[string]string{"kernel/unprivileged_userns_clone": "0"}, "unprivileged_userns_clone is 0", "kernel.unprivileged_userns_clone = 1"},
		{"Debian, as root", true, map[string]string{"kernel/unprivileged_userns_clone": "0"}, "", "container"},
		{"Ubuntu", false, map[string]string{"kernel/apparmor_restrict_unprivileged_userns": "1"}, "AppArmor", "bwrap-userns-restrict"},
		{"Ubuntu, as root", true, map[string]string{"kernel/apparmor_restrict_unprivileged_userns": "1"}, "", "container"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			why, fix := whyNoNamespaces(tt.root, func(name string) (string, bool) { v, ok := tt.sysctls[name]; return v, ok })
			if !strings.Contains(why, tt.why) || tt.why == "" && why != "" || !strings.Contains(fix, tt.fix) {
				t.Errorf("%q, fix %q", why, fix)
			}
		})
	}
}
