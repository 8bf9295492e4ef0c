package bundle_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bottle/bottle"
)

// hostFiles are what lies beside the bundle's own in the state directory. None is a daemon's.
var hostFiles = []string{
	"records/r.json", "journal/j.json", "kept/k", "audit.jsonl", "audit.head", "manifest.yaml", "metadata.json", "lock", "keeper.lock",
}

// onProcess is what one process could do to another of its user.
var onProcess = []string{
	"ptrace-attach", "ptrace-seize", "vm-read", "vm-write", "steal-fd", "compare", "perf",
	"kill", "signal", "tgkill", "pidfd-signal", "queue-signal",
	"limit", "affinity", "scheduler", "nice", "io-nice",
}

// inProc is what /proc shows of it.
var inProc = []string{
	"open /proc/%d/environ", "open /proc/%d/maps", "open /proc/%d/mem", "write /proc/%d/mem", "open /proc/%d/auxv", "open /proc/%d/cmdline", "open /proc/%d/stat",
	"open /proc/%d/root/etc/passwd", "list /proc/%d/cwd", "list /proc/%d/fd", "open /proc/%d/fd/0", "list /proc/%d/task", "write /proc/%d/oom_score_adj",
	"readlink /proc/%d/exe", "readlink /proc/%d/cwd", "readlink /proc/%d/fd/1",
}

// onFile is what could be done to a file that can't be opened.
var onFile = []string{"write", "chmod", "chown", "touch", "xattr", "link", "symlink", "mkdir", "fifo", "truncate", "rename", "remove"}

// onKernel is what all of the machine would suffer from, or all processes of the user.
var onKernel = []string{
	"listen", "keyring", "add-key", "shared-memory", "message-queue", "semaphore", "posix-queue bottle-test", "io-uring", "bpf", "userfaultfd",
	"new-namespaces", "clone-namespaces", "new-session", "new-group", "mount /tmp", "chroot /tmp", "run-memory",
	"open /dev/kmsg", "open /proc/kcore", "write /proc/sys/kernel/core_pattern", "write /proc/sysrq-trigger", "open /dev/mem", "list /dev/shm", "list /sys/kernel",
}

// forRoot are tries that the kernel lets no ordinary user make anyway, so that only root's can show what
// confinement adds. The names of files among them are those of some kernels.
func forRoot(try string) bool {
	op, arg, _ := strings.Cut(try, " ")
	switch op {
	case "ptrace-attach", "ptrace-seize", "vm-read", "vm-write", "steal-fd", "compare": // Yama
		return true
	case "perf", "bpf", "userfaultfd", "new-namespaces", "clone-namespaces", "mount", "chroot", "setuid", "setgid", "io-uring":
		return true
	}
	return strings.HasPrefix(arg, "/proc/") || strings.HasPrefix(arg, "/dev/")
}

