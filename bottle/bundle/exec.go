package bundle

import (
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/landlock-lsm/go-landlock/landlock"
	"golang.org/x/sys/unix"

	"bottle/bottle"
)

// A LaunchConfig says what [Exec] becomes.
type LaunchConfig struct {
	Dir    *bottle.Dir // required
	Daemon string      // required: whose rights
	Argv   []string    // required; Argv[0] is an absolute path
	Env    []string    // passed on as it is; init has picked it
	// Warn is told what the kernel can't enforce. Required.
	Warn func(string)
}

// Exec confines this process to the rights of one daemon and becomes it, keeping its pid: for a
// program that does not confine itself, as ours do ([Serve]). It returns only to say why not,
// and the process must then end, since it may be half confined. It needs the published
// bundle.json, for the ports.
//
// After the confinement come the death signal and exec: a daemon does not outlive its
// parent, which is init. Dumpability can't be dropped for the daemon here: exec sets it
// again; with Landlock a sibling can't ptrace or read /proc/PID/mem across domains.
func Exec(cfg LaunchConfig) error {
	switch {
	case cfg.Dir == nil || cfg.Warn == nil:
		return fmt.Errorf("launch: Dir and Warn are required: %w", bottle.ErrInvalid)
	case len(cfg.Argv) == 0 || !strings.HasPrefix(cfg.Argv[0], "/"):
		return fmt.Errorf("launch %s: the command must be an absolute path: %w", cfg.Daemon, bottle.ErrInvalid)
	}
	if !slices.Contains(allDaemons, cfg.Daemon) {
		return fmt.Errorf("launch: no daemon %q: %w", cfg.Daemon, bottle.ErrInvalid)
	}
	c, err := LoadConfig(cfg.Dir, cfg.Daemon)
	if err != nil {
		return fmt.Errorf("launch %s: %w", cfg.Daemon, err)
	}
	// Exec keeps the signal mask and the death signal of this very thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	unix.Umask(0o077)
	// Nothing of the launcher's, nor of whoever leaked it a descriptor, goes on, but for
	// sockets that were named (sd_listen_fds(3)); the pid stays ours, so it is known now.
	env, sockets, err := passedOn(cfg.Env)
	if err != nil {
		return fmt.Errorf("launch %s: %w", cfg.Daemon, err)
	}
	if err := closeOnExec(sockets); err != nil {
		return fmt.Errorf("launch %s: %w", cfg.Daemon, err)
	}
	if err := confine(cfg.Daemon, cfg.Dir, c, cfg.Warn, landlock.PathAccess(execFile, cfg.Argv[0])); err != nil {
		return fmt.Errorf("launch %s: %w", cfg.Daemon, err)
	}
	// The signal of init's death, too, is per thread, and init could only set that of the first.
	// Should init die before this line, the first thread still takes all of us with it.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("launch %s: end with init: %w", cfg.Daemon, err)
	}
	return fmt.Errorf("launch %s: exec %s: %w", cfg.Daemon, cfg.Argv[0], unix.Exec(cfg.Argv[0], cfg.Argv, env))
}

// passedOn is the environment with LISTEN_PID where it names inherited sockets, and how many these are.
func passedOn(environ []string) (env []string, sockets uint, err error) {
	n := lookup(environ, envListenFDs)
	if n == "" {
		return environ, 0, nil
	}
	count, err := strconv.ParseUint(n, 10, 8)
	if err != nil || count > maxInherited {
		return nil, 0, fmt.Errorf("%s=%q: not a number up to %d: %w", envListenFDs, n, maxInherited, bottle.ErrInvalid)
	}
	return append(slices.Clone(environ), envListenPID+"="+strconv.Itoa(os.Getpid())), uint(count), nil
}

// closeOnExec keeps descriptors from the programs that this process starts, but for the standard
// three and as many after them as keep says.
func closeOnExec(keep uint) error {
	err := unix.CloseRange(firstFD+keep, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	if err != nil && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("close descriptors: %w", err)
	}
	return nil
}
