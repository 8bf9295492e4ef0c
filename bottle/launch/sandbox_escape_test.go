package launch

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// An escape is one thing that an agent must not be able to do.
type escape struct {
	name string
	try  []string // the probe and its arguments
	want string   // in the error, to see that it failed for the reason that is meant; empty: any
	// without are the guards that stop it: with all of them left out it must work, or the test
	// would not see an escape. None: it can't be shown on any machine.
	without []guard
	root    bool // it works for root's agent alone
}

// all runs every escape in one sandbox, and again in sandboxes that lack its guards.
func (d *den) all(escapes []escape) {
	d.t.Helper()
	for _, e := range escapes {
		d.t.Run(e.name, func(t *testing.T) {
			inner := *d
			inner.t = t
			if err := inner.try(e.try[0], e.try[1:]...); err == nil {
				t.Errorf("it worked")
			} else if !strings.Contains(err.Error(), e.want) {
				t.Errorf("%v; want %q", err, e.want)
			}
			if e.without == nil || e.root && os.Geteuid() != 0 {
				return
			}
			box := *d.box
			box.without = e.without
			inner.box = &box
			if err := inner.try(e.try[0], e.try[1:]...); err != nil {
				t.Errorf("without its guard the test must see an escape, but: %v", err)
			}
		})
	}
}

func TestSandboxNetwork(t *testing.T) {
	d := newDen(t)
	listen := func(network, addr string) string {
		t.Helper()
		l, err := (&net.ListenConfig{}).Listen(t.Context(), network, addr)
		if err != nil {
			t.Fatal(err)
		}
		echo(t, l)
		return l.Addr().String()
	}
	udp, err := (&net.ListenConfig{}).ListenPacket(t.Context(), "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = udp.Close() })
	go func() {
		b := make([]byte, 16)
		for {
			n, from, err := udp.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = udp.WriteTo([]byte(strings.ToUpper(string(b[:n]))), from)
		}
	}()
	_, everywhere, _ := net.SplitHostPort(listen("tcp4", "0.0.0.0:0"))
	net1 := []guard{guardNetwork}
	escapes := []escape{
		{name: "TCP to the host's loopback", try: []string{"connect", "tcp", listen("tcp4", "127.0.0.1:0")}, want: "refused", without: net1},
		{name: "TCP to the host's loopback, IPv6", try: []string{"connect", "tcp", listen("tcp6", "[::1]:0")}, want: "refused", without: net1},
		{name: "TCP to a listener on 0.0.0.0, by 0.0.0.0", try: []string{"connect", "tcp", "0.0.0.0:" + everywhere}, want: "refused", without: net1},
		{name: "UDP to the host's loopback", try: []string{"connect", "udp", udp.LocalAddr().String()}, want: "refused", without: net1},
		{name: "the metadata address", try: []string{"connect", "tcp", "169.254.169.254:80"}, want: "unreachable"},
		{name: "TCP outside", try: []string{"connect", "tcp", "192.0.2.1:80"}, want: "unreachable"},
		{name: "TCP outside, IPv6", try: []string{"connect", "tcp", "[2001:db8::1]:80"}, want: "unreachable"},
		{name: "UDP outside", try: []string{"connect", "udp", "192.0.2.1:53"}, want: "unreachable"},
		{name: "multicast", try: []string{"connect", "udp", "224.0.0.251:5353"}, want: "unreachable"},
		{name: "DNS", try: []string{"resolve", "example.com"}},
		{name: "an abstract unix socket", try: []string{"connect", "unix", listen("unix", "@bottle-test-"+strconv.Itoa(os.Getpid()))}, want: "refused", without: net1},
		{name: "raw IP", try: sock(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP), want: "not permitted", without: []guard{guardCaps}},
		{name: "raw IPv6", try: sock(unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6), want: "not permitted", without: []guard{guardCaps}},
		{name: "ICMP without a raw socket", try: sock(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP), want: "denied"},
		{name: "packets", try: sock(unix.AF_PACKET, unix.SOCK_RAW, 0), want: "not supported", without: []guard{guardFilter, guardCaps}},
		{name: "netfilter's netlink", try: sock(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER), want: "protocol not supported"},
		{name: "the hypervisor, by vsock", try: sock(unix.AF_VSOCK, unix.SOCK_STREAM, 0), want: "not supported"},
		{name: "the kernel's cryptography", try: sock(unix.AF_ALG, unix.SOCK_SEQPACKET, 0), want: "not supported"},
	}
	if s, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0); err == nil {
		_ = unix.Close(s)
		escapes[16].without = []guard{guardFilter}
	}
	for _, ip := range hostAddresses(t) {
		escapes = append(escapes, escape{name: "the host by " + ip, try: []string{"connect", "tcp", net.JoinHostPort(ip, everywhere)}, want: "unreachable", without: net1})
	}
	d.all(escapes)
}

