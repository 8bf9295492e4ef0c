package launch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// The codes that a shell has for a program that it can't run, and of one that was killed.
const (
	codeNotExecutable = 126
	codeNotFound      = 127
	codeKilled        = 137
)

// verdict makes of an agent's end what a shell would say. Engines differ in the code of a program that they can't
// start, and print the reason as if it were the program's output.
func (e *execution) verdict(ctx context.Context, code int, err error) (int, error) {
	if code == codeNotExecutable || code == codeNotFound {
		if st, ierr := e.cli.ContainerExecInspect(ctx, e.id); ierr == nil && st.Pid == 0 {
			return unstartable(e.agent.Argv[0], e.out.hold())
		}
	}
	e.out.release()
	if code != codeKilled && err == nil {
		return code, nil
	}
	if why := e.boxEnded(ctx); why != nil {
		return codeKilled, why
	}
	return code, err
}

// boxEnded is why the agent's container has ended, nil if only the agent has, or if the engine is away. The engine
// tells of what was killed in a container a moment before it tells of the container itself.
func (e *execution) boxEnded(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, agentGrace)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); ; {
		c, err := e.cli.ContainerInspect(ctx, e.container)
		switch {
		case gone(err) != nil:
			return nil
		case err == nil && c.State.Running && c.State.StartedAt == e.since:
		case err == nil && c.State.OOMKilled:
			return fmt.Errorf("the agent's container was killed, out of its %d MiB of memory", c.HostConfig.Memory>>20)
		default:
			return errors.New("the agent's container was killed from outside")
		}
		if time.Since(began) > endWait && (e.first.PID == 0 || e.first.Alive()) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// endWait is how long after an agent its container's first process may still be there, if both were killed.
const endWait = 100 * time.Millisecond

func unstartable(program, said string) (int, error) {
	said = strings.TrimSpace(said)
	switch {
	case strings.Contains(said, "chdir to cwd"):
		return codeNotExecutable, fmt.Errorf("run the agent: its working directory is not there (%s)", said)
	case strings.Contains(said, "executable file not found"), strings.Contains(said, "no such file or directory"):
		return codeNotFound, fmt.Errorf("the agent's command %s was not found in its image", program)
	}
	return codeNotExecutable, fmt.Errorf("the agent's command %s can't be executed (%s)", program, said)
}

// cantStart is how the engine's own word begins, where an agent's output would be.
const (
	cantStart    = "OCI runtime exec failed: "
	maxCantStart = 4 << 10
)

// A firstWords writer passes on what it is given, but keeps a text that begins like the engine's own word until it is
// known whose it is.
type firstWords struct {
	w io.Writer

	mu     sync.Mutex
	held   []byte
	passes bool
}

func (f *firstWords) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.passes {
		return f.w.Write(p)
	}
	f.held = append(f.held, p...)
	n := min(len(f.held), len(cantStart))
	if string(f.held[:n]) == cantStart[:n] && len(f.held) <= maxCantStart {
		return len(p), nil
	}
	return len(p), f.pass()
}

func (f *firstWords) pass() error {
	f.passes = true
	b := f.held
	f.held = nil
	_, err := f.w.Write(b)
	return err
}

// hold returns what was kept, which nobody sees then.
func (f *firstWords) hold() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return string(f.held)
}

// release passes on what was kept.
func (f *firstWords) release() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.held) > 0 {
		_ = f.pass() // the agent has ended; its last words have nowhere to go
	}
}
