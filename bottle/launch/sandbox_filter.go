package launch

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// The sandbox's seccomp filter closes what namespaces leave open. Some of it no namespace
// covers (AF_VSOCK reaches the machine's own host, a keyring is the user's, TIOCSTI types into the terminal
// that the operator uses next), and some gives a process without any right a large part of the kernel to
// play with (a user namespace of its own, io_uring, bpf). It follows that of flatpak
// (common/flatpak-run.c), and like it lets ptrace be: debuggers are tools of an agent's.

// Offsets into struct seccomp_data (seccomp(2)); arguments are 64 bits, of which the low half
// comes first on the architectures below. The kernel looks at the low half alone where it says unsigned int.
const (
	dataNr   = 0
	dataArch = 4
	dataArgs = 16
)

const (
	x32Bit    = 0x40000000 // __X32_SYSCALL_BIT: the same calls under other numbers
	tiocLinux = 0x541c     // TIOCLINUX: paste into a virtual console
	// namespaceFlags are those of clone(2) that make one.
	namespaceFlags = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP
)

// deniedCalls fail with EPERM.
var deniedCalls = []uint32{
	unix.SYS_UNSHARE, unix.SYS_SETNS, unix.SYS_CHROOT, unix.SYS_PIVOT_ROOT, unix.SYS_MOUNT, unix.SYS_UMOUNT2,
	unix.SYS_OPEN_TREE, unix.SYS_MOVE_MOUNT, unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK, unix.SYS_MOUNT_SETATTR,
	unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_FANOTIFY_INIT, unix.SYS_QUOTACTL, unix.SYS_QUOTACTL_FD,
	unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL,
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_LOOKUP_DCOOKIE, unix.SYS_MIGRATE_PAGES, unix.SYS_MOVE_PAGES,
	unix.SYS_SYSLOG, unix.SYS_ACCT, unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_REBOOT, unix.SYS_VHANGUP,
	unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD,
	unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_NFSSERVCTL,
}

// absentCalls fail with ENOSYS, on which programs fall back: clone3 has its flags in memory, where
// no filter sees them, and so have io_uring's operations.
var absentCalls = []uint32{
	unix.SYS_CLONE3, unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
}

// families are those of socket(2) that the network namespace covers; netlink only to ask
// for interfaces and routes, as getifaddrs(3) does.
var families = []uint32{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6}

// sandboxFilter is the filter's program as bubblewrap's --seccomp reads it.
func sandboxFilter() ([]byte, error) {
	arch, ok := map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}[runtime.GOARCH]
	if !ok {
		return nil, fmt.Errorf("the sandbox's seccomp filter is not written for %s", runtime.GOARCH)
	}
	var out bytes.Buffer
	if err := binary.Write(&out, binary.NativeEndian, filterProgram(arch)); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func filterProgram(arch uint32) []unix.SockFilter {
	const (
		load = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		exit = unix.BPF_RET | unix.BPF_K
		jeq  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		jge  = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
		jset = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
	)
	fail := func(errno unix.Errno) unix.SockFilter {
		return unix.SockFilter{Code: exit, K: unix.SECCOMP_RET_ERRNO | uint32(errno)} //nolint:gosec // G115: small
	}
	allow := unix.SockFilter{Code: exit, K: unix.SECCOMP_RET_ALLOW}
	low := func(arg uint32) unix.SockFilter { return unix.SockFilter{Code: load, K: dataArgs + 8*arg} }

	p := []unix.SockFilter{
		{Code: load, K: dataArch},
		// Calls of another architecture, as 32-bit programs make them, have other numbers.
		{Code: jeq, K: arch, Jt: 1},
		fail(unix.ENOSYS),
		{Code: load, K: dataNr},
	}
	if arch == unix.AUDIT_ARCH_X86_64 {
		p = append(p, unix.SockFilter{Code: jge, K: x32Bit, Jf: 1}, fail(unix.ENOSYS))
	}
	for _, nr := range absentCalls {
		p = append(p, unix.SockFilter{Code: jeq, K: nr, Jf: 1}, fail(unix.ENOSYS))
	}
	for _, nr := range deniedCalls {
		p = append(p, unix.SockFilter{Code: jeq, K: nr, Jf: 1}, fail(unix.EPERM))
	}
	// on adds what looks at the arguments of one call, and ends in a verdict.
	on := func(nr uint32, body ...unix.SockFilter) {
		p = append(p, unix.SockFilter{Code: jeq, K: nr, Jf: uint8(len(body))}) //nolint:gosec // G115: a few
		p = append(p, body...)
	}
	on(unix.SYS_CLONE, low(0), unix.SockFilter{Code: jset, K: namespaceFlags, Jf: 1}, fail(unix.EPERM), allow)
	on(unix.SYS_IOCTL, low(1),
		unix.SockFilter{Code: jeq, K: unix.TIOCSTI, Jf: 1}, fail(unix.EPERM),
		unix.SockFilter{Code: jeq, K: tiocLinux, Jf: 1}, fail(unix.EPERM), allow)
	sock := []unix.SockFilter{low(0)}
	for _, f := range families {
		sock = append(sock, unix.SockFilter{Code: jeq, K: f, Jf: 1}, allow)
	}
	sock = append(sock, unix.SockFilter{Code: jeq, K: unix.AF_NETLINK, Jt: 1}, fail(unix.EAFNOSUPPORT),
		low(2), unix.SockFilter{Code: jeq, K: unix.NETLINK_ROUTE, Jt: 1}, fail(unix.EPROTONOSUPPORT), allow)
	on(unix.SYS_SOCKET, sock...)
	return append(p, allow)
}
