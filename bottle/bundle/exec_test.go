package bundle_test

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"bottle/bottle"
	"bottle/bottle/bundle"
)

// Each daemon's rights are tried from inside, by a process that the launcher confined, and by
// one that confined itself, on threads from before that and after.
func TestConfinement(t *testing.T) {
	b := newBed(t)
	egress, pipelock, spare, other := listen(t), listen(t), listen(t), listen(t)
	free := freePort(t)
	b.live(bottle.BundleConfig{Egress: egress, Pipelock: []string{pipelock, spare}})
	for _, p := range []string{
		"ca/ca.pem", "ca/ca-key.pem", "records/r.json", "journal/j.json", "kept/k", "audit.jsonl", "audit.head", "manifest.yaml", "metadata.json", "lock",
		"run/bundle/egress/routes.yaml", "run/bundle/pipelock/pipelock.yaml", "run/agent/x", "queue/requests/q.json", "queue/cancels/c.json", "decisions/d.json",
		"status/init.json", "status/egress/spent.json",
	} {
		if err := os.WriteFile(b.dir.Path(p), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	listening, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", b.dir.Path("run/listening.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer listening.Close()
	self := fmt.Sprint(os.Getpid())
	mptcp := fmt.Sprintf("socket %d %d %d", unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
	raw := fmt.Sprintf("socket %d %d %d", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)
	netlink := fmt.Sprintf("socket %d %d %d", unix.AF_NETLINK, unix.SOCK_RAW, 0)
	uds := fmt.Sprintf("socket %d %d %d", unix.AF_UNIX, unix.SOCK_STREAM, 0)
	smc := fmt.Sprintf("socket %d %d %d", unix.AF_SMC, unix.SOCK_STREAM, 0)

	// Nobody's.
	always := []string{
		"read records/r.json", "list records", "read journal/j.json", "list journal", "read kept/k", "read audit.jsonl", "append audit.jsonl", "read audit.head",
		"read manifest.yaml", "read metadata.json", "read lock", "list .", "read etc/routes.yaml", "read etc/pipelock.yaml", "read etc/bundle.json",
		"replace records/new.json", "replace decisions/new.json", "append decisions/d.json", "replace etc/new", "append run/bundle/egress/routes.yaml", "replace run/bundle/pipelock/pipelock.yaml",
		"list run/bundle", "read status/init.json", "replace status/init.json", "replace status/egress.json", "replace status/pipelock.json", "list run/agent",
		"bind-unix run/agent/mcp.sock", "bind-unix run/bundle/egress-keys.sock", "dial-unix run/listening.sock", "bind " + free,
		"read /etc/passwd", "read /root", "list /proc", "read /proc/self/environ", "read /proc/1/environ", "list /tmp", "exec /bin/true",
		"kill " + self, mptcp, raw, smc, netlink, uds,
	}
	all := []string{"read /etc/hosts", "privileges /"}

	for _, tt := range []struct {
		daemon      string
		may, mayNot []string
	}{
		{
			daemon: bottle.DaemonEgress,
			may: []string{
				"read ca/ca.pem", "read ca/ca-key.pem", "read run/bundle/egress/bundle.json", "read run/bundle/egress/routes.yaml", "replace status/egress/spent.json",
				"dial " + pipelock, "dial " + spare,
			},
			mayNot: []string{
				"replace ca/ca.pem", "append ca/ca-key.pem", "read decisions/d.json", "list queue", "read queue/requests/q.json",
				"read run/bundle/pipelock/bundle.json", "read run/bundle/pipelock/pipelock.yaml", "read run/bundle/supervise/bundle.json",
				"dial " + other, "dial " + egress, "udp 127.0.0.1:53", "fastopen " + other,
			},
		},
		{
			daemon: bottle.DaemonPipelock,
			may: []string{
				"read run/bundle/pipelock/bundle.json", "read run/bundle/pipelock/pipelock.yaml", "dial " + other, "dial " + egress, "udp 127.0.0.1:53", "resolve localhost",
			},
			mayNot: []string{
				"read ca/ca.pem", "read ca/ca-key.pem", "read decisions/d.json", "list queue", "read status/egress/spent.json", "replace status/egress/spent.json",
				"read run/bundle/egress/bundle.json", "read run/bundle/egress/routes.yaml", "read run/bundle/supervise/bundle.json",
			},
		},
		{
			daemon: bottle.DaemonSupervise,
			may: []string{
				"read run/bundle/supervise/bundle.json", "read decisions/d.json", "list decisions", "replace queue/requests/new.json", "replace queue/cancels/new.json", "list queue/requests",
				"dial " + egress,
			},
			mayNot: []string{
				"read ca/ca.pem", "read ca/ca-key.pem", "read status/egress/spent.json", "replace status/egress/spent.json",
				"read run/bundle/egress/bundle.json", "read run/bundle/egress/routes.yaml", "read run/bundle/pipelock/bundle.json", "read run/bundle/pipelock/pipelock.yaml",
				"dial " + pipelock, "dial " + spare, "dial " + other, "udp 127.0.0.1:53", "fastopen " + other,
			},
		},
	} {
		t.Run(tt.daemon, func(t *testing.T) {
			may := b.absolute(append(tt.may, all...))
			mayNot := b.absolute(append(tt.mayNot, always...))
			for _, role := range []string{"role:launch", "role:serve"} {
				got := b.probe(role, tt.daemon, append(may, mayNot...))
				for _, p := range may {
					if got[p] != "ok" {
						t.Errorf("%s: may not %s: %s", role, p, got[p])
					}
				}
				for _, p := range mayNot {
					if !denied(got[p]) {
						t.Errorf("%s: %s: %s, want it denied", role, p, got[p])
					}
				}
			}
			// The same without confinement, or the test would pass for a reason of its own.
			for p, r := range b.probe("role:launch", "nobody", tt.mayNot) {
				if denied(r) {
					t.Errorf("%s: %s, without confinement too", p, r)
				}
			}
		})
	}
	t.Run("without confinement", func(t *testing.T) {
		for p, r := range b.probe("role:launch", "nobody", always) {
			if denied(r) && p != raw && p != smc && p != "read /proc/1/environ" && (p != "read /root" || os.Geteuid() == 0) {
				t.Errorf("%s: %s", p, r)
			}
		}
	})
	t.Run("a pipelock that is not ours", func(t *testing.T) {
		// It is not given its socket, so it may make one, on its ports alone.
		own := freePort(t)
		b.live(bottle.BundleConfig{Egress: egress, Pipelock: []string{own}, Binary: "/opt/pipelock"})
		got := b.probe("role:launch", bottle.DaemonPipelock, []string{"bind " + own, "bind " + free})
		if got["bind "+own] != "ok" || !denied(got["bind "+free]) {
			t.Errorf("%v", got)
		}
	})
}

func denied(got string) bool {
	for _, why := range []string{"permission denied", "operation not permitted", "protocol not supported", "operation not supported", "address family not supported"} {
		if strings.Contains(got, why) {
			return true
		}
	}
	return false
}

func TestLaunchErrors(t *testing.T) {
	b := newBed(t)
	b.live(bottle.BundleConfig{Egress: "127.0.0.1:1", Pipelock: []string{"127.0.0.1:2"}})
	for _, tt := range []struct {
		name, daemon, want string
		breakIt            func()
	}{
		{name: "unknown daemon", daemon: "git-gate", want: `no daemon "git-gate"`},
		{name: "no CA", daemon: bottle.DaemonEgress, want: "ca.pem"},
		{name: "no config", daemon: bottle.DaemonEgress, want: "bundle.json", breakIt: func() { _ = os.Remove(b.dir.DaemonConfig(bottle.DaemonEgress)) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.breakIt != nil {
				tt.breakIt()
			}
			out, err := b.launch("role:launch", tt.daemon, nil).CombinedOutput()
			if err == nil || !strings.Contains(string(out), tt.want) {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	for name, c := range map[string]bundle.LaunchConfig{
		"no dir":        {Daemon: "egress", Argv: []string{"/bin/true"}, Warn: func(string) {}},
		"relative path": {Dir: b.dir, Daemon: "egress", Argv: []string{"true"}, Warn: func(string) {}},
		"no command":    {Dir: b.dir, Daemon: "egress", Warn: func(string) {}},
	} {
		if err := bundle.Exec(c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// live publishes bundle.json as init does.
func (b *bed) live(c bottle.BundleConfig) {
	b.t.Helper()
	c.Schema = bottle.Schema
	for _, d := range []string{bottle.DaemonEgress, bottle.DaemonPipelock, bottle.DaemonSupervise} {
		path := b.dir.DaemonConfig(d)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			b.t.Fatal(err)
		}
		if err := bottle.WriteStatus(path, c); err != nil {
			b.t.Fatal(err)
		}
	}
}

func (b *bed) absolute(probes []string) []string {
	for i, p := range probes {
		op, arg, _ := strings.Cut(p, " ")
		switch op {
		case "read", "list", "append", "replace", "bind-unix", "dial-unix",
			"open", "write", "chmod", "chown", "touch", "xattr", "open-chmod", "watch", "link", "symlink", "mkdir", "fifo", "truncate", "rename", "remove":
			if !strings.HasPrefix(arg, "/") && !strings.HasPrefix(arg, "@") {
				probes[i] = op + " " + b.dir.Path(arg)
			}
		}
	}
	return probes
}

func (b *bed) launch(role, daemon string, probes []string) *exec.Cmd {
	b.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		b.t.Fatal(err)
	}
	list, err := json.Marshal(probes)
	if err != nil {
		b.t.Fatal(err)
	}
	cmd := exec.CommandContext(b.t.Context(), exe, role, daemon, b.dir.Path())
	cmd.Env = append(os.Environ(), "BOTTLE_TEST_PROBE="+string(list))
	return cmd
}

func (b *bed) probe(role, daemon string, probes []string) map[string]string {
	b.t.Helper()
	cmd := b.launch(role, daemon, probes)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		b.t.Fatalf("%s %s: %v %s", role, daemon, err, out)
	}
	got := map[string]string{}
	if err := json.Unmarshal(out, &got); err != nil {
		b.t.Fatalf("%v: %s", err, out)
	}
	return got
}

// listen returns the address of a listener that accepts until the test ends.
func listen(t *testing.T) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().String()
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
