package launch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	cgroupRoot = "/sys/fs/cgroup"
	// Defaults of SandboxConfig.
	defaultMemory    = 8 << 30
	defaultProcesses = 4096
	// cgroupGone is how long what is left in a cgroup that was killed may take to go.
	cgroupGone = 2 * time.Second
)

// A limiter makes the cgroups in which agents run, where somebody delegated one to us (cgroups(7), "Delegation").
type limiter struct {
	parent string // the cgroup below which they are made; empty if there is none
	// processes: there is none, but the kernel counts a user namespace's processes by
	// itself (RLIMIT_NPROC since Linux 5.14), for all users but root.
	processes    bool
	missing, fix string // what is not bounded, and what would mend it
}

// newLimiter looks for the nearest cgroup above ours in which we may make others and whose children
// have the controllers. Our own can't be it: it has a process in it, us.
func newLimiter(root string) limiter {
	l := limiter{processes: os.Geteuid() != 0 && kernelSince(5, 14)}
	own, err := ownCgroup(root)
	if err == nil {
		if l.parent = nearestDelegated(root, own); l.parent != "" {
			return limiter{parent: l.parent}
		}
		err = errors.New("no cgroup was delegated to this user")
	}
	bounded := "memory and processes are"
	if l.processes {
		bounded = "memory is"
	}
	l.missing = fmt.Sprintf("%s not bounded for the agent: %v", bounded, err)
	l.fix = "run bottle in a session of systemd on cgroup v2, as systemd-run --user --scope -p Delegate=yes bottle start ... does; or use --backend docker"
	return l
}

// ownCgroup is this process' cgroup of version 2, as a path below root.
func ownCgroup(root string) (string, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
		return "", errors.New("this machine has no cgroup v2 at " + root)
	}
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if p, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return p, nil
		}
	}
	return "", errors.New("this process is in no cgroup of version 2")
}

// nearestDelegated is a cgroup above own, which is below root, whose children can be bounded; or empty.
func nearestDelegated(root, own string) string {
	for dir := filepath.Dir(filepath.Join(root, own)); within(dir, root); dir = filepath.Dir(dir) {
		if delegated(dir) {
			return dir
		}
	}
	return ""
}

func delegated(dir string) bool {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil {
		return false
	}
	have := map[string]bool{}
	for _, c := range strings.Fields(string(b)) {
		have[c] = true
	}
	return have["memory"] && have["pids"] && unix.Access(dir, unix.W_OK) == nil && unix.Access(filepath.Join(dir, "cgroup.procs"), unix.W_OK) == nil
}

func kernelSince(major, minor int) bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	var a, b int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &a, &b); err != nil {
		return false
	}
	return a > major || a == major && b >= minor
}

// A group is a cgroup for one agent.
type group struct {
	path string
	dir  *os.File
}

// newGroup makes one with those bounds, in bytes and processes.
func (l limiter) newGroup(name string, memory int64, processes int) (*group, error) {
	path, err := os.MkdirTemp(l.parent, "bottle-"+name+"-")
	if err != nil {
		return nil, fmt.Errorf("make a cgroup for the agent: %w", err)
	}
	g := &group{path: path}
	for file, value := range map[string]string{
		"memory.max": strconv.FormatInt(memory, 10), "memory.swap.max": "0", "pids.max": strconv.Itoa(processes),
	} {
		err := os.WriteFile(filepath.Join(path, file), []byte(value), 0o600)
		if errors.Is(err, os.ErrNotExist) && file != "memory.max" && file != "pids.max" {
			continue // a kernel without swap accounting
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("bound the agent's cgroup: %w", err), os.Remove(path))
		}
	}
	if g.dir, err = os.Open(path); err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	return g, nil
}

// remove ends what is left in the group, and the group.
func (g *group) remove() error {
	_ = g.dir.Close()
	_ = os.WriteFile(filepath.Join(g.path, "cgroup.kill"), []byte("1"), 0o600) // Linux 5.14; before, what is left ended with its PID 1
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(cgroupGone); ; <-tick.C {
		err := os.Remove(g.path)
		if err == nil || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			return fmt.Errorf("remove the agent's cgroup: %w", err)
		}
	}
}
