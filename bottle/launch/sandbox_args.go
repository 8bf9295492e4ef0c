package launch

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// A guard is a part of the sandbox that a test can leave out, to see that it is what stops
// an escape.
type guard int

const (
	guardNetwork  guard = iota // a network of its own
	guardPIDs                  // processes of its own
	guardCaps                  // no capabilities
	guardUserns                // no user namespace below its own
	guardFilter                // the seccomp filter
	guardRoot                  // a root of its own
	guardProc                  // /proc read-only
	guardReadOnly              // the sockets' directory read-only
	guardLimits                // memory and processes bounded
)

// systemDirs hold programs and libraries. Where a distribution has merged them into /usr they are links.
var systemDirs = []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"}

// systemFiles are what programs look for in /etc. Whoever adds to it: the agent of an operator who is root
// reads all of it, so nothing with a secret, of a service or of a person (npmrc, gitconfig, ssh, ssl/private).
var systemFiles = []string{
	"ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "os-release", "lsb-release", "debian_version", "redhat-release",
	"localtime", "timezone", "locale.alias", "locale.conf", "terminfo", "inputrc", "bash.bashrc", "bashrc", "fonts", "magic", "mime.types",
	"services", "protocols", "gai.conf", "host.conf", "crypto-policies",
	"ssl/certs", "ssl/cert.pem", "ssl/openssl.cnf", "pki/ca-trust/extracted", "pki/tls/certs", "pki/tls/cert.pem", "pki/tls/openssl.cnf", "pki/java",
	"java*-openjdk", "python3*", "perl",
}

// maskedProc tell of the machine, and some to root alone, which is who the agent of an operator who
// is root is to the kernel.
var maskedProc = []string{
	"kcore", "keys", "key-users", "timer_list", "sched_debug", "latency_stats", "vmallocinfo", "slabinfo", "pagetypeinfo",
	"kpagecount", "kpageflags", "kpagecgroup", "acpi", "scsi", "asound", "fs",
}

const (
	sandboxGroup = "agent:x:%d:\nnogroup:x:65534:\n"
	sandboxUsers = "agent:x:%d:%d:agent:" + sandboxHome + ":%s\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
	sandboxNames = "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\nprotocols: files\n"
	sandboxHosts = "127.0.0.1 localhost %[1]s\n::1 localhost\n"
	// Nobody answers there: names are resolved behind egress.
	sandboxDNS = "nameserver 127.0.0.1\noptions attempts:1 timeout:1\n"
)

// tmpSize bounds each of the sandbox's own file systems, which live in memory.
const tmpSize = 1 << 30

// A commandLine is bubblewrap's, with the descriptors that it refers to. What is found wrong
// on the way is kept in err.
type commandLine struct {
	args  []string
	files []*os.File // from descriptor 3 on
	err   error
}

func (c *commandLine) add(args ...string) { c.args = append(c.args, args...) }

func (c *commandLine) close() {
	for _, f := range c.files {
		_ = f.Close()
	}
}

// pass gives f to bubblewrap and returns its number there.
func (c *commandLine) pass(f *os.File) string {
	c.files = append(c.files, f)
	return strconv.Itoa(2 + len(c.files))
}

// data is a descriptor from which b is read.
func (c *commandLine) data(name string, b []byte) string {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		c.err = fmt.Errorf("memory for %s: %w", name, err)
		return ""
	}
	f := os.NewFile(uintptr(fd), name)
	n := c.pass(f)
	if _, err := f.Write(b); err != nil {
		c.err = fmt.Errorf("memory for %s: %w", name, err)
	}
	if _, err := f.Seek(0, 0); err != nil {
		c.err = fmt.Errorf("memory for %s: %w", name, err)
	}
	return n
}

func (c *commandLine) file(path, text string) {
	c.add("--ro-bind-data", c.data(filepath.Base(path), []byte(text)), path)
}

