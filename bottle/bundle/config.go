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

// ConfigFile is the name of the bundle's start-up config, both as the host wrote it in
// etc/ and as init publishes it for the daemons in run/bundle/.
const ConfigFile = "bundle.json"

// EnvDaemons names the environment variable that picks the daemons, separated by commas.
const EnvDaemons = "BOTTLE_SIDECAR_DAEMONS"

// A Config is what a supervisor is made of.
type Config struct {
	// Dir is the state directory, or the parts of it that the bundle sees. Required.
	Dir *bottle.Dir
	// Signals are what main's first statement took over. Required.
	Signals *Signals
	// Command is the argv of a daemon, argv[0] an absolute path. Nil: this program's own
	// subcommand, see [Command].
	Command func(daemon string) ([]string, error)
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
// PATH). These confine themselves. It is the one place that will know of another pipelock,
// which is to be started through the launcher ([Exec]).
func Command(dir *bottle.Dir, daemon string) ([]string, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	root := dir.Path()
	if daemon != bottle.DaemonSupervise {
		return []string{exe, daemon, "--root", root}, nil
	}
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
}

// LoadConfig reads the published bundle.json, which init has checked. It is for the daemons
// and the launcher.
func LoadConfig(dir *bottle.Dir) (*bottle.BundleConfig, error) {
	var c bottle.BundleConfig
	if err := bottle.ReadJSON(dir.Live(ConfigFile), maxConfig, &c); err != nil {
		return nil, err
	}
	return &c, nil
}

// loadConfig reads the host's bundle.json, checks it, and makes its ports concrete.
func loadConfig(path string) (*bottle.BundleConfig, error) {
	var c bottle.BundleConfig
	if err := bottle.ReadJSON(path, maxConfig, &c); err != nil {
		return nil, err
	}
	if c.Binary != "" {
		return nil, fmt.Errorf("%s: binary %q: a pipelock binary is not supported yet; leave pipelock.binary empty in the manifest for the built-in gate: %w", path, c.Binary, bottle.ErrInvalid)
	}
	for _, a := range []struct {
		field string
		addr  *string
	}{{"egress", &c.Egress}, {"pipelock", &c.Pipelock}} {
		addr, err := concrete(*a.addr)
		if err != nil {
			return nil, fmt.Errorf("%s: %s %q: %w", path, a.field, *a.addr, err)
		}
		*a.addr = addr
	}
	if c.Egress == c.Pipelock {
		return nil, fmt.Errorf("%s: egress and pipelock both listen on %s: give them different ports: %w", path, c.Egress, bottle.ErrInvalid)
	}
	return &c, nil
}

// concrete replaces port 0 with one that is free. The port is let go of again until the
// daemon binds it, as the launcher's ruleset names ports; the host, which wants ports that outlive
// this process, chooses them itself.
func concrete(addr string) (string, error) {
	if _, err := port(addr); err != nil {
		return "", err
	}
	host, p, _ := net.SplitHostPort(addr) // port has checked it
	if p != "0" {
		return addr, nil
	}
	l, err := net.Listen("tcp", addr) //nolint:noctx // it binds and closes
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, p, err = net.SplitHostPort(l.Addr().String())
	return net.JoinHostPort(host, p), err
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

// pickDaemons chooses among all daemons, in the order in which they start, which is that of the
// time it takes them to (none needs another for it): env (comma separated) before the config before all. pipelock is added to egress, whose only way out it is.
func pickDaemons(env string, config []string) ([]string, error) {
	all := []string{bottle.DaemonSupervise, bottle.DaemonEgress, bottle.DaemonPipelock}
	source, names := "bundle.json: daemons", config
	if env != "" {
		source, names = EnvDaemons, strings.FieldsFunc(env, func(r rune) bool { return r == ',' || r == ' ' })
	}
	if len(names) == 0 {
		return all, nil
	}
	for _, n := range names {
		if !slices.Contains(all, n) {
			return nil, fmt.Errorf("%s: no daemon %q; known are %s: %w", source, n, strings.Join(all, ", "), bottle.ErrInvalid)
		}
	}
	if slices.Contains(names, bottle.DaemonEgress) {
		names = append(slices.Clone(names), bottle.DaemonPipelock)
	}
	return slices.DeleteFunc(all, func(n string) bool { return !slices.Contains(names, n) }), nil
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

func lookup(environ []string, name string) string {
	for _, kv := range slices.Backward(environ) {
		if n, v, ok := strings.Cut(kv, "="); ok && n == name {
			return v
		}
	}
	return ""
}
