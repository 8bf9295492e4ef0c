package launch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// A Finding is one thing that was looked at on this machine.
type Finding struct {
	What   string
	State  string // ok, warning or failed
	Detail string
	Fix    string // empty if there is nothing to mend
}

// States of a finding.
const (
	FindingOK      = "ok"
	FindingWarning = "warning"
	FindingFailed  = "failed"
)

const checkTimeout = 10 * time.Second

// bubblewrap is the program and what its version can do.
type bubblewrap struct {
	path         string
	major, minor int
}

// oldestBubblewrap is the first minor of version 0 with --json-status-fd and all else that is needed.
const oldestBubblewrap = 4

func (b bubblewrap) since(minor int) bool { return b.major > 0 || b.minor >= minor }
func (b bubblewrap) disablesUserns() bool { return b.since(8) }
func (b bubblewrap) sizesTmpfs() bool     { return b.since(7) }
func (b bubblewrap) String() string       { return fmt.Sprintf("%s %d.%d", b.path, b.major, b.minor) }

func (b bubblewrap) finding() Finding {
	return Finding{What: "bubblewrap", State: FindingOK, Detail: b.String()}
}

func failed(what string, err error) Finding {
	return Finding{What: what, State: FindingFailed, Detail: err.Error()}
}

var bubblewrapVersion = regexp.MustCompile(`bubblewrap (\d+)\.(\d+)`)

// findBubblewrap looks for bubblewrap in PATH, or takes the one that is named.
func findBubblewrap(ctx context.Context, path string) (bubblewrap, error) {
	if path == "" {
		path = "bwrap"
	}
	path, err := exec.LookPath(path)
	if err != nil {
		return bubblewrap{}, fmt.Errorf("bubblewrap (bwrap) was not found: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").CombinedOutput()
	m := bubblewrapVersion.FindStringSubmatch(string(out))
	if err != nil || m == nil {
		return bubblewrap{}, errors.Join(fmt.Errorf("%s --version says %q, not a version of bubblewrap", path, clipLine(string(out))), err)
	}
	b := bubblewrap{path: path}
	b.major, _ = strconv.Atoi(m[1]) // digits; a number too large is new enough as its maximum
	b.minor, _ = strconv.Atoi(m[2])
	if !b.since(oldestBubblewrap) {
		return bubblewrap{}, fmt.Errorf("%s is version %d.%d; 0.%d or later is needed", path, b.major, b.minor, oldestBubblewrap)
	}
	return b, nil
}

// CheckSandbox looks at what the sandbox of the local backend needs of this machine. A finding that
// failed is why [NewSandbox] would refuse; a warning is what the sandbox would do without.
func CheckSandbox(ctx context.Context) []Finding {
	var out []Finding
	wrap, err := findBubblewrap(ctx, "")
	if err != nil {
		f := failed("bubblewrap", err)
		f.Fix = "install it: apt install bubblewrap (dnf, pacman, apk and zypper call it the same), 0.8 or later"
		return append(out, f)
	}
	f := wrap.finding()
	if !wrap.disablesUserns() {
		f.State, f.Detail = FindingWarning, f.Detail+": it can't switch off user namespaces inside, so the seccomp filter alone does"
		f.Fix = "install bubblewrap 0.8 or later"
	}
	out = append(out, f, tryNamespaces(ctx, wrap))
	if l := newLimiter(cgroupRoot); l.missing != "" {
		out = append(out, Finding{What: "limits", State: FindingWarning, Detail: l.missing, Fix: l.fix})
	} else {
		out = append(out, Finding{What: "limits", State: FindingOK, Detail: "memory and processes are bounded, in a cgroup below " + l.parent})
	}
	return out
}

// tryNamespaces builds the smallest sandbox of the same make: whatever forbids it, it is the machine
// itself that says so.
func tryNamespaces(ctx context.Context, wrap bubblewrap) Finding {
	const what = "namespaces"
	c := &commandLine{}
	defer c.close()
	b, err := sandboxFilter()
	if err != nil {
		f := failed(what, err)
		f.Fix = "use the docker backend on this machine"
		return f
	}
	c.add("--unshare-user", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--unshare-net", "--unshare-pid", "--as-pid-1", "--cap-drop", "ALL")
	if wrap.disablesUserns() {
		c.add("--disable-userns")
	}
	c.add("--die-with-parent", "--new-session", "--seccomp", c.data("seccomp", b))
	c.add("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--remount-ro", "/proc", "--", wrap.path, "--version")
	if c.err != nil {
		return failed(what, c.err)
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, wrap.path, c.args...) //nolint:gosec // G204: the operator's own program
	cmd.ExtraFiles = c.files
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Run(); err != nil {
		f := failed(what, fmt.Errorf("this machine does not let %s build a sandbox: %s (%w)", wrap.path, clipLine(said.String()), err))
		why, fix := whyNoNamespaces(os.Geteuid() == 0, readSysctl)
		if why != "" {
			f.Detail += "; " + why
		}
		f.Fix = fix
		return f
	}
	return Finding{What: what, State: FindingOK, Detail: "user, network, mount, pid, ipc, uts and cgroup"}
}

func readSysctl(name string) (string, bool) {
	b, err := os.ReadFile("/proc/sys/" + name)
	return strings.TrimSpace(string(b)), err == nil
}

// whyNoNamespaces looks for the known reasons, in the order in which the kernel does.
func whyNoNamespaces(root bool, sysctl func(name string) (string, bool)) (why, fix string) {
	is := func(name, value string) bool {
		v, ok := sysctl(name)
		return ok && v == value
	}
	set := func(setting string) string {
		return "as root: echo '" + setting + "' >/etc/sysctl.d/60-bottle.conf && sysctl --system; or use --backend docker"
	}
	switch {
	case is("user/max_user_namespaces", "0"):
		return "user.max_user_namespaces is 0", set("user.max_user_namespaces = 15000")
	case !root && is("kernel/unprivileged_userns_clone", "0"):
		return "kernel.unprivileged_userns_clone is 0", set("kernel.unprivileged_userns_clone = 1")
	case !root && is("kernel/apparmor_restrict_unprivileged_userns", "1"):
		return "kernel.apparmor_restrict_unprivileged_userns is 1 (Ubuntu 23.10 and later), and no AppArmor profile lets bwrap do it",
			"as root: install the package apparmor-profiles and its profile bwrap-userns-restrict (ln -s /usr/share/apparmor/extra-profiles/bwrap-userns-restrict /etc/apparmor.d/ && systemctl reload apparmor); or " + set("kernel.apparmor_restrict_unprivileged_userns = 0")
	}
	return "", "if this is a container, give it what nested sandboxes need (docker: --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined), or use --backend docker"
}

// clipLine is the first line of what a program said, of a length to be shown.
func clipLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	if len(s) > 200 {
		s = s[:200] + "..."
	}
	return s
}
