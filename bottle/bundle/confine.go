package bundle

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/psx"

	"bottle/bottle"
)

// confine takes all rights from this process but those of one daemon, and of more rules. After
// an error it may be half confined, and must end.
//
// In this order, since each step takes away what the earlier ones need: core dumps off,
// capabilities dropped, Landlock and no_new_privs, the filter of system calls.
//
// To Linux each of these is a property of a thread, and a Go process has several from its start:
// one that was left out would be the way out for whoever runs code in the process. So each
// step is taken on all of them: by psx (which is the Go runtime's own way without cgo), or by the
// kernel (TSYNC). Threads that come later inherit.
func confine(daemon string, dir *bottle.Dir, c *bottle.BundleConfig, warn func(string), more ...landlock.Rule) error {
	rules, err := rulesFor(daemon, dir, c)
	if err != nil {
		return err
	}
	rules.rules = append(rules.rules, more...)
	abi, err := ll.LandlockGetABIVersion()
	if err != nil {
		abi = 0 // ENOSYS: not built in; EOPNOTSUPP: not enabled
	}
	gap, err := checkABI(abi, c.AcceptNoLandlock)
	if err != nil {
		return err
	}
	if gap != "" {
		warn(gap)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("turn core dumps off: %w", err)
	}
	if err := dropCapabilities(); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	if abi >= abiFiles {
		if err := rules.enforce(); err != nil {
			return fmt.Errorf("apply the Landlock ruleset: %w", err)
		}
	} else if err := ll.AllThreadsPrctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	if err := filterCalls(rules); err != nil {
		return fmt.Errorf("install the system call filter: %w", err)
	}
	return nil
}

// dropCapabilities empties the bounding, ambient, inheritable, permitted and effective sets,
// and checks that. The uid stays: as root without capabilities it owns its files and no more. A
// process without CAP_SETPCAP can't shrink its bounding set, and needn't: no_new_privs
// keeps exec from giving anything.
func dropCapabilities() error {
	if err := emptyBoundingSet(ll.AllThreadsPrctl); err != nil {
		return err
	}
	if err := ll.AllThreadsPrctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("ambient set: %w", err)
	}
	hdr := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	none, have := &[2]unix.CapUserData{}, [2]unix.CapUserData{}
	var pins runtime.Pinner // the kernel reads them on one thread after another
	defer pins.Unpin()
	pins.Pin(hdr)
	pins.Pin(none)
	if _, _, errno := psx.Syscall3(unix.SYS_CAPSET, uintptr(unsafe.Pointer(hdr)), uintptr(unsafe.Pointer(none)), 0); errno != 0 { //nolint:gosec // G103: the kernel's interface
		return errno
	}
	if err := unix.Capget(hdr, &have[0]); err != nil {
		return err
	}
	if have != *none {
		return errors.New("some are left")
	}
	return nil
}

// emptyBoundingSet drops what the calling thread has in its bounding set. init does so on the
// thread that starts the daemons, so that these find theirs empty: one call on each
// thread for each of the forty capabilities takes a while.
func emptyBoundingSet(prctl func(option int, a2, a3, a4, a5 uintptr) error) error {
	last, err := lastCapability()
	if err != nil {
		return err
	}
	has := func(c int) bool {
		r, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0)
		return err == nil && r != 0
	}
	for c := range last + 1 {
		if !has(c) {
			continue
		}
		if err := prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("bounding set, capability %d: %w", c, err)
		}
		// Root's exec would be given the bounding set again, so it must be empty then.
		if os.Geteuid() == 0 && has(c) {
			return fmt.Errorf("capability %d stays in the bounding set; run as another user, or with CAP_SETPCAP", c)
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

// setFilter installs a seccomp filter on all threads.
func setFilter(prog []unix.SockFilter) error {
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}                                                                              //nolint:gosec // G115: some twenty instructions
	tid, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&fprog))) //nolint:gosec // G103: the kernel's interface
	runtime.KeepAlive(prog)
	switch {
	case errno != 0:
		return errno
	case tid != 0:
		return fmt.Errorf("thread %d has another filter already", tid)
	}
	return nil
}
