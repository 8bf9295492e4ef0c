// Package launch brings a bottle's bundle up and down on a backend, and signals it.
//
// The local backend runs the bundle as child processes of this machine. What it signals
// is named by metadata.json, which the host wrote when it started the process: a pid that
// the bundle claims for itself is never signalled, for it could be any process of the
// operator's.
package launch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"bottle/bottle"
)

// Bounds of starting and stopping.
const (
	readyTimeout = 20 * time.Second
	stopTimeout  = 5 * time.Second
)

// LocalConfig configures [NewLocal].
type LocalConfig struct {
	Dir      *bottle.Dir  // required
	Sidecars string       // required to start: path of bottle-sidecars
	Logger   *slog.Logger // required
}

// Local is the bundle of one bottle on this machine.
type Local struct {
	dir      *bottle.Dir
	sidecars string
	log      *slog.Logger
}

// NewLocal returns the backend for a state directory; nothing is started.
func NewLocal(c LocalConfig) (*Local, error) {
	if c.Dir == nil || c.Logger == nil {
		return nil, errors.New("launch: Dir and Logger are required")
	}
	return &Local{dir: c.Dir, sidecars: c.Sidecars, log: c.Logger}, nil
}

// Running reports whether the process that the host started as the bundle's init runs.
func (l *Local) Running(context.Context) (bool, error) {
	m, err := l.dir.LoadMetadata()
	if errors.Is(err, bottle.ErrNotFound) {
		return false, nil
	}
	return err == nil && m.Init.Alive(), err
}

// Ensure starts the bundle if it does not run, and reports whether it had to. It does not
// wait until it is ready.
func (l *Local) Ensure(ctx context.Context) (started bool, err error) {
	if running, err := l.Running(ctx); running || err != nil {
		return false, err
	}
	unlock, err := l.dir.Lock(ctx)
	if err != nil {
		return false, err
	}
	defer unlock()
	if running, err := l.Running(ctx); running || err != nil {
		return false, err
	}
	return true, l.start()
}

// start runs init in a session of its own, with a small environment: the keeper's holds
// the operator's tokens. The shell waits for a line before it becomes init, and metadata
// is written before that line is sent: if we are killed in between, the line never comes
// and no init runs that nobody could name.
func (l *Local) start() error {
	if l.sidecars == "" {
		return errors.New("start the bundle: bottle-sidecars was not found beside bottle or in PATH")
	}
	logFile, err := os.OpenFile(l.dir.Path("sidecars.log"), os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("start the bundle: %w", err)
	}
	defer logFile.Close()
	if err := os.Remove(l.dir.InitStatus()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("start the bundle: %w", err)
	}
	cmd := exec.Command("/bin/sh", "-c", `read -r _ && exec "$0" "$@" </dev/null`, l.sidecars, "init", "--root", l.dir.Path()) //nolint:gosec,noctx // G204: a binary of ours, which outlives us
	cmd.Env = bundleEnv()
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	gate, err := cmd.StdinPipe()
	if err != nil {
		return fmt.Errorf("start the bundle: %w", err)
	}
	if err := startBlocked(cmd); err != nil {
		return fmt.Errorf("start the bundle: %w", err)
	}
	// It is our child until we end; then PID 1 of the machine reaps it.
	go func() { _ = cmd.Wait() }()
	abort := func(err error) error {
		_ = gate.Close()
		return fmt.Errorf("start the bundle: %w", err)
	}
	id, err := bottle.ProcessOf(cmd.Process.Pid)
	if err != nil {
		return abort(err)
	}
	if err := l.dir.UpdateMetadata(func(m *bottle.Metadata) error { m.Init = id; return nil }); err != nil {
		return abort(err)
	}
	if _, err := io.WriteString(gate, "go\n"); err != nil {
		return abort(err)
	}
	l.log.Info("bundle started", "pid", id.PID)
	return gate.Close()
}

// startBlocked starts a command with the signals blocked that init takes. One that comes before init
// has handlers, which a loaded machine takes a tenth of a second to come to, waits for them then
// instead of killing it.
func startBlocked(cmd *exec.Cmd) error {
	// The mask is a thread's, and a child's is that of the thread that forks.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var set, old unix.Sigset_t
	for _, s := range []bottle.Signal{
		bottle.SignalReload, bottle.SignalReloadPipelock, bottle.SignalReplacePipelock, bottle.SignalRestartEgress, bottle.SignalRestartPipelock,
	} {
		const word = 8 * int(unsafe.Sizeof(set.Val[0]))
		set.Val[(int(s)-1)/word] |= 1 << ((int(s) - 1) % word)
	}
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &set, &old); err != nil {
		return fmt.Errorf("block signals: %w", err)
	}
	defer func() { _ = unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil) }()
	return cmd.Start()
}

// bundleEnv is all that the bundle's processes get of the environment.
func bundleEnv() []string {
	var env []string
	for _, k := range []string{"PATH", "HOME", "LANG", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", "BOTTLE_SIDECAR_DAEMONS"} {
		if v, ok := os.LookupEnv(k); ok {
			env = append(env, k+"="+v)
		}
	}
	return env
}

