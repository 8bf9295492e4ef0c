package launch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/pkg/stdcopy"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"bottle/bottle"
)

const (
	agentGrace = 5 * time.Second // between TERM and KILL
	outputWait = time.Second     // for the last output of an agent whose descendants hold it open
)

// noDetach is a key sequence that nobody types. The engine takes a sequence to let go of
// an exec, by default Ctrl-P Ctrl-Q, and would keep each Ctrl-P from the agent.
const noDetach = "ctrl-^,ctrl-_,ctrl-^,ctrl-_,ctrl-]"

// AgentEnv is what an agent in the container has in its environment beside what the manifest
// says: that of [AgentEnv] with the paths inside.
func (d *Docker) AgentEnv() ([]string, error) {
	env, err := AgentEnv(d.dir)
	if err != nil {
		return nil, err
	}
	inside := map[string]string{"BOTTLE_MCP_SOCKET": socketsInside + "/mcp.sock"}
	for _, k := range caVariables {
		inside[k] = caBundleInside
	}
	for i, kv := range env {
		k, _, _ := strings.Cut(kv, "=")
		if v, ok := inside[k]; ok {
			env[i] = k + "=" + v
		}
	}
	return append(env, "HOME="+homeInside), nil
}

// RunAgent runs a program in the agent's container, with [Docker.AgentEnv], and returns its
// exit code. When ctx ends it gets TERM, and KILL after 5 s. A code that is not the agent's own word has the reason as
// its error: 127 or 126 if the engine could not start it, 137 if the container ended under it.
//
// An exec can't be attached to again: if this process ends, the terminal is gone for the
// agent, which then gets HUP or the end of its input.
func (d *Docker) RunAgent(ctx context.Context, a Agent) (code int, err error) {
	if len(a.Argv) == 0 || a.In == nil || a.Out == nil || a.Err == nil {
		return 0, errors.New("run the agent: Argv, In, Out and Err are required")
	}
	ids, err := d.ids()
	if err != nil {
		return 0, err
	}
	if ids.Agent == "" {
		return 0, fmt.Errorf("run the agent: bottle %s has no container: %w", d.dir.Name(), bottle.ErrNotFound)
	}
	box, err := d.agentBox(ctx)
	if err != nil {
		return 0, err
	}
	env, err := d.AgentEnv()
	if err != nil {
		return 0, err
	}
	env = append(env, "PATH="+withBridge(box.Config.Env))
	// The engine is asked to the end, whatever becomes of ctx: that is about the agent.
	engine, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	made, err := d.cli.ContainerExecCreate(engine, box.ID, container.ExecOptions{
		Tty: a.TTY, AttachStdin: true, AttachStdout: true, AttachStderr: !a.TTY, DetachKeys: noDetach,
		Env: append(env, a.Env...), WorkingDir: d.workingDir(a.Dir), Cmd: a.Argv,
	})
	if cerrdefs.IsNotFound(err) || cerrdefs.IsConflict(err) {
		return 0, d.noBox(err)
	}
	if err != nil {
		return 0, d.explain("run the agent", err)
	}
	e := &execution{Docker: d, id: made.ID, container: box.ID, since: box.State.StartedAt, agent: a}
	e.out.w = a.Out
	e.first, _ = bottle.ProcessOf(box.State.Pid) // else the engine alone is asked
	code, err = e.run(ctx, engine)
	return e.verdict(engine, code, err)
}

// workingDir is the path inside of a directory below the workspace, which may be given as on
// the host.
func (d *Docker) workingDir(dir string) string {
	if filepath.IsAbs(dir) && d.manifest != nil {
		if rel, err := filepath.Rel(d.manifest.Agent.Workspace, dir); err == nil && filepath.IsLocal(rel) {
			dir = filepath.ToSlash(rel)
		}
	}
	if path.IsAbs(dir) {
		return dir
	}
	return path.Join(workspaceInside, dir)
}

// An execution is one agent that runs.
type execution struct {
	*Docker
	id, container string
	since         string           // when the container was started
	first         bottle.ProcessID // its first process; zero if this machine does not see it
	agent         Agent
	out           firstWords
	conn          types.HijackedResponse
}

func (e *execution) run(ctx, engine context.Context) (code int, err error) {
	var wg sync.WaitGroup
	defer wg.Wait()
	engine, cancel := context.WithCancel(engine)
	defer cancel()
	died := e.watch(engine, &wg)
	e.conn, err = e.cli.ContainerExecAttach(engine, e.id, container.ExecAttachOptions{Tty: e.agent.TTY})
	if err != nil {
		return 0, e.explain("run the agent", err)
	}
	defer e.conn.Close()
	if e.agent.TTY {
		restore, err := e.terminal(engine, &wg)
		if err != nil {
			return 0, err
		}
		defer restore()
	}
	stopInput, err := e.input(&wg)
	if err != nil {
		return 0, err
	}
	defer stopInput()
	var outputErr error
	output := make(chan struct{})
	wg.Go(func() {
		defer close(output)
		outputErr = e.output()
	})

	var kill <-chan time.Time
	done := ctx.Done()
	for {
		select {
		case <-output:
			if outputErr != nil {
				return 0, e.explain("run the agent: its output", outputErr)
			}
			return e.exitCode(engine, died)
		case code := <-died:
			// What it left running may hold the output open.
			select {
			case <-output:
			case <-time.After(outputWait):
			}
			return code, nil
		case <-done:
			done = nil
			e.signal(engine, unix.SIGTERM)
			kill = time.After(agentGrace)
		case <-kill:
			kill = nil
			e.signal(engine, unix.SIGKILL)
		}
	}
}

