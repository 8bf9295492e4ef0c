package launch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"bottle/bottle"
)

// endGrace is how long an agent has to end on TERM.
const endGrace = 5 * time.Second

// SandboxConfig configures [NewSandbox].
type SandboxConfig struct {
	Dir       *bottle.Dir // required: of a bottle that was prepared, see [Prepare]
	Workspace string      // required: the one directory of the host's that the agent may write, absolute
	MCP       string      // required: path of bottle-mcp
	// ReadOnly are further directories that the agent sees, at their own paths; for programs that
	// are not in /usr. Absolute.
	ReadOnly []string
	// Memory bounds all of an agent's processes together, in bytes; 0 means 8 GiB. Processes bounds
	// their number, threads included; 0 means 4096. Whether they hold is told by [Sandbox.Unbounded].
	Memory    int64
	Processes int
	// Bubblewrap is bubblewrap's path; empty: bwrap in PATH.
	Bubblewrap string
}

// A Sandbox confines agents on the local backend, by bubblewrap.
//
// # Model
//
// Each agent gets a sandbox of its own over the same workspace and the same home directory: namespaces of each kind, a network
// that is loopback alone, a root built from the system's own directories (read-only), private /tmp, /run, /dev
// and /proc, and run/agent with the two sockets by which all goes out. bottle-mcp sandbox is its PID 1 and
// carries proxy connections to egress' socket. The home directory is home/ in the state directory: what
// an agent keeps there lasts from start to start, and no program of the operator's takes its settings from it, as it
// would of a directory in the workspace.
//
// # Trust
//
// What runs inside is hostile, and to the kernel it is the operator's own user, so all rests on what
// it can't name: no file outside, no process outside, no socket but the two. It has no capability
// in any namespace, gains none by setuid programs, and makes no namespace of its own. An operator who
// is root should know that its agent owns what root owns among the few things that it sees; it is
// better to run bottle as somebody else. The workspace and what lies in it is the agent's, sockets included.
// Without a delegated cgroup memory is not bounded, and for root processes are not.
type Sandbox struct {
	dir       *bottle.Dir
	name      string
	workspace string
	readOnly  []string
	mcp       string
	secret    string
	wrap      bubblewrap
	limiter   limiter
	memory    int64
	processes int
	without   []guard // none, but for tests
}

// NewSandbox checks the machine and the workspace. The error says what does not permit a sandbox, and
// what would.
func NewSandbox(ctx context.Context, c SandboxConfig) (*Sandbox, error) {
	if c.Dir == nil || c.Workspace == "" || c.MCP == "" {
		return nil, errors.New("launch: Dir, Workspace and MCP are required")
	}
	s := &Sandbox{dir: c.Dir, mcp: c.MCP, memory: c.Memory, processes: c.Processes, limiter: newLimiter(cgroupRoot)}
	if s.memory == 0 {
		s.memory = defaultMemory
	}
	if s.processes == 0 {
		s.processes = defaultProcesses
	}
	var err error
	if s.wrap, err = findBubblewrap(ctx, c.Bubblewrap); err != nil {
		return nil, fmt.Errorf("%w; install bubblewrap 0.8 or later", err)
	}
	if f := tryNamespaces(ctx, s.wrap); f.State == FindingFailed {
		return nil, fmt.Errorf("the agent can't be confined: %s; fix: %s", f.Detail, f.Fix)
	}
	if s.workspace, err = checkWorkspace(c.Workspace, c.Dir); err != nil {
		return nil, err
	}
	for _, p := range c.ReadOnly {
		shown, err := checkShown("read-only directory", p, c.Dir)
		if err != nil {
			return nil, err
		}
		s.readOnly = append(s.readOnly, shown)
	}
	if s.mcp, err = filepath.EvalSymlinks(c.MCP); err != nil {
		return nil, fmt.Errorf("bottle-mcp: %w", err)
	}
	var cfg bottle.BundleConfig
	if err := bottle.ReadJSON(c.Dir.BundleConfig(), 0, &cfg); err != nil {
		return nil, err
	}
	s.name, s.secret = cfg.Name, cfg.ProxySecret
	if err := os.MkdirAll(s.home(), 0o700); err != nil {
		return nil, fmt.Errorf("the agent's home: %w", err)
	}
	// A path that the agent could have made a link.
	if st, err := os.Lstat(s.home()); err != nil || !st.IsDir() {
		return nil, errors.Join(fmt.Errorf("the agent's home %s is not a directory; remove it: %w", s.home(), bottle.ErrCorrupt), err)
	}
	return s, nil
}

func (s *Sandbox) home() string { return s.dir.Path("home") }

// Unbounded says what of memory and processes is not bounded, and why; empty if both are.
func (s *Sandbox) Unbounded() string { return s.limiter.missing }