// WaitReady waits until init says ready. If it ends instead, the error has its reason.
func (l *Local) WaitReady(ctx context.Context) (bottle.InitStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		st, err := l.Status()
		if err == nil && st.Ready {
			return st, nil
		}
		if why := refused(st); err == nil && why != "" {
			return st, fmt.Errorf("the daemons wait for a file that was damaged or edited by hand (%s); bottle routes edit (or allowlist edit) --bottle %s shows the difference, and adopts or drops it", why, l.dir.Name())
		}
		if running, _ := l.Running(ctx); err == nil && !running {
			why := st.Error
			if why == "" {
				why = "init ended"
			}
			return st, fmt.Errorf("the bundle did not come up: %s (its log: %s)", why, l.dir.Path("sidecars.log"))
		}
		select {
		case <-ctx.Done():
			return st, fmt.Errorf("the bundle is not ready: %s (its log: %s): %w", notReady(st), l.dir.Path("sidecars.log"), ctx.Err())
		case <-tick.C:
		}
	}
}

// refused says which config init would not publish, if it has none to go on with.
func refused(st bottle.InitStatus) string {
	for _, f := range st.Files {
		if f.Refused != nil && f.Published == "" {
			return f.Refused.Error
		}
	}
	return ""
}

func notReady(st bottle.InitStatus) string {
	if st.Error != "" {
		return st.Error
	}
	for name, c := range st.Daemons {
		if c.PID == 0 {
			return name + " is down: " + c.LastExit
		}
	}
	return "no word from init"
}

// Status reads status/init.json, if it is of the init that runs now.
func (l *Local) Status() (bottle.InitStatus, error) {
	var st bottle.InitStatus
	if err := bottle.ReadJSON(l.dir.InitStatus(), 0, &st); err != nil {
		return bottle.InitStatus{}, err
	}
	m, err := l.dir.LoadMetadata()
	if err != nil {
		return bottle.InitStatus{}, err
	}
	if st.PID != m.Init.PID {
		return bottle.InitStatus{}, fmt.Errorf("status/init.json is of another process: %w", bottle.ErrCorrupt)
	}
	return st, nil
}

// Signal sends a signal to init, and to no other process, even if its pid was reused.
func (l *Local) Signal(_ context.Context, s bottle.Signal) error {
	m, err := l.dir.LoadMetadata()
	if err != nil {
		return err
	}
	return signalProcess(m.Init, syscall.Signal(s))
}

func signalProcess(id bottle.ProcessID, s syscall.Signal) error {
	if id.PID <= 0 {
		return os.ErrProcessDone
	}
	// The pidfd pins the process; only then is it compared with the one that is meant.
	fd, err := unix.PidfdOpen(id.PID, 0)
	if err != nil {
		return fmt.Errorf("signal %v to process %d: %w", s, id.PID, os.ErrProcessDone)
	}
	defer unix.Close(fd)
	if !id.Alive() {
		return fmt.Errorf("signal %v to process %d: %w", s, id.PID, os.ErrProcessDone)
	}
	if err := unix.PidfdSendSignal(fd, s, nil, 0); err != nil {
		return fmt.Errorf("signal %v to process %d: %w", s, id.PID, err)
	}
	return nil
}

// Stop ends the bundle: TERM, and KILL if it has not gone after 5 s. The keeper must have
// been stopped before, or it starts it again.
func (l *Local) Stop(ctx context.Context) error {
	m, err := l.dir.LoadMetadata()
	if err != nil {
		return err
	}
	return EndProcess(ctx, m.Init)
}

// EndProcess sends TERM to a process, waits until it is gone, and sends KILL if that takes
// more than 5 s. A process that is gone already is no error.
func EndProcess(ctx context.Context, id bottle.ProcessID) error {
	if err := signalProcess(id, syscall.SIGTERM); err != nil {
		if errors.Is(err, os.ErrProcessDone) {
			return nil
		}
		return err
	}
	soft, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	if waitGone(soft, id) {
		return nil
	}
	if err := signalProcess(id, syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	hard, cancel2 := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel2()
	if !waitGone(hard, id) {
		return fmt.Errorf("process %d does not end, even on KILL", id.PID)
	}
	return nil
}

func waitGone(ctx context.Context, id bottle.ProcessID) bool {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for id.Alive() {
		select {
		case <-ctx.Done():
			return !id.Alive()
		case <-tick.C:
		}
	}
	return true
}

// PickPort returns addr with a free port in place of port 0. The port is fixed for the
// bottle's life, so that a daemon that is restarted comes back where its clients expect it.
// It is not one of those that the kernel gives to outgoing connections, any of which could
// else take it while no daemon listens there.
func PickPort(field, addr string) (string, error) {
	if host, port, err := net.SplitHostPort(addr); err == nil && port == "0" {
		if picked, ok := pickBelow(host, firstEphemeral()); ok {
			return picked, nil
		}
	}
	ln, err := net.Listen("tcp", addr) //nolint:noctx // no I/O waits here
	if err != nil {
		if errors.Is(err, syscall.EADDRINUSE) {
			return "", fmt.Errorf("%s: %s is taken by another process; name another port, or port 0 to have one chosen: %w", field, addr, err)
		}
		return "", fmt.Errorf("%s: can't listen on %s: %w", field, addr, err)
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}

// firstPicked is the lowest port that is picked; below are those of services.
const firstPicked = 10240

// pickBelow picks at random, so that bottles that start at once pick different ports.
func pickBelow(host string, limit int) (string, bool) {
	if limit <= firstPicked {
		return "", false
	}
	for range 100 {
		port := firstPicked + rand.IntN(limit-firstPicked)                       //nolint:gosec // G404: any free port will do
		ln, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port))) //nolint:noctx // no I/O waits here
		if err == nil {
			defer ln.Close()
			return ln.Addr().String(), true
		}
	}
	return "", false
}

// firstEphemeral is the first port of the range for outgoing connections, or 0 if unknown.
func firstEphemeral() int {
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return 0
	}
	var first, last int
	if _, err := fmt.Sscan(string(b), &first, &last); err != nil {
		return 0
	}
	return first
}