// watch gives the exit code when the engine says that the agent has ended.
func (e *execution) watch(ctx context.Context, wg *sync.WaitGroup) <-chan int {
	died := make(chan int, 1)
	msgs, errs := e.cli.Events(ctx, events.ListOptions{Filters: filters.NewArgs(
		filters.Arg("type", string(events.ContainerEventType)), filters.Arg("container", e.container), filters.Arg("event", string(events.ActionExecDie)),
	)})
	wg.Go(func() {
		for {
			select {
			case m := <-msgs:
				if m.Actor.Attributes["execID"] != e.id {
					continue
				}
				if code, err := strconv.Atoi(m.Actor.Attributes["exitCode"]); err == nil {
					died <- code
					return
				}
			case err := <-errs: // the engine went away, which the output shows too; or ctx ended
				e.log.Debug("no more word of the agent's end", "error", err)
				return
			}
		}
	})
	return died
}

// exitCode is asked for once the output has ended, which may be before the engine knows.
func (e *execution) exitCode(ctx context.Context, died <-chan int) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, agentGrace)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		st, err := e.cli.ContainerExecInspect(ctx, e.id)
		if err != nil {
			return 0, e.explain("run the agent: its exit code", err)
		}
		if !st.Running {
			return st.ExitCode, nil
		}
		select {
		case code := <-died:
			return code, nil
		case <-tick.C:
		case <-ctx.Done():
			return 0, errors.New("run the agent: it has closed its output, but does not end")
		}
	}
}

// signal reaches the agent's process through the host's kernel; the engine can't signal an
// exec. Where that is not possible, its terminal hangs up or its input ends.
func (e *execution) signal(ctx context.Context, s unix.Signal) {
	pid, err := e.pid(ctx)
	if err == nil && pid > 0 {
		err = e.signalProcess(pid, s)
	}
	if err != nil && !errors.Is(err, unix.ESRCH) {
		e.log.Warn("the agent could not be signalled; it ends with its container", "signal", s.String(), "error", err)
		e.conn.Close()
	}
}

// pid is the agent's on the host, 0 if it has ended. The engine learns of it a moment after
// the agent has started.
func (e *execution) pid(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, agentGrace)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		st, err := e.cli.ContainerExecInspect(ctx, e.id)
		if err != nil || st.Pid > 0 && st.Running {
			return st.Pid, err
		}
		if st.Pid > 0 {
			return 0, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// signalProcess pins the process before it looks whether that is in the container.
func (e *execution) signalProcess(pid int, s unix.Signal) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return err
	}
	if !strings.Contains(string(groups), e.container) {
		return fmt.Errorf("process %d is not in the container as this machine sees it", pid)
	}
	return unix.PidfdSendSignal(fd, s, nil, 0)
}

// terminal makes ours raw, so that each key and signal is the agent's, and keeps the sizes the same.
func (e *execution) terminal(ctx context.Context, wg *sync.WaitGroup) (restore func(), err error) {
	in := int(e.agent.In.Fd())
	old, err := term.MakeRaw(in)
	if err != nil {
		return nil, fmt.Errorf("run the agent: its terminal: %w", err)
	}
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, unix.SIGWINCH)
	resize := func() {
		w, h, err := term.GetSize(in)
		if err != nil {
			return
		}
		// Of a process that has just been started the engine may not know yet.
		for range 50 {
			err := e.cli.ContainerExecResize(ctx, e.id, container.ResizeOptions{Height: uint(h), Width: uint(w)})
			if err == nil || ctx.Err() != nil {
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	quit := make(chan struct{})
	wg.Go(func() {
		resize()
		for {
			select {
			case <-resized:
				resize()
			case <-quit:
				return
			}
		}
	})
	return func() {
		signal.Stop(resized)
		close(quit)
		_ = term.Restore(in, old)
	}, nil
}

// input copies to the agent until its end, or until stop. A terminal's read can't be
// interrupted, so it is read only once there is something: a key that is typed after the
// agent has ended is the shell's.
func (e *execution) input(wg *sync.WaitGroup) (stop func(), err error) {
	var wake [2]int
	if err := unix.Pipe2(wake[:], unix.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("run the agent: its input: %w", err)
	}
	in := int(e.agent.In.Fd())
	done := make(chan struct{})
	wg.Go(func() {
		defer close(done)
		defer func() { _ = e.conn.CloseWrite() }()
		buf := make([]byte, 32<<10)
		for {
			fds := []unix.PollFd{{Fd: int32(in), Events: unix.POLLIN}, {Fd: int32(wake[0]), Events: unix.POLLIN}} //nolint:gosec // G115: descriptors
			if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
				return
			}
			if fds[1].Revents != 0 {
				return
			}
			if fds[0].Revents == 0 {
				continue
			}
			n, err := unix.Read(in, buf)
			if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
				continue
			}
			if n <= 0 || err != nil {
				return
			}
			if _, err := e.conn.Conn.Write(buf[:n]); err != nil {
				return
			}
		}
	})
	return func() {
		_ = unix.Close(wake[1])
		e.conn.Close() // or a write to an agent that does not read would wait for ever
		<-done
		_ = unix.Close(wake[0])
	}, nil
}

func (e *execution) output() error {
	if e.agent.TTY {
		_, err := io.Copy(&e.out, e.conn.Reader)
		return err
	}
	_, err := stdcopy.StdCopy(&e.out, e.agent.Err, e.conn.Reader)
	return err
}