// RunAgent runs an agent in a sandbox of its own and returns its exit code, which is 128+n if signal n
// killed it, and 126 or 127 if it could not be started. When ctx ends it gets TERM, and KILL 5 s later. All
// that it started ends with it, and with this process.
func (s *Sandbox) RunAgent(ctx context.Context, a Agent) (code int, err error) {
	if len(a.Argv) == 0 || a.In == nil || a.Out == nil || a.Err == nil {
		return 0, errors.New("run the agent: Argv, In, Out and Err are required")
	}
	dir, err := s.below(a.Dir)
	if err != nil {
		return 0, err
	}
	c := s.commandLine()
	defer c.close()
	said, saying, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer said.Close()
	c.add("--json-status-fd", c.pass(saying), "--chdir", dir, "--", s.first(), "sandbox", "--forward", sandboxProxy+"="+socketsDir+"/"+filepath.Base(s.dir.ProxySocket()))
	if s.limiter.processes && !slices.Contains(s.without, guardLimits) {
		c.add("--processes", strconv.Itoa(s.processes))
	}
	if a.TTY {
		c.add("--terminal")
	}
	c.add("--")
	c.add(a.Argv...)
	if c.err != nil {
		return 0, c.err
	}
	cmd := exec.Command(s.wrap.path, c.args...) //nolint:gosec,noctx // G204: what the operator runs; ctx is for TERM
	cmd.Env = append(s.Env(), a.Env...)
	cmd.Dir = "/"
	cmd.ExtraFiles = c.files
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.In, a.Out, a.Err
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a Ctrl-C at the operator's terminal is for us, who send TERM
	if s.limiter.parent != "" && !slices.Contains(s.without, guardLimits) {
		g, err := s.limiter.newGroup(s.name, s.memory, s.processes)
		if err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, g.remove()) }()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(g.dir.Fd())
	}
	relay := (*relayTTY)(nil)
	if a.TTY {
		var slave *os.File
		if relay, slave, err = newRelayTTY(a.In, a.Out); err != nil {
			return 0, err
		}
		defer slave.Close()
		defer func() { err = errors.Join(err, relay.stop()) }()
		cmd.Stdin, cmd.Stdout = slave, slave
		if term.IsTerminal(int(a.Err.Fd())) {
			cmd.Stderr = slave
		}
		c.files = append(c.files, slave) // closed with them, once the agent has it
	}
	return wait(ctx, cmd, c, said, relay)
}

// first is the path of the sandbox's first process in it.
func (s *Sandbox) first() string {
	if slices.Contains(s.without, guardRoot) {
		return s.mcp
	}
	return sandboxBin + "/bottle-mcp"
}

// below is the agent's working directory as it is in the sandbox.
func (s *Sandbox) below(dir string) (string, error) {
	if dir == "" {
		return s.workspace, nil
	}
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(s.workspace, dir)
	}
	resolved, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "", fmt.Errorf("the agent's directory: %w", err)
	}
	if !within(resolved, s.workspace) {
		return "", fmt.Errorf("the agent's directory %s does not lie in the workspace %s: %w", resolved, s.workspace, bottle.ErrInvalid)
	}
	return resolved, nil
}

// wait starts bubblewrap and returns once it has ended.
func wait(ctx context.Context, cmd *exec.Cmd, c *commandLine, said *os.File, relay *relayTTY) (int, error) {
	// What somebody leaked to this process is not for the agent.
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return 0, fmt.Errorf("run the agent: descriptors: %w", err)
	}
	started, ended := make(chan error, 1), make(chan error, 1)
	go func() {
		// --die-with-parent is about the thread that started it (PR_SET_PDEATHSIG), so that one has to stay.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			ended <- cmd.Wait()
		}
		close(ended)
	}()
	err := <-started
	c.close()
	if err != nil {
		return 0, fmt.Errorf("run the agent: %w", err)
	}
	if relay != nil {
		if err := relay.run(); err != nil {
			_ = cmd.Process.Kill()
			return 0, errors.Join(err, <-ended)
		}
	}
	words := make(chan status)
	go listen(said, words)
	return attend(ctx, cmd, words, ended)
}

// attend waits for the end, and sees to it when ctx ends.
func attend(ctx context.Context, cmd *exec.Cmd, words <-chan status, ended <-chan error) (int, error) {
	var first int // the pid of the sandbox's first process, which is not reaped before bubblewrap ends
	var code *int
	var kill <-chan time.Time
	var result error
	stop := ctx.Done()
	// Both come to an end: bubblewrap has the only other end of the pipe.
	for words != nil || ended != nil {
		select {
		case w, ok := <-words:
			if !ok {
				words = nil
				continue
			}
			if w.Code != nil {
				code = w.Code
			}
			if first == 0 && w.PID > 0 {
				if first = w.PID; stop == nil {
					_ = unix.Kill(first, unix.SIGTERM)
				}
			}
		case <-stop:
			stop = nil
			if first != 0 && ended != nil {
				_ = unix.Kill(first, unix.SIGTERM)
			}
			kill = time.After(endGrace)
		case <-kill:
			_ = cmd.Process.Kill() // the rest dies with it
		case result = <-ended:
			ended = nil
		}
	}
	switch {
	case code != nil:
		return *code, nil
	case ctx.Err() != nil:
		return 128 + int(unix.SIGKILL), nil
	}
	return 0, fmt.Errorf("bubblewrap could not build the agent's sandbox (it says above why), or was killed: %w", result)
}

// A status is what bubblewrap says by --json-status-fd: the pid of the first process, and its exit
// code, which comes only if it was started at all.
type status struct {
	PID  int  `json:"child-pid"`
	Code *int `json:"exit-code"`
}

func listen(r io.Reader, to chan<- status) {
	defer close(to)
	for dec := json.NewDecoder(r); ; {
		var st status
		if dec.Decode(&st) != nil {
			return
		}
		to <- st
	}
}
