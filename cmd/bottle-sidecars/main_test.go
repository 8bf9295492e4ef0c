package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bottle/bottle"
	"bottle/bottle/bundle"
	"bottle/bottle/egress"
	"bottle/bottle/logfile"
	"bottle/bottle/pipelock"
)

// The test binary is also bottle-sidecars itself; bottle-supervise is built once, into PATH.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "init", "exec", bottle.DaemonEgress, bottle.DaemonPipelock, "nonsense":
			main()
		}
	}
	os.Exit(withSupervise(m))
}

func withSupervise(m *testing.M) int {
	dir, err := os.MkdirTemp("", "bottle-supervise-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	build := exec.CommandContext(context.Background(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", dir+"/", "../bottle-supervise")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build bottle-supervise: %v\n%s", err, out)
		return 1
	}
	if err := os.Setenv("PATH", dir+":"+os.Getenv("PATH")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// newDir is a state directory as the host prepares it.
func newDir(t testing.TB, program string) *bottle.Dir {
	t.Helper()
	// Not t.TempDir: with the test's name in it, mcp.sock may not fit in sun_path.
	tmp, err := os.MkdirTemp("", "b") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(tmp) })
	dir, err := bottle.NewDir(filepath.Join(tmp, "b"))
	if err != nil {
		t.Fatal(err)
	}
	if err := dir.Create(); err != nil {
		t.Fatal(err)
	}
	if err := egress.EnsureCA(dir.CACert(), dir.CAKey(), "test"); err != nil {
		t.Fatal(err)
	}
	routes, err := bottle.NewRoutes([]bottle.Route{{Host: "example.com"}})
	if err != nil {
		t.Fatal(err)
	}
	putBoth(t, dir, routes)
	writeConfig(t, dir, bottle.BundleConfig{Egress: freePort(t), Name: program, ProxySecret: rand.Text(), GateSecret: rand.Text()})
	return dir
}

func putBoth(t testing.TB, dir *bottle.Dir, routes *bottle.RoutesDoc) {
	t.Helper()
	put(t, dir.Routes(), routes.Bytes)
	gate, err := pipelock.New(bottle.Allowlist(routes.Routes()))
	if err != nil {
		t.Fatal(err)
	}
	put(t, dir.Pipelock(), gate.Bytes)
}

func put(t testing.TB, path string, encode func() ([]byte, bottle.Hash, error)) {
	t.Helper()
	b, _, err := encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func writeConfig(t testing.TB, dir *bottle.Dir, c bottle.BundleConfig) {
	t.Helper()
	c.Schema = bottle.Schema
	if err := bottle.WriteJSON(dir.BundleConfig(), c); err != nil {
		t.Fatal(err)
	}
}

func freePort(t testing.TB) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// A bundle is a running init.
type running struct {
	dir *bottle.Dir
	cmd *exec.Cmd
	out *bytes.Buffer
}

func start(t testing.TB, program string, dir *bottle.Dir) *running {
	t.Helper()
	r := &running{dir: dir, cmd: exec.CommandContext(context.Background(), program, "init", "--root", dir.Path()), out: &bytes.Buffer{}}
	r.cmd.Stderr = r.out
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return r
}

// stop ends init with TERM and returns its exit code.
func (r *running) stop(t testing.TB) int {
	t.Helper()
	_ = r.cmd.Process.Signal(unix.SIGTERM)
	_ = r.cmd.Wait()
	return r.cmd.ProcessState.ExitCode()
}

func (r *running) ready(t testing.TB) bottle.InitStatus {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); ; <-tick.C {
		var st bottle.InitStatus
		if bottle.ReadJSON(r.dir.InitStatus(), 0, &st) == nil && st.PID == r.cmd.Process.Pid && st.Ready {
			return st
		}
		if time.Now().After(deadline) {
			r.stop(t)
			t.Fatalf("not ready: %+v\n%s", st, r.out)
		}
	}
}

func self(t testing.TB) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return exe
}

// The real daemons under their rulesets: each comes up, answers, reloads, and goes.
func TestBundle(t *testing.T) {
	dir := newDir(t, "test")
	r := start(t, self(t), dir)
	st := r.ready(t)
	defer func() {
		if code := r.stop(t); code != 0 {
			t.Errorf("exit code %d", code)
		}
		if t.Failed() {
			t.Logf("%s", r.out)
		}
	}()
	cfg, err := bundle.LoadConfig(dir, bottle.DaemonSupervise)
	if err != nil {
		t.Fatal(err)
	}
	for name, d := range st.Daemons {
		checkThreads(t, name, d.PID)
	}

	client := &egress.Client{Proxy: cfg.Egress, Secret: cfg.ProxySecret}
	routes, err := client.Routes(t.Context())
	if err != nil || len(routes.Routes) != 1 {
		t.Fatalf("routes in force: %+v %v", routes, err)
	}
	var gate bottle.DaemonStatus
	if err := bottle.ReadJSON(dir.DaemonStatus(bottle.DaemonPipelock), 0, &gate); err != nil {
		t.Fatal(err)
	}
	res, err := get(t.Context(), "http://"+gate.Listen+"/health")
	if err != nil || res != http.StatusOK {
		t.Errorf("pipelock's health: %d %v", res, err)
	}
	if got := mcpCall(t, dir.MCPSocket()); !strings.Contains(got, `"serverInfo"`) {
		t.Errorf("MCP says %q", got)
	}

	wider, err := bottle.NewRoutes([]bottle.Route{{Host: "example.com"}, {Host: "example.org"}})
	if err != nil {
		t.Fatal(err)
	}
	putBoth(t, dir, wider)
	for _, s := range []struct {
		sig          bottle.Signal
		file, daemon string
	}{{bottle.SignalReloadPipelock, bottle.PipelockFile, bottle.DaemonPipelock}, {bottle.SignalReload, bottle.RoutesFile, bottle.DaemonEgress}} {
		b, err := os.ReadFile(dir.Path("etc", s.file))
		if err != nil {
			t.Fatal(err)
		}
		want, err := bottle.CheckSeal(b)
		if err != nil {
			t.Fatal(err)
		}
		_ = r.cmd.Process.Signal(unix.Signal(s.sig))
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for deadline := time.Now().Add(10 * time.Second); ; <-tick.C {
			var d bottle.DaemonStatus
			if bottle.ReadJSON(dir.DaemonStatus(s.daemon), 0, &d) == nil && d.Revision == want {
				if d.PID != st.Daemons[s.daemon].PID {
					t.Errorf("%s was restarted", s.daemon)
				}
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s does not load %s: %+v", s.daemon, want, d)
			}
		}
	}
}

