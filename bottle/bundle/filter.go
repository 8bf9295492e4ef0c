package bundle

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// Landlock's port rules are about TCP sockets and nothing else: MPTCP (which net.Listen
// uses by default), SCTP, SMC, UDP before ABI 10, and a connect hidden in
// sendto(MSG_FASTOPEN) pass by them. The filter closes these, so that "connects to pipelock
// only" is true. io_uring, whose operations no filter sees, goes too.
//
// Landlock before ABI 9 says nothing about unix sockets with a path, so no daemon makes any (those
// that serve on one inherit it): whoever can connect reaches egress' key socket, and those of the operator's
// own, an ssh agent's or a container engine's. A pair of them is none either: its ends, if they are for datagrams,
// send to any path. Netlink is nobody's: it lists the
// machine's interfaces and neighbours, and its parsers in the kernel are many. And since
// listen(2) on a socket that was never bound takes a port too, who need not listen can't.
//
// What else Landlock does not see, and a process may do to others of its user, is in [beyondLandlock].

// Offsets into struct seccomp_data (seccomp(2)); arguments are 64 bits, of which the low half
// comes first on the architectures below.
const (
	offNr   = 0
	offArch = 4
	offArgs = 16
)

func arg(n uint32) uint32 { return offArgs + 8*n }

const (
	protoTCP = uint32(unix.IPPROTO_TCP)
	protoUDP = uint32(unix.IPPROTO_UDP)
	x32Bit   = 0x40000000 // __X32_SYSCALL_BIT: the same calls under other numbers
)

func stmt(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }

func load(off uint32) unix.SockFilter { return stmt(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, off) }

func ret(action uint32) unix.SockFilter { return stmt(unix.BPF_RET|unix.BPF_K, action) }

func deny(errno uint32) unix.SockFilter { return ret(unix.SECCOMP_RET_ERRNO | errno) }

// unless runs body if the accumulator is not k.
func unless(k uint32, body ...unix.SockFilter) []unix.SockFilter {
	return append([]unix.SockFilter{{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: uint8(len(body)), K: k}}, body...) //nolint:gosec // G115: a few instructions
}

// when runs body if the accumulator is k.
func when(k uint32, body ...unix.SockFilter) []unix.SockFilter {
	return append([]unix.SockFilter{{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: uint8(len(body)), K: k}}, body...) //nolint:gosec // G115: a few instructions
}

// none denies these calls; the accumulator holds the number of one.
func none(calls ...uint32) []unix.SockFilter {
	var p []unix.SockFilter
	for i, nr := range calls {
		toDeny := uint8(len(calls) - i) //nolint:gosec // G115: some eighty at the most
		p = append(p, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: toDeny, K: nr})
	}
	return append(p, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: 1}, deny(uint32(unix.EPERM)))
}

// callFilter allows every call but those that evade a daemon's ruleset.
func callFilter(arch uint32, r *ruleset) []unix.SockFilter {
	allow := ret(unix.SECCOMP_RET_ALLOW)
	var p []unix.SockFilter
	add := func(parts ...[]unix.SockFilter) {
		for _, part := range parts {
			p = append(p, part...)
		}
	}
	one := func(i ...unix.SockFilter) []unix.SockFilter { return i }

	add(one(load(offArch)), unless(arch, ret(unix.SECCOMP_RET_KILL_PROCESS)), one(load(offNr)))
	if arch == unix.AUDIT_ARCH_X86_64 {
		add(one(unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, Jf: 1, K: x32Bit}, deny(uint32(unix.ENOSYS))))
	}
	add(when(unix.SYS_IO_URING_SETUP, deny(uint32(unix.ENOSYS))))

	// socket(domain, type, protocol). Go takes EPROTONOSUPPORT for MPTCP as "use TCP".
	var sock []unix.SockFilter
	push := func(parts ...[]unix.SockFilter) {
		for _, part := range parts {
			sock = append(sock, part...)
		}
	}
	push(one(load(arg(0))))
	push(unless(unix.AF_INET, unless(unix.AF_INET6, deny(uint32(unix.EAFNOSUPPORT)))...))
	push(one(load(arg(2))))
	protocols := deny(uint32(unix.EPROTONOSUPPORT))
	if r.udp {
		push(unless(0, unless(protoTCP, unless(protoUDP, protocols)...)...))
	} else {
		push(unless(0, unless(protoTCP, protocols)...))
	}
	push(one(load(arg(1)), stmt(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, 0xf)), when(unix.SOCK_STREAM, allow))
	if r.udp {
		push(when(unix.SOCK_DGRAM, allow))
	}
	push(one(deny(uint32(unix.EPROTONOSUPPORT))))
	add(when(unix.SYS_SOCKET, sock...))

	for _, send := range []struct{ nr, flags uint32 }{{unix.SYS_SENDTO, 3}, {unix.SYS_SENDMSG, 2}, {unix.SYS_SENDMMSG, 3}} {
		add(when(send.nr, load(arg(send.flags)),
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, Jf: 1, K: unix.MSG_FASTOPEN},
			deny(uint32(unix.EOPNOTSUPP)), allow))
	}

	// Of these calls the arguments decide. A new thread is no new namespace; clone3 has
	// its flags in memory, and who is told that it is not there takes clone. The mode is that of the state
	// files, which each daemon of ours gives the files that it makes. Pid 0 is the caller.
	add(when(unix.SYS_CLONE, load(arg(0)),
		unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, Jf: 1, K: newNamespaces},
		deny(uint32(unix.EPERM)), allow))
	add(when(unix.SYS_CLONE3, deny(uint32(unix.ENOSYS))))
	add(when(unix.SYS_FCHMOD, load(arg(1)),
		unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: 0o600},
		allow, deny(uint32(unix.EPERM))))
	add(when(unix.SYS_PRLIMIT64, load(arg(0)),
		unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: 0},
		allow, deny(uint32(unix.EPERM))))

	add(none(beyondLandlock...))
	if !r.listen {
		add(none(unix.SYS_LISTEN))
	}
	if !r.watch {
		add(none(unix.SYS_INOTIFY_INIT1))
	}
	if arch == unix.AUDIT_ARCH_X86_64 {
		add(none(oldCalls...))
		if !r.watch {
			add(none(x86InotifyInit))
		}
	}
	return append(p, allow)
}