// Every daemon, taken over, tries all that one process can do to another on its live siblings,
// on init and on a process of the host's, and to the files of all these.
func TestIsolation(t *testing.T) {
	h := hijack(t)
	// Of what is each daemon's own, the others have nothing.
	own := map[string][]string{
		bottle.DaemonEgress: {
			"open ca/ca.pem", "open ca/ca-key.pem", "open run/bundle/egress/bundle.json", "open run/bundle/egress/hop.json", "open run/bundle/egress/routes.yaml",
			"list status/egress", "replace status/egress/spent.json",
		},
		bottle.DaemonPipelock:  {"open run/bundle/pipelock/bundle.json", "open run/bundle/pipelock/pipelock.yaml"},
		bottle.DaemonSupervise: {"open run/bundle/supervise/bundle.json", "list decisions", "open decisions/d.json", "list queue/requests", "replace queue/requests/new.json", "replace queue/cancels/new.json"},
	}
	var never []string // for none of them
	for _, f := range hostFiles {
		never = append(never, "open "+f)
		for _, op := range onFile {
			never = append(never, op+" "+f)
		}
		if dir := filepath.Dir(f); dir != "." {
			never = append(never, "list "+dir, "chmod "+dir, "replace "+dir+"/forged.json")
		}
	}
	for _, f := range []string{
		"decisions/d.json", "etc/bundle.json", "etc/routes.yaml", "run/bundle/egress/hop.json", "run/bundle/egress/routes.yaml", "run/bundle/pipelock/pipelock.yaml", "run/bundle/supervise/bundle.json",
		"status/init.json", "status/egress.json", "status/pipelock.json", "status/supervise.json", "ca/ca.pem", "ca/ca-key.pem", "run/bundle/init.lock",
	} {
		never = append(never, "write "+f, "chmod "+f, "chown "+f, "touch "+f, "truncate "+f, "replace "+f)
	}
	never = append(
		never, "open-chmod ca/ca.pem", "chmod ca", "chmod decisions", "chmod run/agent/mcp.sock", "chmod run/bundle/egress-keys.sock", "chmod .", "list .", "list run/bundle", "list status", "replace decisions/forged.json",
		"open etc/bundle.json", "open etc/routes.yaml", "open etc/pipelock.yaml", "open status/init.json", "open status/egress.json", "open run/bundle/init.lock",
		"dial-unix run/agent/mcp.sock", "dial-unix run/bundle/egress-keys.sock", "bind-unix run/bundle/new.sock", "bind-unix @bottle-new", "dial-unix @"+h.abstract, "send-pair "+h.datagrams, "send-pair @"+h.abstract+"-dgram",
		"bind 127.0.0.1:0", "bind 0.0.0.0:0",
	)
	for _, pid := range append(h.pids(), h.init, os.Getpid()) {
		for _, op := range onProcess {
			never = append(never, fmt.Sprint(op, " ", pid))
		}
		for _, p := range inProc {
			never = append(never, fmt.Sprintf(p, pid))
		}
	}
	never = append(never, fmt.Sprint("setuid ", os.Getuid()+1), fmt.Sprint("setgid ", os.Getgid()+1))
	never = slices.DeleteFunc(append(never, onKernel...), h.absent)

	for _, name := range h.names() {
		t.Run(name, func(t *testing.T) {
			var mayNot []string
			for other, files := range own {
				if other != name {
					mayNot = append(mayNot, files...)
				}
			}
			if name != bottle.DaemonSupervise { // who waits for decisions by inotify; see [ruleset]
				mayNot = append(mayNot, "watch decisions", "watch records")
			}
			me := h.daemons[name].PID
			for _, try := range never {
				// What it does to itself is its own affair.
				if _, arg, _ := strings.Cut(try, " "); arg != fmt.Sprint(me) && !strings.Contains(try, fmt.Sprintf("/proc/%d/", me)) {
					mayNot = append(mayNot, try)
				}
			}
			mayNot = h.absolute(mayNot)
			got := h.order(name, order{Tries: mayNot})
			for _, try := range mayNot {
				if !refused(got[try]) {
					t.Errorf("%s: %s", try, got[try])
				}
			}
			may := h.absolute(slices.Clone(own[name]))
			got = h.order(name, order{Tries: may})
			for _, try := range may {
				if got[try] != "ok" {
					t.Errorf("may not %s: %s", try, got[try])
				}
			}
		})
	}
	h.untouched()
	t.Run("without confinement", func(t *testing.T) {
		// A process of the same user can do all of that, so it is confinement that keeps them from it.
		var tries []string
		for _, files := range own {
			tries = append(tries, files...)
		}
		tries = h.absolute(append(append(tries, never...), "watch decisions", "watch records"))
		for try, r := range h.probe("role:launch", "nobody", tries) {
			if refused(r) && (os.Geteuid() == 0 || !forRoot(try)) && !h.absent(try) {
				t.Errorf("%s: %s", try, r)
			}
		}
	})
}

// refused says that the kernel said no, and not that there was nothing to do it to.
func refused(got string) bool {
	return denied(got) || strings.Contains(got, "function not implemented")
}

