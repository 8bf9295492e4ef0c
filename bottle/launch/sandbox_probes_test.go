package launch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"bottle/bottle"
)

// probes are what an agent might try. Each returns nil if it worked.
var probes = map[string]func(args []string) error{
	"connect": func(a []string) error { // network, address
		c, err := net.DialTimeout(a[0], a[1], 2*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := c.Write([]byte("hello")); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
		b := make([]byte, 16)
		n, err := c.Read(b)
		if err == nil && string(b[:n]) != "HELLO" {
			err = fmt.Errorf("answer %q", b[:n])
		}
		return err
	},
	"resolve": func(a []string) error {
		_, err := net.LookupHost(a[0])
		return err
	},
	"socket": func(a []string) error { // domain, type, protocol
		var n [3]int
		for i := range n {
			n[i], _ = strconv.Atoi(a[i])
		}
		_, err := unix.Socket(n[0], n[1], n[2])
		return err
	},
	"read": func(a []string) error {
		f, err := os.Open(a[0])
		if err != nil {
			return err
		}
		_, err = f.Read(make([]byte, 1))
		return err
	},
	"list": func(a []string) error { // what is not the agent's own
		all, err := os.ReadDir(a[0])
		if err != nil {
			return err
		}
		for _, e := range all {
			if filepath.Join(a[0], e.Name()) != sandboxHome {
				return nil
			}
		}
		return errors.New("nothing else there")
	},
	"open to write": func(a []string) error {
		f, err := os.OpenFile(a[0], os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		return f.Close()
	},
	"create": func(a []string) error {
		f, err := os.OpenFile(a[0], os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		return f.Close()
	},
	"signal": func(a []string) error {
		pid, _ := strconv.Atoi(a[0])
		return unix.Kill(pid, 0)
	},
	"find process": func(a []string) error { // by its command line
		all, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			return err
		}
		for _, p := range all {
			if b, err := os.ReadFile(p); err == nil && strings.Contains(string(b), a[0]) && p != fmt.Sprintf("/proc/%d/cmdline", os.Getpid()) && !strings.Contains(string(b), probeArg) {
				return nil
			}
		}
		return fmt.Errorf("none among %d processes", len(all))
	},
	"capabilities": func([]string) error {
		b, err := os.ReadFile("/proc/self/status")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(b)) {
			if name, v, _ := strings.Cut(line, ":"); strings.HasPrefix(name, "Cap") && strings.Trim(v, "0 \t\n") != "" {
				return nil
			}
		}
		return errors.New("none in any set")
	},
	"setuid": func(a []string) error { // a program of somebody else's with the bit
		out, err := exec.Command(a[0], probeArg, "uid").CombinedOutput()
		if got := strings.TrimSpace(string(out)); got == strconv.Itoa(os.Getuid()) {
			return fmt.Errorf("its effective uid is ours, %w", err)
		}
		return nil
	},
	"uid": func([]string) error { return errors.New(strconv.Itoa(os.Geteuid())) },
	"unshare": func(a []string) error {
		flags, _ := strconv.Atoi(a[0])
		return unix.Unshare(flags)
	},
	"clone": func([]string) error { // without CLONE_VM the child is a copy: it ends at once
		pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		if errno != 0 {
			return errno
		}
		if pid == 0 {
			_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}
		return nil
	},
	"mount": func([]string) error {
		return unix.Mount("none", "/tmp", "tmpfs", 0, "")
	},
	"umount proc": func([]string) error { return unix.Unmount("/proc", unix.MNT_DETACH) },
	"pivot":       func([]string) error { return unix.PivotRoot("/tmp", "/tmp") },
	"keyring": func([]string) error {
		_, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_USER_KEYRING, true)
		return err
	},
	"call": func(a []string) error { // a call without arguments that make sense: it exists if it complains of them
		nr, _ := strconv.Atoi(a[0])
		_, _, errno := unix.Syscall6(uintptr(nr), 0, 0, 0, 0, 0, 0)
		if errno == unix.EPERM || errno == unix.ENOSYS {
			return errno
		}
		return nil
	},
	"type": func([]string) error { // into one's own terminal, with a request that has bits above the lower 32
		c := byte('x')
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, 0, unix.TIOCSTI|1<<32, uintptr(unsafe.Pointer(&c))) //nolint:gosec // G103: the kernel's interface
		if errno != 0 {
			return errno
		}
		return nil
	},
	"fork": func(a []string) error { // so many at once
		n, _ := strconv.Atoi(a[0])
		for range n {
			pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
			if errno != 0 {
				return errno
			}
			if pid == 0 {
				for {
					_, _, _ = unix.RawSyscall(unix.SYS_PAUSE, 0, 0, 0)
				}
			}
		}
		return nil
	},
	"allocate": func(a []string) error { // so many MiB, touched
		n, _ := strconv.Atoi(a[0])
		b, err := unix.Mmap(-1, 0, n<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			return err
		}
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		return nil
	},
	"ask": func(a []string) error { // the proxy
		c, err := net.Dial("tcp", sandboxProxy)
		if err != nil {
			return err
		}
		defer c.Close()
		tcp, ok := c.(*net.TCPConn)
		if !ok {
			return errors.New("not TCP")
		}
		_, _ = io.WriteString(c, a[0])
		_ = tcp.CloseWrite()
		n, err := io.Copy(io.Discard, c)
		if err == nil && n != 1<<20 {
			err = errors.New(strconv.FormatInt(n, 10) + " bytes")
		}
		return err
	},
	"run an agent": func(a []string) error { // not in a sandbox: as bottle start does; state directory, workspace, bottle-mcp
		dir, err := bottle.NewDir(a[0])
		if err != nil {
			return err
		}
		box, err := NewSandbox(context.Background(), SandboxConfig{Dir: dir, Workspace: a[1], MCP: a[2]})
		if err != nil {
			return err
		}
		_, err = box.RunAgent(context.Background(), Agent{Argv: []string{"sh", "-c", "touch ready; exec sleep 86397"}, In: os.Stdin, Out: os.Stdout, Err: os.Stderr})
		return err
	},
}