func filterCalls(r *ruleset) error {
	archs := map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}
	arch, ok := archs[runtime.GOARCH]
	if !ok {
		return fmt.Errorf("not written for %s", runtime.GOARCH)
	}
	return setFilter(callFilter(arch, r))
}

// newNamespaces are the flags of clone(2) that make one: with a user namespace of its own a process
// has all capabilities in it, and with them a large part of the kernel before it.
const newNamespaces = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP

// beyondLandlock are calls of which Landlock knows nothing, or which it judges at one door of
// several, and that no daemon has a use for.
var beyondLandlock = []uint32{
	// The mode, the owner, the times and the attributes of any file whose path is known: a CA key
	// that everybody may read, an audit log that the host can no longer open.
	unix.SYS_FCHMODAT, unix.SYS_FCHMODAT2, unix.SYS_FCHOWN, unix.SYS_FCHOWNAT, unix.SYS_UTIMENSAT,
	unix.SYS_SETXATTR, unix.SYS_LSETXATTR, unix.SYS_FSETXATTR, unix.SYS_SETXATTRAT,
	unix.SYS_REMOVEXATTR, unix.SYS_LREMOVEXATTR, unix.SYS_FREMOVEXATTR, unix.SYS_REMOVEXATTRAT,
	unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_FANOTIFY_INIT,

	// Other processes. Their memory is behind Landlock's domains as well; their limits (one of 0 s of CPU
	// time kills init), their scheduling and their place in memory are not.
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PIDFD_GETFD, unix.SYS_KCMP,
	unix.SYS_PROCESS_MADVISE, unix.SYS_PROCESS_MRELEASE, unix.SYS_MIGRATE_PAGES, unix.SYS_MOVE_PAGES, unix.SYS_PERF_EVENT_OPEN,
	unix.SYS_SCHED_SETPARAM, unix.SYS_SCHED_SETSCHEDULER, unix.SYS_SCHED_SETATTR, unix.SYS_SCHED_SETAFFINITY, unix.SYS_SETPRIORITY, unix.SYS_IOPRIO_SET,

	// A way out of the process group, by which init ends all that a daemon has started.
	unix.SYS_SETSID, unix.SYS_SETPGID,

	// What all processes of a user share.
	unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL, unix.SYS_MQ_OPEN, unix.SYS_MQ_UNLINK,
	unix.SYS_SHMGET, unix.SYS_SHMAT, unix.SYS_SHMCTL, unix.SYS_MSGGET, unix.SYS_MSGSND, unix.SYS_MSGRCV, unix.SYS_MSGCTL,
	unix.SYS_SEMGET, unix.SYS_SEMOP, unix.SYS_SEMTIMEDOP, unix.SYS_SEMCTL,
	unix.SYS_SOCKETPAIR,

	// Other views of the machine, and parts of the kernel with a history.
	unix.SYS_UNSHARE, unix.SYS_SETNS, unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT,
	unix.SYS_OPEN_TREE, unix.SYS_MOVE_MOUNT, unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK, unix.SYS_MOUNT_SETATTR,
	unix.SYS_BPF, unix.SYS_USERFAULTFD,
}

// oldCalls are those on x86-64 that other machines never had.
var oldCalls = []uint32{
	90,  // chmod
	92,  // chown
	94,  // lchown
	132, // utime
	235, // utimes
	261, // futimesat
}

const x86InotifyInit = 253
