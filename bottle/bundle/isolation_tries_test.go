package bundle_test

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// tryKernel is what a program does to others that needs more than files and sockets. A try that the
// kernel lets through leaves things as they were: it sets what it has read, and sends signals that
// are ignored.
func tryKernel(op, arg string) error {
	pid := 0
	_, _ = fmt.Sscan(arg, &pid)
	id := uintptr(pid)
	self := os.Getpid() // for calls that can hit the caller
	path, _ := unix.BytePtrFromString(arg)
	name := uintptr(unsafe.Pointer(path)) //nolint:gosec // G103: the kernel's interface
	defer runtime.KeepAlive(path)
	switch op {
	// Another process.
	case "ptrace-attach", "ptrace-seize":
		return trace(op, pid)
	case "vm-read", "vm-write":
		return touchMemory(op, pid)
	case "steal-fd":
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		got, err := unix.PidfdGetfd(fd, 0, 0)
		if err == nil {
			_ = unix.Close(got)
		}
		return err
	case "signal":
		return unix.Kill(pid, unix.SIGWINCH)
	case "tgkill":
		return unix.Tgkill(pid, pid, unix.SIGWINCH)
	case "pidfd-signal":
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.PidfdSendSignal(fd, unix.SIGWINCH, nil, 0)
	case "queue-signal":
		info := [32]int32{int32(unix.SIGWINCH), 0, -1 /* SI_QUEUE */}
		return call(unix.SYS_RT_SIGQUEUEINFO, id, uintptr(unix.SIGWINCH), uintptr(unsafe.Pointer(&info))) //nolint:gosec // G103
	case "limit":
		var old unix.Rlimit
		if err := unix.Prlimit(pid, unix.RLIMIT_CPU, nil, &old); err != nil {
			return err
		}
		return unix.Prlimit(pid, unix.RLIMIT_CPU, &old, nil)
	case "affinity":
		var set unix.CPUSet
		if err := unix.SchedGetaffinity(pid, &set); err != nil {
			return err
		}
		return unix.SchedSetaffinity(pid, &set)
	case "scheduler":
		var param int32
		return call(unix.SYS_SCHED_SETSCHEDULER, id, 0, uintptr(unsafe.Pointer(&param))) //nolint:gosec // G103
	case "nice":
		return unix.Setpriority(unix.PRIO_PROCESS, pid, 0)
	case "io-nice":
		return call(unix.SYS_IOPRIO_SET, 1 /* IOPRIO_WHO_PROCESS */, id, 0)
	case "compare":
		return call(unix.SYS_KCMP, uintptr(self), id, 1 /* KCMP_VM */)
	case "perf":
		attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_CPU_CLOCK, Bits: unix.PerfBitExcludeKernel | unix.PerfBitExcludeHv}
		attr.Size = uint32(unsafe.Sizeof(attr))
		fd, err := unix.PerfEventOpen(&attr, pid, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
		if err == nil {
			_ = unix.Close(fd)
		}
		return err

	// Files, in ways that Landlock does not know.
	case "chmod":
		return os.Chmod(arg, 0o700)
	case "chown":
		return os.Chown(arg, os.Getuid(), os.Getgid())
	case "touch":
		return unix.UtimesNanoAt(unix.AT_FDCWD, arg, nil, 0)
	case "xattr":
		return unix.Setxattr(arg, "user.bottle", []byte("x"), 0)
	case "open-chmod": // of one that it may read
		f, err := os.Open(arg)
		if err != nil {
			return err
		}
		defer f.Close()
		return f.Chmod(0o644)
	case "watch":
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		_, err = unix.InotifyAddWatch(fd, arg, unix.IN_CREATE)
		return err
	case "link":
		return os.Link(arg, arg+".link")
	case "symlink":
		return os.Symlink("x", arg+".symlink")
	case "mkdir":
		return os.Mkdir(arg+".dir", 0o700)
	case "fifo":
		return unix.Mkfifo(arg+".fifo", 0o600)
	case "truncate":
		return os.Truncate(arg, 1)
	case "rename":
		return os.Rename(arg, arg+".renamed")
	case "remove":
		return os.Remove(arg)
	case "write":
		f, err := os.OpenFile(arg, os.O_WRONLY, 0)
		if err == nil {
			_ = f.Close()
		}
		return err
	case "open":
		f, err := os.Open(arg)
		if err == nil {
			_ = f.Close()
		}
		return err
	case "readlink":
		_, err := os.Readlink(arg)
		return err

	// Sockets.
	case "listen": // which needs no bind, and so no right to
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Listen(fd, 1)
	case "send-pair": // a datagram to any unix socket, from a pair that was never bound
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		defer unix.Close(pair[0])
		defer unix.Close(pair[1])
		return unix.Sendto(pair[0], []byte("x"), unix.MSG_DONTWAIT, &unix.SockaddrUnix{Name: arg})

	// The kernel itself, and what all processes of a user share.
	case "keyring":
		_, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_USER_KEYRING, true)
		return err
	case "add-key":
		_, err := unix.AddKey("user", "bottle-test", []byte("x"), unix.KEY_SPEC_PROCESS_KEYRING)
		return err
	case "shared-memory":
		shm, _, errno := unix.Syscall(unix.SYS_SHMGET, 0, 4096, 0o1600)
		if errno != 0 {
			return errno
		}
		return call(unix.SYS_SHMCTL, shm, unix.IPC_RMID, 0)
	case "message-queue":
		q, _, errno := unix.Syscall(unix.SYS_MSGGET, 0, 0o1600, 0)
		if errno != 0 {
			return errno
		}
		return call(unix.SYS_MSGCTL, q, unix.IPC_RMID, 0)
	case "semaphore":
		s, _, errno := unix.Syscall(unix.SYS_SEMGET, 0, 1, 0o1600)
		if errno != 0 {
			return errno
		}
		return call(unix.SYS_SEMCTL, s, 0, unix.IPC_RMID)
	case "posix-queue":
		fd, _, errno := unix.Syscall6(unix.SYS_MQ_OPEN, name, unix.O_CREAT|unix.O_RDWR, 0o600, 0, 0, 0)
		if errno != 0 {
			return errno
		}
		_ = unix.Close(int(fd))
		return call(unix.SYS_MQ_UNLINK, name, 0, 0)
	case "io-uring":
		var params [120]byte
		fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params)), 0) //nolint:gosec // G103
		if errno != 0 {
			return errno
		}
		return unix.Close(int(fd))
	case "bpf":
		attr := [18]uint32{2 /* BPF_MAP_TYPE_ARRAY */, 4, 4, 1}
		fd, _, errno := unix.Syscall(unix.SYS_BPF, 0 /* BPF_MAP_CREATE */, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr)) //nolint:gosec // G103
		if errno != 0 {
			return errno
		}
		return unix.Close(int(fd))
	case "userfaultfd":
		fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|1 /* UFFD_USER_MODE_ONLY */, 0, 0)
		if errno != 0 {
			return errno
		}
		return unix.Close(int(fd))
	case "new-namespaces":
		return inChild(unix.SYS_UNSHARE, unix.CLONE_NEWUSER|unix.CLONE_NEWNS|unix.CLONE_NEWNET, 0, 0)
	case "clone-namespaces":
		return cloned(unix.CLONE_NEWUSER|unix.CLONE_NEWNET, unix.SYS_GETPID, 0, 0, 0)
	case "clone3":
		// Its flags are in memory, where no filter sees them.
		return call(unix.SYS_CLONE3, 0, 0, 0)
	case "new-session":
		return inChild(unix.SYS_SETSID, 0, 0, 0)
	case "new-group":
		return inChild(unix.SYS_SETPGID, 0, 0, 0)
	case "mount":
		return inChild(unix.SYS_MOUNT, name, name, 0, unix.MS_BIND)
	case "chroot":
		return inChild(unix.SYS_CHROOT, name, 0, 0)
	case "setuid":
		return inChild(unix.SYS_SETUID, id, 0, 0)
	case "setgid":
		return inChild(unix.SYS_SETGID, id, 0, 0)
	case "run-memory":
		return runMemory()
	}
	return errors.New("no such op")
}

