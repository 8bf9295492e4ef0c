package bundle

import (
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
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

// Exec confines this process to the rights of one daemon and becomes it, keeping its pid.
// It returns only to say why not, and the process must then end, since it may be
// half confined. It needs the published bundle.json, for the ports.
//
// In this order, since each step takes away what the earlier ones need: core dumps off,
// capabilities dropped, Landlock and no_new_privs, the socket filter, the death signal, exec: a
// daemon does not outlive its parent, which is init. Dumpability
// can't be dropped for the daemon here: exec sets it again; with Landlock a sibling
// can't ptrace or read /proc/PID/mem across domains.
func Exec(cfg LaunchConfig) error {
	switch {
	case cfg.Dir == nil || cfg.Warn == nil:
		return fmt.Errorf("launch: Dir and Warn are required: %w", bottle.ErrInvalid)
	case len(cfg.Argv) == 0 || !strings.HasPrefix(cfg.Argv[0], "/"):
		return fmt.Errorf("launch %s: the command must be an absolute path: %w", cfg.Daemon, bottle.ErrInvalid)
	}
	c, err := LoadConfig(cfg.Dir)
	if err != nil {
		return fmt.Errorf("launch %s: %w", cfg.Daemon, err)
	}
	// Capabilities, the filter and the signal mask are per thread; exec keeps this one's.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	unix.Umask(0o077)
	if err := confine(cfg, c); err != nil {
		return fmt.Errorf("launch %s: %w", cfg.Daemon, err)
	}
	// The signal of init's death, too, is per thread, and init could only set that of the first.
	// Should init die before this line, the first thread still takes all of us with it.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("launch %s: end with init: %w", cfg.Daemon, err)
	}
	return fmt.Errorf("launch %s: exec %s: %w", cfg.Daemon, cfg.Argv[0], unix.Exec(cfg.Argv[0], cfg.Argv, cfg.Env))
}

func confine(cfg LaunchConfig, c *bottle.BundleConfig) error {
	rules, err := rulesFor(cfg.Daemon, cfg.Dir, c)
	if err != nil {
		return err
	}
	abi, err := ll.LandlockGetABIVersion()
	if err != nil {
		abi = 0 // ENOSYS: not built in; EOPNOTSUPP: not enabled
	}
	gap, err := checkABI(abi, c.AcceptNoLandlock)
	if err != nil {
		return err
	}
	if gap != "" {
		cfg.Warn(gap)
	}
	rules.rules = append(rules.rules, landlock.PathAccess(execFile, cfg.Argv[0]))

	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("turn core dumps off: %w", err)
	}
	// Nothing of the launcher's, nor of whoever leaked it a descriptor, goes on.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("close descriptors: %w", err)
	}
	if err := dropCapabilities(); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	if abi >= abiFiles {
		if err := rules.enforce(); err != nil {
			return fmt.Errorf("apply the Landlock ruleset: %w", err)
		}
	}
	if err := filterSockets(rules.sockets); err != nil {
		return fmt.Errorf("install the socket filter: %w", err)
	}
	return nil
}

// dropCapabilities empties this thread's bounding, ambient, inheritable, permitted and
// effective sets, and checks that. The uid stays: as root without capabilities it owns
// its files and no more. A process without CAP_SETPCAP can't shrink its bounding set, and needn't:
// no_new_privs keeps exec from giving anything.
func dropCapabilities() error {
	last, err := lastCapability()
	if err != nil {
		return err
	}
	for c := range last + 1 {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("bounding set, capability %d: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("ambient set: %w", err)
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none, have [2]unix.CapUserData
	if err := unix.Capset(&hdr, &none[0]); err != nil {
		return err
	}
	if err := unix.Capget(&hdr, &have[0]); err != nil {
		return err
	}
	if have != none {
		return errors.New("some are left")
	}
	// Root's exec would be given the bounding set again, so it must be empty then.
	if os.Geteuid() == 0 {
		for c := range last + 1 {
			if r, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0); err == nil && r != 0 {
				return fmt.Errorf("capability %d stays in the bounding set; run as another user, or with CAP_SETPCAP", c)
			}
		}
	}
	return nil
}

func lastCapability() (int, error) {
	b, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

// setFilter installs a seccomp filter on this thread.
func setFilter(prog []unix.SockFilter) error {
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}                                       //nolint:gosec // G115: some twenty instructions
	err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&fprog)), 0, 0) //nolint:gosec // G103: the kernel's interface
	runtime.KeepAlive(prog)
	return err
}
