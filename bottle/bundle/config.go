package bundle

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"bottle/bottle"
)

// EnvDaemons names the environment variable that picks the daemons, separated by commas.
const EnvDaemons = "BOTTLE_SIDECAR_DAEMONS"

// A Config is what a supervisor is made of.
type Config struct {
	// Dir is the state directory, or the parts of it that the bundle sees. Required.
	Dir *bottle.Dir
	// Signals are what main's first statement took over. Required.
	Signals *Signals
	// Command is the argv of a daemon, argv[0] an absolute path; listen is pipelock's address,
	// for one that is not given its socket. Nil: this program's own subcommand, see [Command].
	Command func(daemon, listen string) ([]string, error)
	// Environ is where the daemons' environment is picked from, and the choice of daemons. Nil: this process'.
	Environ []string
	// Output gets the daemons' lines, prefixed and escaped. Nil: stderr.
	Output io.Writer
	// Logger gets the supervisor's own. Required.
	Logger *slog.Logger
	// Grace is the time between TERM and KILL. Zero: 1 s. At most 1.5 s, since everything is
	// down in 2 s.
	Grace time.Duration
}

// superviseProgram is the daemon that is not in this program; see its package comment.
const superviseProgram = "bottle-supervise"

// Command is how a daemon is run: by this program or, for supervise, by the one beside it (or in
// PATH). These confine themselves. A pipelock that is not ours, which bundle.json names, is
// started through the launcher ([Exec]).
func Command(dir *bottle.Dir, daemon, listen string) ([]string, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	root := dir.Path()
	switch daemon {
	case bottle.DaemonSupervise:
		program := filepath.Join(filepath.Dir(exe), superviseProgram)
		if _, err := os.Stat(program); err != nil {
			if program, err = exec.LookPath(superviseProgram); err != nil {
				return nil, fmt.Errorf("%s: not found beside %s or in PATH; install it there", superviseProgram, exe)
			}
			if program, err = filepath.Abs(program); err != nil {
				return nil, err
			}
		}
		return []string{program, "--root", root}, nil
	case bottle.DaemonPipelock:
		c, err := LoadConfig(dir, daemon)
		if err != nil {
			return nil, err
		}
		if c.Binary != "" {
			return append([]string{exe, "exec", "--daemon", daemon, "--root", root, "--"}, foreignCommand(dir, c.Binary, listen)...), nil
		}
	}
	return []string{exe, daemon, "--root", root}, nil
}

// foreignCommand is the command line of the real pipelock.
func foreignCommand(dir *bottle.Dir, binary, listen string) []string {
	return []string{binary, "run", "--config", dir.Live(bottle.PipelockFile), "--listen", listen}
}

// LoadConfig reads a daemon's part of bundle.json, which init has checked and published. It is
// for the daemon and the launcher.
func LoadConfig(dir *bottle.Dir, daemon string) (*bottle.BundleConfig, error) {
	var c bottle.BundleConfig
	if err := bottle.ReadJSON(dir.DaemonConfig(daemon), maxConfig, &c); err != nil {
		return nil, err
	}
	return &c, nil
}

// loadConfig reads the host's bundle.json and checks it.
func loadConfig(path string) (*bottle.BundleConfig, error) {
	var c bottle.BundleConfig
	if err := bottle.ReadJSON(path, maxConfig, &c); err != nil {
		return nil, err
	}
	if _, err := port(c.Egress); err != nil {
		return nil, fmt.Errorf("%s: egress %q: %w", path, c.Egress, err)
	}
	if c.Binary != "" && !filepath.IsAbs(c.Binary) {
		return nil, fmt.Errorf("%s: binary %q: not an absolute path: %w", path, c.Binary, bottle.ErrInvalid)
	}
	return &c, nil
}

// part is what a daemon needs to know of the config. The secret that opens egress is not for
// pipelock, nor the one between those two for supervise.
func part(daemon string, c *bottle.BundleConfig) bottle.BundleConfig {
	p := *c
	if c.Binary != "" {
		p.GateSecret = "" // a pipelock that is not ours asks for none
	}
	switch daemon {
	case bottle.DaemonPipelock:
		p.ProxySecret, p.Credentials, p.UpstreamCA = "", nil, ""
	case bottle.DaemonSupervise:
		p.GateSecret, p.Credentials, p.UpstreamCA = "", nil, ""
	}
	return p
}

// port is the port of a host:port address, 0 to 65535.
func port(addr string) (uint16, error) {
	_, p, err := net.SplitHostPort(addr)
	if err != nil {
		return 0, fmt.Errorf("not host:port: %w", bottle.ErrInvalid)
	}
	n, err := strconv.ParseUint(p, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("port %q is not a number up to 65535: %w", p, bottle.ErrInvalid)
	}
	return uint16(n), nil
}

// allDaemons is in the order in which they start, which is that of the time it takes them to
// (none needs another for it).
var allDaemons = []string{bottle.DaemonSupervise, bottle.DaemonEgress, bottle.DaemonPipelock}

// pickDaemons chooses among all daemons: env (comma separated) before the config before all. pipelock is added to egress, whose only way out it is.
func pickDaemons(env string, config []string) ([]string, error) {
	source, names := "bundle.json: daemons", config
	if env != "" {
		source, names = EnvDaemons, strings.FieldsFunc(env, func(r rune) bool { return r == ',' || r == ' ' })
	}
	if len(names) == 0 {
		return slices.Clone(allDaemons), nil
	}
	for _, n := range names {
		if !slices.Contains(allDaemons, n) {
			return nil, fmt.Errorf("%s: no daemon %q; known are %s: %w", source, n, strings.Join(allDaemons, ", "), bottle.ErrInvalid)
		}
	}
	if slices.Contains(names, bottle.DaemonEgress) {
		names = append(slices.Clone(names), bottle.DaemonPipelock)
	}
	return slices.DeleteFunc(slices.Clone(allDaemons), func(n string) bool { return !slices.Contains(names, n) }), nil
}

// childEnv picks the daemons' environment. It is a list of what is let through: a token in the environment of
// whoever started the bundle must not reach a daemon, whose environment its same-uid siblings
// could read. A BOTTLE_ variable that some credential's token comes from is no exception.
func childEnv(environ []string, creds map[string]bottle.Credential) []string {
	tokens := map[string]bool{}
	for _, c := range creds {
		tokens[c.TokenEnv] = true
	}
	var env []string
	for _, kv := range environ {
		name, _, ok := strings.Cut(kv, "=")
		if !ok || tokens[name] {
			continue
		}
		switch name {
		case "PATH", "HOME", "LANG", "TZ", "GODEBUG", "GOGC", "GOMEMLIMIT", "GOMAXPROCS", "GOCOVERDIR", "SSL_CERT_FILE", "SSL_CERT_DIR":
		default:
			if !strings.HasPrefix(name, "BOTTLE_") {
				continue
			}
		}
		env = append(env, kv)
	}
	return env
}

// foreignEnv is the environment of a pipelock that is not ours: without HOME, where it would look
// for more rules, and without what is meant for ours.
func foreignEnv(env []string) []string {
	out := []string{"HOME=/nonexistent"}
	for _, kv := range env {
		if name, _, _ := strings.Cut(kv, "="); name != "HOME" && !strings.HasPrefix(name, "BOTTLE_") {
			out = append(out, kv)
		}
	}
	return out
}

func lookup(environ []string, name string) string {
	for _, kv := range slices.Backward(environ) {
		if n, v, ok := strings.Cut(kv, "="); ok && n == name {
			return v
		}
	}
	return ""
}
