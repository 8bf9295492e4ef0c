package bundle

import (
	"errors"
	"os"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// A reaper starts children and collects every process that ends below this one: its
// children, and the orphans that the kernel hands to PID 1 or to a subreaper.
//
// mu spans the start of a child and its registration, and also the wait and the
// removal. Without the first, a child that dies at once is reaped before its pid is
// known, its end is taken for an orphan's and its daemon is "up" for ever. Without the
// second, kill could hit a process that got the pid of one just reaped.
type reaper struct {
	mu    sync.Mutex
	procs map[int]*process

	starts chan func()
	wg     sync.WaitGroup
}

// A process is a child and leads a process group of its own.
type process struct {
	pid  int
	done chan unix.WaitStatus // capacity 1: its end, exactly once
}

// newReaper runs until close. A pass is made for each value of child and one at the start.
func newReaper(child <-chan os.Signal, stop <-chan struct{}) *reaper {
	r := &reaper{procs: map[int]*process{}, starts: make(chan func())}
	r.wg.Go(func() {
		for {
			r.reap()
			select {
			case <-child:
			case <-stop:
				return
			}
		}
	})
	r.wg.Go(func() { r.startThread(stop) })
	return r
}

// startThread is the one OS thread that children are started from. The parent-death
// signal fires when the *thread* that forked ends, so it must outlive them all; it is
// never unlocked and goes only when the reaper is stopped, after the last child.
func (r *reaper) startThread(stop <-chan struct{}) {
	runtime.LockOSThread()
	// Of this thread and so of its children. Without the right to, they see to it, or fail.
	_ = emptyBoundingSet(unix.Prctl)
	// The host started init with its signals blocked; the daemons are not to inherit that.
	_ = unix.PthreadSigmask(unix.SIG_SETMASK, &unix.Sigset_t{}, nil)
	for {
		select {
		case f := <-r.starts:
			f()
		case <-stop:
			return
		}
	}
}

// start runs argv[0] with the arguments, environment and descriptors (0, 1, 2 and on). Not
// exec.Cmd, whose Wait races with Wait4(-1), nor os.StartProcess, whose files would be the
// runtime poller's: init would be woken for each connection to a socket that it only holds.
func (r *reaper) start(argv, env []string, files []uintptr) (*process, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var (
		pid  int
		err  error
		done = make(chan struct{})
	)
	r.starts <- func() {
		defer close(done)
		pid, _, err = syscall.StartProcess(argv[0], argv, &syscall.ProcAttr{ //nolint:gosec // G204: a daemon's command line
			Dir: "/", Env: env, Files: files,
			Sys: &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL},
		})
	}
	<-done
	if err != nil {
		return nil, err
	}
	p := &process{pid: pid, done: make(chan unix.WaitStatus, 1)}
	r.procs[p.pid] = p
	return p, nil
}

// reap collects all that have ended. One SIGCHLD may stand for many.
func (r *reaper) reap() {
	for r.reapOne() {
	}
}

func (r *reaper) reapOne() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	var ws unix.WaitStatus
	pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
	if errors.Is(err, unix.EINTR) {
		return true
	}
	if err != nil || pid <= 0 { // ECHILD: none at all; 0: none has ended
		return false
	}
	if p := r.procs[pid]; p != nil {
		delete(r.procs, pid)
		// What the daemon left in its group holds its port or its pipes.
		_ = unix.Kill(-pid, unix.SIGKILL)
		p.done <- ws
	}
	return true
}

// signal sends sig to the process, or to its whole group; to none if it has been reaped.
func (r *reaper) signal(p *process, sig syscall.Signal, group bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.procs[p.pid] != p {
		return
	}
	pid := p.pid
	if group {
		pid = -pid
	}
	_ = unix.Kill(pid, sig) // ESRCH: a zombie, which reap will find
}

// sweep kills this process' children, orphans included, and returns how many there were.
func (r *reaper) sweep() (left int) {
	r.reap()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, pid := range childPIDs() {
		left++
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	return left
}