// checkThreads looks from outside at what the kernel tells of each thread of a daemon. (Of
// Landlock it tells nothing; package bundle tries that from inside, on several threads.)
func checkThreads(t *testing.T, daemon string, pid int) {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(files) < 3 {
		t.Fatalf("%s: %d threads, %v", daemon, len(files), err)
	}
	want := map[string]string{
		"NoNewPrivs": "1", "Seccomp": "2", "CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapAmb": "0000000000000000",
	}
	if os.Getuid() == 0 {
		want["CapBnd"] = "0000000000000000"
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // it has ended
		}
		seen := 0
		for line := range strings.Lines(string(b)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
			if w, ok := want[key]; ok {
				seen++
				if got := strings.TrimSpace(value); got != w {
					t.Errorf("%s: %s: %s is %s, want %s", daemon, f, key, got, w)
				}
			}
		}
		if seen != len(want) {
			t.Errorf("%s: %s says %d of %d things", daemon, f, seen, len(want))
		}
	}
}

func get(ctx context.Context, url string) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	res, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return 0, err
	}
	return res.StatusCode, res.Body.Close()
}

func mcpCall(t *testing.T, socket string) string {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	hello := map[string]any{"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": map[string]any{
		"protocolVersion": "2025-06-18", "capabilities": map[string]any{}, "clientInfo": map[string]string{"name": "test", "version": "1"},
	}}
	if err := json.NewEncoder(c).Encode(hello); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64<<10)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:n])
}

// init cuts a log that was opened as the host opens it.
func TestLogIsBounded(t *testing.T) {
	dir := newDir(t, "test")
	path := dir.Path("sidecars.log")
	if err := os.WriteFile(path, bytes.Repeat([]byte("an old line\n"), logfile.Max/12+1), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	r := &running{dir: dir, cmd: exec.CommandContext(context.Background(), self(t), "init", "--root", dir.Path()), out: &bytes.Buffer{}}
	r.cmd.Stderr = log
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.ready(t)
	r.stop(t)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"older lines are gone", "an old line\n", `"msg":"ready"`, `"msg":"stopping"`} {
		if !bytes.Contains(b, []byte(want)) {
			t.Errorf("no %q in the log", want)
		}
	}
	if len(b) > logfile.Kept+64<<10 {
		t.Errorf("%d bytes", len(b))
	}
}

func TestPortTaken(t *testing.T) {
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dir := newDir(t, "test")
	writeConfig(t, dir, bottle.BundleConfig{Egress: l.Addr().String()})
	r := start(t, self(t), dir)
	_ = r.cmd.Wait()
	if code := r.cmd.ProcessState.ExitCode(); code != exitFailed {
		t.Errorf("exit code %d", code)
	}
	last := r.out.String()[strings.LastIndexByte(strings.TrimSpace(r.out.String()), '\n')+1:]
	for _, want := range []string{"egress.listen: listen on " + l.Addr().String(), "address already in use", "free the port"} {
		if !strings.Contains(last, want) {
			t.Errorf("no %q in the last line: %s", want, last)
		}
	}
}

func TestUsage(t *testing.T) {
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"nonsense"}, exitUsage, `unknown command "nonsense"`},
		{[]string{"init"}, exitUsage, "--root is required"},
		{[]string{"init", "--root", "x", "y"}, exitUsage, `unexpected argument "y"`},
		{[]string{"init", "--rot", "x"}, exitUsage, "unknown flag: --rot"},
		{[]string{"exec", "--root", "/x", "--daemon", "egress"}, exitUsage, "no command"},
		{[]string{"egress", "--root", "/nonexistent"}, exitFailed, "bundle.json"},
	} {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), self(t), tt.args...)
			out, _ := cmd.CombinedOutput()
			if code := cmd.ProcessState.ExitCode(); code != tt.code || !strings.Contains(string(out), tt.want) {
				t.Errorf("code %d: %s", code, out)
			}
		})
	}
}

// BenchmarkReady is the time from the start of init to "ready" in its status, and the memory
// of the idle bundle, of a static build as it ships.
func BenchmarkReady(b *testing.B) {
	program := filepath.Join(b.TempDir(), "bottle-sidecars")
	build := exec.CommandContext(b.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	dir := newDir(b, "bench")
	var pss int
	for b.Loop() {
		r := start(b, program, dir)
		st := r.ready(b)
		b.StopTimer()
		pss = memory(b, st.PID)
		for _, d := range st.Daemons {
			pss += memory(b, d.PID)
		}
		r.stop(b)
		b.StartTimer()
	}
	b.ReportMetric(float64(pss)/1024, "MiB-PSS")
}

// memory is a process' proportional set size in KiB.
func memory(t testing.TB, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "Pss:" {
			n, _ := strconv.Atoi(f[1])
			return n
		}
	}
	t.Fatalf("no Pss for %d", pid)
	return 0
}
