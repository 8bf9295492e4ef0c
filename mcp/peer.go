package mcp

import (
	"fmt"
	"net"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A peer is who holds the other end of a socket, as the kernel recorded it at connect().
type peer struct {
	pid      int32
	uid, gid uint32
}

// admit returns the peer of a connection that may be served: one of our own user, or one
// that shares a group with us (a sandbox under another user is given that group for the
// socket's sake). Whoever it is, it only gets to ask.
func admit(nc net.Conn) (peer, error) {
	uc, ok := nc.(*net.UnixConn)
	if !ok {
		return peer{}, fmt.Errorf("a %T has no peer credentials", nc)
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return peer{}, fmt.Errorf("peer credentials: %w", err)
	}
	var cred *unix.Ucred
	var groups []uint32
	var inner error
	err = raw.Control(func(fd uintptr) {
		if cred, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); inner == nil {
			groups, inner = peerGroups(fd)
		}
	})
	if err == nil {
		err = inner
	}
	if err != nil {
		return peer{}, fmt.Errorf("peer credentials: %w", err)
	}
	p := peer{cred.Pid, cred.Uid, cred.Gid}
	ours, err := os.Getgroups()
	if err != nil {
		return peer{}, fmt.Errorf("our groups: %w", err)
	}
	if !mayServe(p, groups, os.Geteuid(), append(ours, os.Getegid())) {
		return peer{}, fmt.Errorf("peer pid %d: uid %d and gid %d share nothing with uid %d", p.pid, p.uid, p.gid, os.Geteuid())
	}
	return p, nil
}

func mayServe(p peer, peerGroups []uint32, uid int, gids []int) bool {
	if int(p.uid) == uid {
		return true
	}
	return slices.ContainsFunc(append(peerGroups, p.gid), func(g uint32) bool {
		return slices.Contains(gids, int(g))
	})
}

// peerGroups reads SO_PEERGROUPS (Linux 4.13), the peer's supplementary groups; x/sys has no
// typed call for it. A kernel without it knows none.
func peerGroups(fd uintptr) ([]uint32, error) {
	buf := make([]uint32, 64)
	for {
		size := uint32(len(buf)) * 4 //nolint:gosec // len(buf) is at most 1<<16
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&size)), 0) //nolint:gosec // the kernel writes at most size bytes to buf
		switch {
		case errno == 0:
			return buf[:size/4], nil
		case errno == unix.ENOPROTOOPT:
			return nil, nil
		case errno == unix.ERANGE && len(buf) < 1<<16: // NGROUPS_MAX
			buf = make([]uint32, size/4)
		default:
			return nil, errno
		}
	}
}
