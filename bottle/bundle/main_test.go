package bundle_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bottle/bottle"
	"bottle/bottle/bundle"
	"bottle/bottle/pipelock/pipelocktest"
)

// The test binary is also the programs that the tests run as real processes; its
// first argument says which.
func TestMain(m *testing.M) {
	role := ""
	if len(os.Args) > 1 {
		role = os.Args[1]
	}
	switch role {
	case "role:init":
		os.Exit(initMain(os.Args[2]))
	case "role:pid1":
		os.Exit(pid1Main(os.Args[2]))
	case "role:daemon":
		switch behaviour(os.Args[2], os.Args[3]) {
		case "hijacked":
			os.Exit(hijackedMain(os.Args[2], os.Args[3]))
		case "orphans":
			if err := leaveOrphans(200, os.Args[3]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}
		os.Exit(daemonMain(os.Args[2], os.Args[3]))
	case "role:launch":
		os.Exit(launchMain(os.Args[2], os.Args[3]))
	case "role:serve":
		os.Exit(serveMain(os.Args[2], os.Args[3]))
	case "role:probe":
		os.Exit(probeMain())
	case "exec": // as bottle-sidecars has it: exec --daemon NAME --root DIR -- COMMAND...
		os.Exit(execMain(os.Args[3], os.Args[5], os.Args[7:]))
	case "run":
		os.Exit(pipelocktest.Main(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// initMain is cmd/bottle-sidecars init with test daemons.
func initMain(root string) int {
	sigs := bundle.Notify()
	if os.Getenv("BOTTLE_TEST_EARLY") != "" {
		_ = unix.Kill(os.Getpid(), unix.SIGHUP)
	}
	dir, err := bottle.NewDir(root)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	exe, _ := os.Executable()
	s, err := bundle.New(bundle.Config{
		Dir: dir, Signals: sigs, Grace: 300 * time.Millisecond,
		Logger:  slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Command: func(d, listen string) ([]string, error) { return testCommand(dir, exe, d, listen) },
	})
	if err == nil {
		err = s.Run(context.Background())
	}
	if start, ok := errors.AsType[*bundle.StartError](err); ok {
		fmt.Fprintln(os.Stderr, err)
		return start.Code
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func initSaysReady(dir *bottle.Dir, name string) bool {
	var st bottle.InitStatus
	return bottle.ReadJSON(dir.InitStatus(), 0, &st) == nil && st.Ready && st.Daemons[name].PID == os.Getpid()
}

// launchMain becomes the probe with the rights of a daemon; with all rights for "nobody".
func launchMain(daemon, root string) int {
	if daemon == "nobody" {
		return probeMain()
	}
	dir, _ := bottle.NewDir(root)
	exe, _ := os.Executable()
	err := bundle.Exec(bundle.LaunchConfig{
		Dir: dir, Daemon: daemon, Argv: []string{exe, "role:probe"}, Env: os.Environ(),
		Warn: func(s string) { fmt.Fprintln(os.Stderr, s) },
	})
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// serveMain is a daemon as ours are, confined by Serve. The probe is made on threads that
// were there before that, and on one that came later: each must find the same.
func serveMain(daemon, root string) int {
	dir, err := bottle.NewDir(root)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var on threads
	on.add(5)
	err = bundle.Serve(context.Background(), daemon, dir, slog.New(slog.NewTextHandler(os.Stderr, nil)), func(context.Context, *bundle.Daemon) error {
		on.add(1)
		return json.NewEncoder(os.Stdout).Encode(on.agree(ordered()))
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func probeMain() int {
	_ = json.NewEncoder(os.Stdout).Encode(outcomes(ordered()))
	return 0
}

// ordered are the tries, each an "op argument", of BOTTLE_TEST_PROBE.
func ordered() (tries []string) {
	_ = json.Unmarshal([]byte(os.Getenv("BOTTLE_TEST_PROBE")), &tries)
	return tries
}

func try(t string) error {
	ctx := context.Background()
	op, arg, _ := strings.Cut(t, " ")
	switch op {
	case "read":
		_, err := os.ReadFile(arg)
		return err
	case "list":
		_, err := os.ReadDir(arg)
		return err
	case "replace":
		return bottle.WriteFile(arg, []byte("x"), 0o600)
	case "append":
		f, err := os.OpenFile(arg, os.O_WRONLY|os.O_APPEND, 0)
		if err == nil {
			_ = f.Close()
		}
		return err
	case "bind", "bind-unix":
		l, err := (&net.ListenConfig{}).Listen(ctx, map[string]string{"bind": "tcp", "bind-unix": "unix"}[op], arg)
		if err == nil {
			_ = l.Close()
		}
		return err
	case "resolve": // as the shipped program does, without cgo; a name that is in /etc/hosts, and one that only DNS could know
		res := &net.Resolver{PreferGo: true}
		if _, err := res.LookupNetIP(ctx, "ip", arg); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		_, err := res.LookupNetIP(ctx, "ip", "bottle.invalid.")
		if e, ok := errors.AsType[*net.DNSError](err); ok && !strings.Contains(e.Err, "socket:") {
			return nil // it could ask; whether anybody answers is not the question
		}
		return err
	case "dial", "dial-unix":
		c, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, map[string]string{"dial": "tcp", "dial-unix": "unix"}[op], arg)
		if err == nil {
			_ = c.Close()
		}
		return err
	case "udp":
		c, err := (&net.Dialer{}).DialContext(ctx, "udp", arg)
		if err == nil {
			_ = c.Close()
		}
		return err
	case "socket": // family type protocol
		var family, typ, proto int
		_, _ = fmt.Sscan(arg, &family, &typ, &proto)
		fd, err := unix.Socket(family, typ, proto)
		if err == nil {
			_ = unix.Close(fd)
		}
		return err
	case "fastopen":
		return fastOpen(arg)
	case "kill":
		var pid int
		_, _ = fmt.Sscan(arg, &pid)
		return unix.Kill(pid, 0)
	case "exec":
		return exec.CommandContext(ctx, arg).Run()
	case "privileges":
		return privileges()
	}
	return tryKernel(op, arg)
}

// privileges is nil if there are none to lose or gain.
func privileges() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have [2]unix.CapUserData
	if err := unix.Capget(&hdr, &have[0]); err != nil {
		return err
	}
	if have != [2]unix.CapUserData{} {
		return fmt.Errorf("capabilities %+v", have)
	}
	if n, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err != nil || n != 1 {
		return fmt.Errorf("no_new_privs %d %w", n, err)
	}
	var core unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &core); err != nil || core.Max != 0 {
		return fmt.Errorf("core dumps up to %d %w", core.Max, err)
	}
	return nil
}

// fastOpen connects by sending, which Landlock's connect rule does not see.
func fastOpen(addr string) error {
	a, err := net.ResolveTCPAddr("tcp4", addr)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, []byte("x"), unix.MSG_FASTOPEN, &unix.SockaddrInet4{Port: a.Port, Addr: [4]byte(a.IP.To4())})
}

// A bed is a state directory and the init that runs on it.
type bed struct {
	t    *testing.T
	dir  *bottle.Dir
	cmd  *exec.Cmd
	done chan struct{} // closed when init has ended
}

func newBed(t *testing.T) *bed {
	t.Helper()
	dir, err := bottle.NewDir(filepath.Join(t.TempDir(), "b"))
	if err != nil {
		t.Fatal(err)
	}
	if err := dir.Create(); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir.Path("behave"), 0o700); err != nil {
		t.Fatal(err)
	}
	b := &bed{t: t, dir: dir}
	b.config(bottle.BundleConfig{Egress: "127.0.0.1:0"})
	b.write(bottle.RoutesFile, "routes: []\n")
	b.write(bottle.PipelockFile, "mode: strict\n")
	return b
}

func (b *bed) config(c bottle.BundleConfig) {
	b.t.Helper()
	c.Schema = bottle.Schema
	if err := bottle.WriteJSON(b.dir.BundleConfig(), c); err != nil {
		b.t.Fatal(err)
	}
}

// write overwrites a mounted file in place, as apply does, sealed.
func (b *bed) write(file, body string) bottle.Hash {
	b.t.Helper()
	sealed, rev := bottle.Seal([]byte(body))
	b.writeRaw(file, sealed)
	return rev
}

func (b *bed) writeRaw(file string, raw []byte) {
	b.t.Helper()
	f, err := os.OpenFile(b.dir.Path("etc", file), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		b.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(raw, 0); err != nil {
		b.t.Fatal(err)
	}
	if err := f.Truncate(int64(len(raw))); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bed) behave(daemon, how string) {
	b.t.Helper()
	if err := os.WriteFile(b.dir.Path("behave", daemon), []byte(how), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// start runs init until the test ends.
func (b *bed) start(env ...string) {
	b.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		b.t.Fatal(err)
	}
	log, err := os.OpenFile(b.dir.Path("init.log"), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		b.t.Fatal(err)
	}
	b.cmd = exec.CommandContext(context.WithoutCancel(b.t.Context()), exe, "role:init", b.dir.Path())
	b.cmd.Env = append(os.Environ(), env...)
	b.cmd.Stdout, b.cmd.Stderr = log, log
	if err := b.cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.running(log)
}

// running waits for init, and ends it with the test.
func (b *bed) running(log *os.File) {
	b.t.Helper()
	done, cmd := make(chan struct{}), b.cmd
	b.done = done
	go func() {
		defer close(done)
		_ = cmd.Wait() // its code is looked at by the tests that care
	}()
	b.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
		_ = log.Close()
		if b.t.Failed() {
			b.t.Logf("init:\n%s", b.output())
		}
	})
}

func (b *bed) output() string {
	out, _ := os.ReadFile(b.dir.Path("init.log"))
	return string(out)
}

func (b *bed) signal(s bottle.Signal) {
	b.t.Helper()
	if err := b.cmd.Process.Signal(syscall.Signal(s)); err != nil {
		b.t.Fatal(err)
	}
}

// stop sends TERM and returns the exit code and how long it took.
func (b *bed) stop() (int, time.Duration) {
	b.t.Helper()
	at := time.Now()
	_ = b.cmd.Process.Signal(unix.SIGTERM)
	code := b.wait()
	return code, time.Since(at)
}

func (b *bed) wait() int {
	b.t.Helper()
	select {
	case <-b.done:
	case <-time.After(20 * time.Second):
		b.t.Fatal("init does not end")
	}
	return b.cmd.ProcessState.ExitCode()
}

// until polls init's status until ok.
func (b *bed) until(what string, ok func(bottle.InitStatus) bool) bottle.InitStatus {
	b.t.Helper()
	var st bottle.InitStatus
	eventually(b.t, what, func() bool {
		st = bottle.InitStatus{}
		return bottle.ReadJSON(b.dir.InitStatus(), 0, &st) == nil && st.PID == b.cmd.Process.Pid && ok(st)
	})
	return st
}

func (b *bed) ready() bottle.InitStatus {
	b.t.Helper()
	return b.until("ready", func(st bottle.InitStatus) bool { return st.Ready })
}

func (b *bed) daemonStatus(name string) (st bottle.DaemonStatus) {
	_ = bottle.ReadJSON(b.dir.DaemonStatus(name), 0, &st)
	return st
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(15 * time.Second); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("did not happen in 15 s: %s", what)
		}
	}
}

// alive reports whether the process runs; a zombie does not, and gone says whether even that went.
func alive(pid int) (runs, gone bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false, true
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(rest, "Z"), false
}