func call(nr, a, b, c uintptr) error {
	if _, _, errno := unix.Syscall(nr, a, b, c); errno != 0 {
		return errno
	}
	return nil
}

// trace attaches to a process and lets it go. All of it is the business of one thread.
func trace(op string, pid int) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if op == "ptrace-attach" {
		if err := unix.PtraceAttach(pid); err != nil {
			return err
		}
	} else {
		if err := unix.PtraceSeize(pid); err != nil {
			return err
		}
		if err := unix.PtraceInterrupt(pid); err != nil {
			return err
		}
	}
	if _, err := unix.Wait4(pid, nil, unix.WALL, nil); err != nil {
		return err
	}
	return unix.PtraceDetach(pid)
}

// touchMemory reads or writes at an address where nothing is: who may gets as far as that.
func touchMemory(op string, pid int) error {
	b := []byte{0}
	local := []unix.Iovec{{Base: &b[0], Len: 1}}
	remote := []unix.RemoteIovec{{Base: 0, Len: 1}}
	f := unix.ProcessVMReadv
	if op == "vm-write" {
		f = unix.ProcessVMWritev
	}
	if _, err := f(pid, local, remote, 0); !errors.Is(err, unix.EFAULT) {
		return err
	}
	return nil
}

// inChild makes a system call in a process of one thread, which some calls want, and which
// may be changed for good.
func inChild(nr uintptr, args ...uintptr) error { return cloned(0, nr, args...) }