// hostAddresses are the IPv4 addresses of this machine, without those of the networks that container
// engines make, which come and go.
func hostAddresses(t *testing.T) (ips []string) {
	t.Helper()
	ifs, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range ifs {
		if strings.HasPrefix(i.Name, "br-") || strings.HasPrefix(i.Name, "docker") || strings.HasPrefix(i.Name, "veth") {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && !n.IP.IsLoopback() {
				ips = append(ips, n.IP.String())
			}
		}
	}
	return ips
}

func sock(domain, kind, protocol int) []string {
	return []string{"socket", strconv.Itoa(domain), strconv.Itoa(kind), strconv.Itoa(protocol)}
}

func TestSandboxFiles(t *testing.T) {
	d := newDen(t)
	base := filepath.Dir(d.work)
	put := func(path string) string {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("secret"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	listen := func(path string) string {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", path)
		if err != nil {
			t.Fatal(err)
		}
		echo(t, l)
		return path
	}
	const gone = "no such file"
	root := []guard{guardRoot}
	escapes := []escape{
		{name: "a socket of the host's", try: []string{"connect", "unix", listen(filepath.Join(base, "host.sock"))}, want: gone, without: root},
		{name: "a socket of the bundle's", try: []string{"connect", "unix", listen(d.dir.KeySocket())}, want: gone, without: root},
		{name: "the engine's socket", try: []string{"connect", "unix", "/run/docker.sock"}, want: gone},
		{name: "the engine's socket, by its old name", try: []string{"connect", "unix", "/var/run/docker.sock"}, want: gone},
		{name: "the system's message bus", try: []string{"connect", "unix", "/run/dbus/system_bus_socket"}, want: gone},
		{name: "the passwords", try: []string{"read", "/etc/shadow"}, want: gone, without: root, root: true},
		{name: "the keys of the host", try: []string{"read", "/etc/ssh"}, want: gone},
		{name: "devices", try: []string{"read", "/dev/vda"}, want: gone},
		{name: "a file beside the workspace", try: []string{"read", put(filepath.Join(base, "note"))}, want: gone, without: root},
		{name: "bundle.json", try: []string{"read", d.dir.BundleConfig()}, want: gone, without: root},
		{name: "the CA's key", try: []string{"read", d.dir.CAKey()}, want: gone, without: root},
		{name: "the audit trail", try: []string{"read", put(d.dir.Audit())}, want: gone, without: root},
		{name: "another bottle", try: []string{"read", put(filepath.Join(filepath.Dir(d.dir.Path()), "other", "metadata.json"))}, want: gone, without: root},
		{name: "write a decision", try: []string{"create", filepath.Join(d.dir.Decisions(), "x.json")}, want: gone, without: root},
		{name: "write a config", try: []string{"open to write", d.dir.Routes()}, want: gone, without: root},
		{name: "write a status", try: []string{"create", filepath.Join(d.dir.Path("status"), "x.json")}, want: gone, without: root},
		{name: "a file beside the sockets", try: []string{"create", "/run/bottle/x"}, want: "read-only", without: []guard{guardReadOnly}},
		{name: "a file at the root", try: []string{"create", "/x"}, want: "read-only"},
		{name: "a program of the system's", try: []string{"create", "/usr/bin/x"}, want: "read-only"},
		{name: "the CA that is trusted", try: []string{"open to write", "/etc/bottle/ca.pem"}, want: "read-only"},
		{name: "the bridge", try: []string{"open to write", "/etc/bottle/bin/bottle-mcp"}},
		{name: "what the kernel runs on a crash", try: []string{"open to write", "/proc/sys/kernel/core_pattern"}, without: []guard{guardProc}, root: true},
	}
	for _, p := range []string{os.Getenv("HOME"), "/home"} {
		if within(d.work, p) {
			continue
		}
		e := escape{name: "the home directories: " + p, try: []string{"list", p}}
		if seen, err := os.ReadDir(p); err == nil && len(seen) > 0 {
			e.without = root
		}
		escapes = append(escapes, e)
	}
	if runtimeDir := os.Getenv("XDG_RUNTIME_DIR"); runtimeDir != "" {
		path := listen(filepath.Join(runtimeDir, fmt.Sprintf("bottle-test-%d.sock", os.Getpid())))
		t.Cleanup(func() { _ = os.Remove(path) })
		escapes = append(escapes, escape{name: "a socket of the session's", try: []string{"connect", "unix", path}, want: gone, without: root})
	}
	d.all(escapes)
}

func TestSandboxProcesses(t *testing.T) {
	d := newDen(t)
	outside := exec.CommandContext(t.Context(), "sleep", "86399")
	if err := outside.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = outside.Process.Kill(); _ = outside.Wait() })
	pids := []guard{guardPIDs}
	filter := []guard{guardFilter}
	escapes := []escape{
		{name: "a signal to a process outside", try: []string{"signal", strconv.Itoa(outside.Process.Pid)}, want: "no such process", without: pids},
		{name: "a look at a process outside", try: []string{"find process", "86399"}, want: "none among", without: pids},
		{name: "capabilities", try: []string{"capabilities"}, want: "none", without: []guard{guardCaps}},
		{name: "a user namespace", try: []string{"unshare", strconv.Itoa(unix.CLONE_NEWUSER)}, want: "not permitted"}, // this program has too many threads for it anyway
		{name: "a user namespace, by clone", try: []string{"clone"}, want: "not permitted", without: []guard{guardFilter, guardUserns}},
		{name: "a mount namespace", try: []string{"unshare", strconv.Itoa(unix.CLONE_NEWNS)}, want: "not permitted", without: []guard{guardFilter, guardCaps}},
		{name: "a mount", try: []string{"mount"}, want: "not permitted", without: []guard{guardFilter, guardCaps}},
		{name: "an end of a mount", try: []string{"umount proc"}, want: "not permitted"},
		{name: "another root", try: []string{"pivot"}, want: "not permitted"},
		{name: "the user's keyring", try: []string{"keyring"}, want: "not permitted", without: filter},
		{name: "clone3, whose flags no filter sees", try: []string{"call", strconv.Itoa(unix.SYS_CLONE3)}, want: "not implemented", without: filter},
		{name: "io_uring, whose operations no filter sees", try: []string{"call", strconv.Itoa(unix.SYS_IO_URING_SETUP)}, want: "not implemented"},
		{name: "bpf", try: []string{"call", strconv.Itoa(unix.SYS_BPF)}, want: "not permitted"},
		{name: "performance counters", try: []string{"call", strconv.Itoa(unix.SYS_PERF_EVENT_OPEN)}, want: "not permitted", without: filter},
		{name: "another process' namespaces", try: []string{"call", strconv.Itoa(unix.SYS_SETNS)}, want: "not permitted", without: filter},
	}
	if os.Geteuid() == 0 { // who alone can plant one
		b, err := os.ReadFile(filepath.Join(d.work, "probe"))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(d.work, "setuid")
		if err := errors.Join(os.WriteFile(path, b, 0o700), os.Chown(path, 65534, 65534), os.Chmod(path, 0o755|os.ModeSetuid)); err != nil {
			t.Fatal(err)
		}
		escapes = append(escapes, escape{name: "a setuid program", try: []string{"setuid", path}, want: "is ours, exit status 41"})
	}
	d.all(escapes)

	t.Run("a user namespace, without the filter", func(t *testing.T) {
		box := *d.box
		box.without = filter
		inner := &den{t, d.dir, &box, d.work}
		if err := inner.try("clone"); d.box.wrap.disablesUserns() && err == nil {
			t.Error("it worked: bubblewrap alone does not stop it")
		}
	})
}