// commandLine is what builds the sandbox; the program to run in it comes behind.
func (s *Sandbox) commandLine() *commandLine {
	c := &commandLine{}
	has := func(g guard) bool { return !slices.Contains(s.without, g) }
	uid, gid := sandboxIDs()
	if !has(guardCaps) { // or an exec would lose them
		uid, gid = 0, 0
	}
	c.add("--unshare-user", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--hostname", s.name)
	c.add("--uid", strconv.Itoa(uid), "--gid", strconv.Itoa(gid))
	if has(guardNetwork) {
		c.add("--unshare-net")
	}
	if has(guardPIDs) {
		c.add("--unshare-pid", "--as-pid-1")
	}
	if has(guardCaps) {
		c.add("--cap-drop", "ALL")
	} else {
		c.add("--cap-add", "ALL")
	}
	if has(guardUserns) && has(guardCaps) && s.wrap.disablesUserns() {
		c.add("--disable-userns")
	}
	// In a session of its own bubblewrap itself gets no Ctrl-C, which would end all.
	c.add("--die-with-parent", "--new-session")
	if has(guardFilter) {
		b, err := sandboxFilter()
		if err != nil {
			c.err = err
		}
		c.add("--seccomp", c.data("seccomp", b))
	}
	s.root(c, uid, gid)
	return c
}

// sandboxIDs are the operator's own, except that root is an ordinary user in the sandbox: some programs
// refuse to work as root. To the kernel it is root without any capability.
func sandboxIDs() (uid, gid int) {
	if uid, gid = os.Geteuid(), os.Getegid(); uid == 0 {
		return 1000, 1000
	}
	return uid, gid
}

// root builds what the sandbox sees of the file system.
func (s *Sandbox) root(c *commandLine, uid, gid int) {
	has := func(g guard) bool { return !slices.Contains(s.without, g) }
	if !has(guardRoot) {
		c.add("--bind", "/", "/", "--dev", "/dev", "--proc", "/proc")
		return
	}
	for _, p := range systemDirs {
		if to, err := os.Readlink(p); err == nil {
			c.add("--symlink", to, p)
		} else {
			c.add("--ro-bind-try", p, p)
		}
	}
	for _, name := range systemFiles {
		found, _ := filepath.Glob(filepath.Join("/etc", name)) // its only error is a bad pattern
		for _, p := range found {
			c.add("--ro-bind-try", p, p)
		}
	}
	c.file("/etc/passwd", fmt.Sprintf(sandboxUsers, uid, gid, "/bin/sh"))
	c.file("/etc/group", fmt.Sprintf(sandboxGroup, gid))
	c.file("/etc/nsswitch.conf", sandboxNames)
	c.file("/etc/hosts", fmt.Sprintf(sandboxHosts, s.name))
	c.file("/etc/hostname", s.name+"\n")
	c.file("/etc/resolv.conf", sandboxDNS)
	c.add("--ro-bind", s.dir.CACert(), bottleDir+"/ca.pem", "--ro-bind", caBundle(s.dir), bottleDir+"/ca-bundle.pem",
		"--ro-bind", s.mcp, sandboxBin+"/bottle-mcp")
	c.file(mcpConfigInside, mcpConfig)

	c.add("--dev", "/dev")
	if has(guardPIDs) {
		c.add("--proc", "/proc")
	} else {
		c.add("--ro-bind", "/proc", "/proc")
	}
	if has(guardProc) && has(guardPIDs) {
		for _, name := range maskedProc {
			p := "/proc/" + name
			switch st, err := os.Stat(p); {
			case err != nil: // this kernel has none
			case st.IsDir():
				c.add("--tmpfs", p, "--remount-ro", p)
			default:
				c.add("--ro-bind", "/dev/null", p)
			}
		}
		// To the kernel the agent of an operator who is root is the owner of /proc/sys/kernel/core_pattern, which
		// names a program for it to run as root outside, and of sysrq-trigger.
		c.add("--remount-ro", "/proc")
	}
	for _, p := range []string{"/tmp", "/run"} {
		if s.wrap.sizesTmpfs() {
			c.add("--size", strconv.Itoa(tmpSize))
		}
		c.add("--tmpfs", p)
	}
	c.add("--dir", "/var", "--symlink", "../tmp", "/var/tmp", "--symlink", "../run", "/var/run")
	for _, p := range s.readOnly {
		c.add("--ro-bind", p, p)
	}
	// A host's socket file could be reached even through a read-only mount; these are the two that may.
	bind := "--ro-bind"
	if !has(guardReadOnly) {
		bind = "--bind"
	}
	c.add(bind, s.dir.AgentSockets(), socketsDir)
	c.add("--bind", s.home(), sandboxHome, "--bind", s.workspace, s.workspace)
	c.add("--remount-ro", "/")
}
