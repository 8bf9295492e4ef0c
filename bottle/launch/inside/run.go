// Package inside is what runs in the local backend's sandbox beside the agent: the first process,
// which is the agent's parent, and the way from the sandbox's loopback to the bundle.
//
// # Model
//
// The sandbox has a network of its own in which there is loopback and nothing else. Programs know
// HTTP proxies by host and port, so this process listens there and carries each connection to egress'
// unix socket ([proxysock]), which is mounted into the sandbox. It brings no interface up: bubblewrap
// has done so, and nobody in the sandbox has the rights.
//
// It is PID 1 of the sandbox' pid namespace. When it ends, the kernel kills all that is left there.
//
// # Trust
//
// It has the agent's own rights and holds nothing that the agent has not: it guards nothing, and an
// agent that takes it over has gained nothing. What confines both is set up before it is started.
package inside

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Exit codes for a command that could not be started, as a shell has them.
const (
	codeNotExecutable = 126
	codeNotFound      = 127
)

// A Config says what to run.
type Config struct {
	Forwards []Forward // may be empty
	Argv     []string  // required; a name without a slash is looked up in PATH
	Env      []string
	// Processes bounds those of the user in this user namespace, threads included (RLIMIT_NPROC,
	// which Linux counts for each namespace since 5.14); 0 means nothing.
	Processes uint64
	// Terminal: stdin is a terminal that no session has yet, and this process leads a session. It becomes
	// its controlling terminal, which then sends its signals to the command.
	Terminal bool
	Files    []*os.File // stdin, stdout, stderr of the command
}

// An ExitError is why the command was not started; Code is what a shell would exit with.
type ExitError struct {
	Code int
	Err  error
}

func (e *ExitError) Error() string { return e.Err.Error() }

// Unwrap gives errors.Is the cause.
func (e *ExitError) Unwrap() error { return e.Err }

// Run listens, starts the command, forwards until it ends, and returns its exit code, which is 128+n
// if signal n killed it. As PID 1 it reaps what the command leaves. Other processes of the caller's
// are reaped too: it has none.
func Run(c Config) (code int, err error) {
	if len(c.Argv) == 0 || len(c.Files) != 3 {
		return 0, errors.New("inside: Argv and three Files are required")
	}
	if c.Terminal {
		if err := unix.IoctlSetInt(int(c.Files[0].Fd()), unix.TIOCSCTTY, 0); err != nil {
			return 0, fmt.Errorf("take the terminal: %w", err)
		}
	}
	// Before the command can send any.
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, passedOn...)
	defer signal.Stop(signals)
	if c.Terminal { // its signals reach the command without us, and must not end us first
		signal.Notify(make(chan os.Signal, 1), ofTerminal...)
	} else {
		signal.Notify(signals, ofTerminal...)
	}

	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for _, f := range c.Forwards {
		l, err := f.listen(ctx)
		if err != nil {
			return 0, err
		}
		wg.Go(func() { f.serve(ctx, l) })
	}
	if c.Processes > 0 {
		if err := unix.Setrlimit(unix.RLIMIT_NPROC, &unix.Rlimit{Cur: c.Processes, Max: c.Processes}); err != nil {
			return 0, fmt.Errorf("bound the processes: %w", err)
		}
	}
	child, err := start(c)
	if err != nil {
		return 0, err
	}
	wg.Go(func() {
		for {
			select {
			case s := <-signals:
				if n, ok := s.(syscall.Signal); ok {
					_ = unix.Kill(child, n) // it is not reaped before ctx ends, or was at this moment
				}
			case <-ctx.Done():
				return
			}
		}
	})
	return reap(child)
}

// passedOn go to the command; ofTerminal too, unless its terminal has sent it them already.
var (
	passedOn   = []os.Signal{unix.SIGTERM, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2, unix.SIGCONT}
	ofTerminal = []os.Signal{unix.SIGINT, unix.SIGQUIT, unix.SIGWINCH, unix.SIGTSTP}
)

// start runs the command in this process' own group: it has the terminal from the start,
// and since that group is orphaned, Ctrl-Z can't stop what nobody could continue.
func start(c Config) (pid int, err error) {
	path, err := exec.LookPath(c.Argv[0])
	if err != nil {
		code := codeNotFound
		if errors.Is(err, fs.ErrPermission) {
			code = codeNotExecutable
		}
		return 0, &ExitError{code, fmt.Errorf("the command %s can't be run in the sandbox: %w", c.Argv[0], err)}
	}
	fds := make([]uintptr, len(c.Files))
	for i, f := range c.Files {
		fds[i] = f.Fd()
	}
	pid, err = syscall.ForkExec(path, c.Argv, &syscall.ProcAttr{Env: c.Env, Files: fds}) //nolint:gosec // G204: the agent's own command
	if err != nil {
		return 0, &ExitError{codeNotExecutable, fmt.Errorf("the command %s can't be run in the sandbox: %w", path, err)}
	}
	return pid, nil
}

// reap waits for the command, and for whatever orphan comes to PID 1 meanwhile.
func reap(child int) (code int, err error) {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait for the command: %w", err)
		case pid != child:
		case ws.Exited():
			return ws.ExitStatus(), nil
		case ws.Signaled():
			return 128 + int(ws.Signal()), nil
		}
	}
}

// CloseInherited closes every descriptor over 2 that whoever started this process left open
// without meaning to: the agent would find it in /proc. It is for the start of main.
func CloseInherited() error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("close inherited descriptors: %w", err)
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd <= 2 {
			continue
		}
		// What the runtime opened is close-on-exec; what came by an exec is not.
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			_ = unix.Close(fd)
		}
	}
	return nil
}
