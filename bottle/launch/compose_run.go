package launch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"bottle/bottle"
)

// Bounds of what is kept of compose's output, in bytes.
const (
	maxComplaint  = 16 << 10
	maxComposeLog = 64 << 20
)

const (
	composeWait = 10 * time.Second // after an interrupt, for compose to end
	logWait     = 30 * time.Second // for docker compose logs
)

// composeCmd is docker compose for this bottle's project. It ends when ctx does, by an
// interrupt first. Compose is told of nothing in our environment but the engine: the keeper's has tokens,
// and COMPOSE_ variables would change what is done.
func (d *Docker) composeCmd(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "docker", append([]string{"compose"}, args...)...) //nolint:gosec // G204: our arguments
	cmd.Env = []string{"DOCKER_HOST=" + d.cli.DaemonHost(), "COMPOSE_ANSI=never", "COMPOSE_PROGRESS=plain", "COMPOSE_MENU=false"}
	for _, k := range []string{"PATH", "HOME", "LANG", "DOCKER_CONFIG", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "SSH_AUTH_SOCK"} {
		if v, ok := os.LookupEnv(k); ok {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
	}
	// A group of its own: Ctrl-C at the terminal is ours to pass on, and what the CLI starts as its plugin is reached too.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGINT) }
	cmd.WaitDelay = composeWait
	return cmd
}

// inProject runs compose on the project's file. It keeps lock open, if that is not nil, until it ends.
func (d *Docker) inProject(ctx context.Context, lock *os.File, args ...string) error {
	all := append([]string{"-p", d.project(), "-f", d.composePath(), "--project-directory", d.dir.Path()}, args...)
	cmd := d.composeCmd(ctx, all...)
	if lock != nil {
		cmd.ExtraFiles = []*os.File{lock}
	}
	said := &tail{max: maxComplaint}
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("docker compose %s: %w", args[0], context.Cause(ctx))
		}
		return d.complaint("docker compose "+args[0], said.String(), err)
	}
	return nil
}

// lockProject keeps making and removing apart: it waits until nobody does either, nor any
// compose that was left behind. Closing the file lets go.
func lockProject(ctx context.Context, dir *bottle.Dir) (*os.File, error) {
	f, err := os.OpenFile(dir.Path("run", "compose.lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the compose project: %w", err)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			_ = f.Close()
			return nil, fmt.Errorf("lock the compose project: %w", err)
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, fmt.Errorf("lock the compose project: %w", bottle.ErrLocked)
		case <-tick.C:
		}
	}
}

func (d *Docker) composePath() string { return d.dir.Path("docker-compose.yml") }

// complaint is the error of a failed compose, whose reason is in the last lines that it printed.
func (d *Docker) complaint(what, said string, err error) error {
	var reason string
	for line := range strings.Lines(said) {
		if line = strings.TrimSpace(line); line != "" {
			reason = line
		}
	}
	if advice := engineAdvice(d.cli.DaemonHost(), said, false); advice != "" {
		return fmt.Errorf("%s: %s: %w: %s", what, advice, err, reason)
	}
	return fmt.Errorf("%s: %w: %s", what, err, reason)
}

// A tail keeps the end of what is written.
type tail struct {
	max int
	b   []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if len(t.b) > 2*t.max {
		t.b = append(t.b[:0], t.b[len(t.b)-t.max:]...)
	}
	return len(p), nil
}

func (t *tail) String() string { return string(t.b[max(0, len(t.b)-t.max):]) }

// checkCompose refuses a compose that is missing or older than version 2, which reads
// another file format.
func (d *Docker) checkCompose(ctx context.Context) error {
	if _, err := exec.LookPath("docker"); err != nil {
		return errors.New("the docker command was not found in PATH; install the docker CLI with its compose plugin (version 2 or later)")
	}
	cmd := d.composeCmd(ctx, "version", "--short")
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("docker compose does not run (%w: %s); install the compose plugin, version 2 or later", err, strings.TrimSpace(complaint.String()))
	}
	return composeVersion(strings.TrimSpace(out.String()))
}

func composeVersion(v string) error {
	major, _, _ := strings.Cut(strings.TrimPrefix(v, "v"), ".")
	// A build without a version, as from its sources, is taken for a new one: version 1 always had one.
	if n, err := strconv.Atoi(major); err == nil && n < 2 {
		return fmt.Errorf("docker compose is version %s, which is too old; install version 2 or later", v)
	}
	return nil
}

// dumpLogs writes what the containers printed to compose.log. It is bounded in time and size.
func (d *Docker) dumpLogs(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, logWait)
	defer cancel()
	f, err := os.OpenFile(d.dir.Path("compose.log"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("keep the containers' logs: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	cmd := d.composeCmd(ctx, "-p", d.project(), "-f", d.composePath(), "logs", "--no-color", "--timestamps")
	said := &tail{max: maxComplaint}
	cmd.Stdout, cmd.Stderr = &limited{w: f, left: maxComposeLog}, said
	if err := cmd.Run(); err != nil {
		return d.complaint("docker compose logs", said.String(), err)
	}
	return nil
}

// A limited writer drops what is too much.
type limited struct {
	w    io.Writer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	n := min(len(p), l.left)
	l.left -= n
	if _, err := l.w.Write(p[:n]); err != nil {
		return 0, err
	}
	return len(p), nil
}

// writeCompose renders the file anew.
func (d *Docker) writeCompose(b []byte) error { return bottle.WriteFile(d.composePath(), b, 0o600) }