//go:norace
func cloned(flags, nr uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	syscall.ForkLock.Lock()
	pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, flags|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno == 0 && pid == 0 {
		// Of the runtime there is nothing but this thread: no allocation, no scheduling.
		_, _, errno = unix.RawSyscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
		_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, uintptr(errno), 0, 0)
	}
	syscall.ForkLock.Unlock()
	if errno != 0 {
		return errno
	}
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(int(pid), &ws, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		break
	}
	if code := ws.ExitStatus(); code != 0 {
		return syscall.Errno(code)
	}
	return nil
}

// runMemory runs a program that is in no file, for Landlock looks at files: it opens
// /etc/passwd, and what comes of that is the outcome.
func runMemory() error {
	if runtime.GOARCH != "amd64" {
		return errors.New("no program for this machine")
	}
	fd, err := unix.MemfdCreate("x", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, tinyProgram()); err != nil {
		return err
	}
	empty := [1]byte{}
	err = inChild(unix.SYS_EXECVEAT, uintptr(fd), uintptr(unsafe.Pointer(&empty)), 0, 0, unix.AT_EMPTY_PATH) //nolint:gosec // G103, G115
	if errors.Is(err, syscall.Errno(200)) {
		return nil
	}
	return err
}

// tinyProgram is an executable whose exit code is the errno of open("/etc/passwd"), or 200.
func tinyProgram() []byte {
	const base = 0x400000
	code := "\xb8\x02\x00\x00\x00" + // mov eax, open
		"\x48\x8d\x3d\x19\x00\x00\x00" + // lea rdi, [path]
		"\x31\xf6\x0f\x05" + // xor esi, esi; syscall
		"\xf7\xd8" + // neg eax
		"\x79\x05\xb8\xc8\x00\x00\x00" + // jns +5; mov eax, 200
		"\x89\xc7" + // mov edi, eax
		"\xb8\xe7\x00\x00\x00\x0f\x05" + // exit_group
		"\x90\x90\x90" +
		"/etc/passwd\x00"
	var b strings.Builder
	word := func(n int, v uint64) {
		for range n {
			b.WriteByte(byte(v))
			v >>= 8
		}
	}
	b.WriteString("\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 9))
	word(2, 2) // ET_EXEC
	word(2, 62)
	word(4, 1)
	word(8, base+120) // entry
	word(8, 64)       // program headers
	word(8, 0)
	word(4, 0)
	word(2, 64)
	word(2, 56)
	word(2, 1)
	word(6, 0)
	word(4, 1) // PT_LOAD
	word(4, 5) // r-x
	word(8, 0)
	word(8, base)
	word(8, base)
	word(8, uint64(120+len(code)))
	word(8, uint64(120+len(code)))
	word(8, 0x1000)
	b.WriteString(code)
	return []byte(b.String())
}