// Hijacked is a bundle whose daemons do as the test says.
type hijacked struct {
	*bed
	init                int
	daemons             map[string]bottle.ChildStatus
	abstract, datagrams string
}

func hijack(t *testing.T) *hijacked {
	b := newBed(t)
	for _, f := range append(slices.Clone(hostFiles), "ca/ca.pem", "ca/ca-key.pem", "decisions/d.json") {
		if err := os.WriteFile(b.dir.Path(f), []byte("s3cret"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{bottle.DaemonEgress, bottle.DaemonPipelock, bottle.DaemonSupervise} {
		b.behave(d, "hijacked")
	}
	b.start()
	st := b.ready()
	h := &hijacked{bed: b, init: st.PID, daemons: st.Daemons, abstract: fmt.Sprint("bottle-test-", os.Getpid()), datagrams: b.dir.Path("run/datagrams")}
	// Sockets of the host's.
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", "@"+h.abstract)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	for _, at := range []string{h.datagrams, "@" + h.abstract + "-dgram"} {
		c, err := (&net.ListenConfig{}).ListenPacket(t.Context(), "unixgram", at)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	return h
}

func (h *hijacked) names() []string {
	return []string{bottle.DaemonEgress, bottle.DaemonPipelock, bottle.DaemonSupervise}
}

func (h *hijacked) pids() (pids []int) {
	for _, d := range h.names() {
		pids = append(pids, h.daemons[d].PID)
	}
	return pids
}

// ask talks to a daemon over the socket that it inherited.
func (h *hijacked) ask(daemon string, o order) (got map[string]string, err error) {
	network, addr := "unix", h.dir.MCPSocket()
	switch daemon {
	case bottle.DaemonEgress:
		var c bottle.BundleConfig
		if err := bottle.ReadJSON(h.dir.DaemonConfig(daemon), 0, &c); err != nil {
			return nil, err
		}
		network, addr = "tcp", c.Egress
	case bottle.DaemonPipelock:
		network, addr = "tcp", h.hop()
	}
	c, err := (&net.Dialer{Timeout: time.Second}).DialContext(h.t.Context(), network, addr)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if err := json.NewEncoder(c).Encode(o); err != nil {
		return nil, err
	}
	err = json.NewDecoder(c).Decode(&got)
	return got, err
}

func (h *hijacked) order(daemon string, o order) map[string]string {
	h.t.Helper()
	got, err := h.ask(daemon, o)
	if err != nil {
		h.t.Fatalf("%s: %v", daemon, err)
	}
	return got
}

// untouched checks that all run on as they were, and that the files are what they were.
func (h *hijacked) untouched() {
	h.t.Helper()
	for name, d := range h.ready().Daemons {
		if d.PID != h.daemons[name].PID || d.Restarts != 0 {
			h.t.Errorf("%s is %+v, was %+v", name, d, h.daemons[name])
		}
	}
	for _, f := range append(slices.Clone(hostFiles), "ca/ca-key.pem", "decisions/d.json") {
		if b, err := os.ReadFile(h.dir.Path(f)); err != nil || string(b) != "s3cret" {
			h.t.Errorf("%s: %q %v", f, b, err)
		}
		if st, err := os.Stat(h.dir.Path(f)); err != nil || st.Mode() != 0o600 {
			h.t.Errorf("%s: %v %v", f, st.Mode(), err)
		}
	}
}

// absent says that this kernel has not got what is tried, or that it forbids it to everybody.
func (h *hijacked) absent(try string) bool {
	switch op, arg, _ := strings.Cut(try, " "); op {
	case "open", "write", "list":
		_, err := os.Stat(arg)
		return err != nil
	case "io-uring", "bpf", "userfaultfd", "perf", "keyring", "add-key", "posix-queue":
		err := tryKernel(op, arg)
		return errors.Is(err, unix.ENOSYS)
	}
	return false
}