// What bounds an agent's processes and memory, or says that nothing does.
func TestSandboxLimits(t *testing.T) {
	d := newDen(t)
	d.box.processes, d.box.memory = 100, 256<<20
	l := d.box.limiter
	if bounded := l.parent != ""; bounded == (d.box.Unbounded() != "") {
		t.Errorf("cgroup %q, but it is said: %q", l.parent, d.box.Unbounded())
	}
	t.Logf("cgroup %q, by user namespace %t, not bounded: %q", l.parent, l.processes, d.box.Unbounded())
	if l.parent != "" || l.processes {
		d.all([]escape{{name: "a fork bomb", try: []string{"fork", "200"}, want: "temporarily unavailable", without: []guard{guardLimits}}})
	}
	if l.parent != "" {
		if code, out := d.run(d.work+"/probe", probeArg, "allocate", "1024"); code != 128+int(unix.SIGKILL) {
			t.Errorf("1 GiB of 256 MiB: %d %s", code, out)
		}
	}
}

// A root's sandboxes and those of an ordinary user rest on different things. So as root all of this
// is run once more, by somebody who is nobody else.
func TestAsOrdinaryUser(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Log("not root: the other tests are it")
		return
	}
	const uid = 54321
	dir, err := os.MkdirTemp("", "bu") //nolint:usetesting // another user's, so not below one of ours
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	copyTo := func(name, from string) string {
		t.Helper()
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, b, 0o700), os.Chown(path, uid, uid)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, mcp := copyTo("launch.test", exe), copyTo("bottle-mcp", mcpProgram(t))
	if err := os.Chown(dir, uid, uid); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "-test.run", "^TestSandbox", "-test.v")
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir, "XDG_RUNTIME_DIR=" + dir, envMCP + "=" + mcp}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "bounded") {
			t.Log(strings.TrimSpace(line))
		}
	}
}
