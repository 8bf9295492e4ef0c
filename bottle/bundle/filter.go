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
// own, an ssh agent's or a container engine's. Netlink is nobody's: it lists the
// machine's interfaces and neighbours, and its parsers in the kernel are many.

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

// socketFilter allows every call but the sockets and sends that evade the port rules.
func socketFilter(arch uint32, udp bool) []unix.SockFilter {
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
	if udp {
		push(unless(0, unless(protoTCP, unless(protoUDP, protocols)...)...))
	} else {
		push(unless(0, unless(protoTCP, protocols)...))
	}
	push(one(load(arg(1)), stmt(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, 0xf)), when(unix.SOCK_STREAM, allow))
	if udp {
		push(when(unix.SOCK_DGRAM, allow))
	}
	push(one(deny(uint32(unix.EPROTONOSUPPORT))))
	add(when(unix.SYS_SOCKET, sock...))

	for _, send := range []struct{ nr, flags uint32 }{{unix.SYS_SENDTO, 3}, {unix.SYS_SENDMSG, 2}, {unix.SYS_SENDMMSG, 3}} {
		add(when(send.nr, load(arg(send.flags)),
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, Jf: 1, K: unix.MSG_FASTOPEN},
			deny(uint32(unix.EOPNOTSUPP)), allow))
	}
	return append(p, allow)
}

func filterSockets(udp bool) error {
	archs := map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}
	arch, ok := archs[runtime.GOARCH]
	if !ok {
		return fmt.Errorf("not written for %s", runtime.GOARCH)
	}
	return setFilter(socketFilter(arch, udp))
}
