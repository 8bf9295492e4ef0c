package bottle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// maxSunPath is the size of sockaddr_un.sun_path, with its terminating zero (unix(7)).
const maxSunPath = 108

// A Dir is a bottle's state directory. The zero Dir is invalid; see [NewDir].
//
//	manifest.yaml    metadata.json     host
//	etc/             routes.yaml pipelock.yaml bundle.json: host writes, bundle reads
//	ca/              ca.pem ca-key.pem
//	queue/requests/  queue/cancels/    bundle writes, host reads
//	decisions/       host writes, bundle reads
//	status/          bundle writes, host reads; with egress' access log
//	run/agent/       mcp.sock proxy.sock, all that the agent sees of this tree
//	run/bundle/      private to the bundle: egress' key socket, and for each daemon a directory that
//	                 it alone reads, with its verified config
//	records/  journal/  kept/  audit.jsonl  audit.head  lock  keeper.lock   host alone
type Dir struct {
	root string
}

// NewDir names the state directory at root, which must be absolute. Nothing is touched.
func NewDir(root string) (*Dir, error) {
	if !filepath.IsAbs(root) {
		return nil, fmt.Errorf("state directory %q: not an absolute path: %w", root, ErrInvalid)
	}
	d := &Dir{root: filepath.Clean(root)}
	for _, sock := range []string{d.MCPSocket(), d.ProxySocket(), d.KeySocket()} {
		if len(sock) >= maxSunPath {
			return nil, fmt.Errorf("socket path %s is %d bytes, but a unix socket's path has at most %d: use a shorter state directory (--state-dir or BOTTLE_STATE_DIR) or bottle name: %w",
				sock, len(sock), maxSunPath-1, ErrInvalid)
		}
	}
	return d, nil
}

// Create makes the directory and its parts, each with its mode; what exists is kept and
// its mode is set right.
func (d *Dir) Create() error {
	for _, p := range []string{"", "etc", "ca", "queue", "queue/requests", "queue/cancels", "decisions", "status", "status/egress", "run", "run/agent", "run/bundle", "records", "journal", "kept"} {
		path := d.Path(p)
		if err := os.MkdirAll(path, 0o700); err != nil {
			return fmt.Errorf("create state directory: %w", err)
		}
		// The bundle may write below queue, and chmod follows links.
		if st, err := os.Lstat(path); err != nil {
			return fmt.Errorf("create state directory: %w", err)
		} else if p != "" && !st.IsDir() {
			return fmt.Errorf("create state directory: %s is %s, not a directory; remove it: %w", path, st.Mode().Type(), ErrCorrupt)
		}
		if err := os.Chmod(path, 0o700); err != nil { //nolint:gosec // G302: a directory needs its x bit
			return fmt.Errorf("create state directory: %w", err)
		}
	}
	return nil
}

// Path joins elements below the root.
func (d *Dir) Path(elem ...string) string {
	return filepath.Join(append([]string{d.root}, elem...)...)
}

// Name is the last element of the root, the bottle's name on the host.
func (d *Dir) Name() string { return filepath.Base(d.root) }

// Routes is the config file of egress.
func (d *Dir) Routes() string { return d.Path("etc", RoutesFile) }

// Pipelock is the config file of pipelock.
func (d *Dir) Pipelock() string { return d.Path("etc", PipelockFile) }

// BundleConfig is what the bundle is started with; see [BundleConfig].
func (d *Dir) BundleConfig() string { return d.Path("etc", "bundle.json") }

// Manifest is the copy of the manifest as accepted at the last start.
func (d *Dir) Manifest() string { return d.Path("manifest.yaml") }

// Metadata is what the host knows of the bottle; see [Metadata].
func (d *Dir) Metadata() string { return d.Path("metadata.json") }

// CACert is the certificate of the bottle's CA, which the agent trusts.
func (d *Dir) CACert() string { return d.Path("ca", "ca.pem") }

// CAKey is the key of the bottle's CA, for egress alone.
func (d *Dir) CAKey() string { return d.Path("ca", "ca-key.pem") }

// Requests is where the bundle puts requests, a file each.
func (d *Dir) Requests() string { return d.Path("queue", "requests") }

// Cancels is where the bundle says which requests the agent took back.
func (d *Dir) Cancels() string { return d.Path("queue", "cancels") }

// Decisions is where the host puts its answers, a file each.
func (d *Dir) Decisions() string { return d.Path("decisions") }

// Records is the host's own copy of each request.
func (d *Dir) Records() string { return d.Path("records") }

// Journal is where apply's intents lie until they are done.
func (d *Dir) Journal() string { return d.Path("journal") }

// Kept is where config files that were edited by hand are put aside.
func (d *Dir) Kept() string { return d.Path("kept") }

// Audit is the audit trail.
func (d *Dir) Audit() string { return d.Path("audit.jsonl") }

// AuditHead names the last line of the trail, so that a cut shows.
func (d *Dir) AuditHead() string { return d.Path("audit.head") }

// AgentSockets is the directory of the sockets that the agent sees, and all that it sees of this tree.
func (d *Dir) AgentSockets() string { return d.Path("run", "agent") }

// MCPSocket is where supervise serves the agent.
func (d *Dir) MCPSocket() string { return d.Path("run", "agent", "mcp.sock") }

// ProxySocket is where egress serves an agent whose sandbox has no network.
func (d *Dir) ProxySocket() string { return d.Path("run", "agent", "proxy.sock") }

// KeySocket is where the keeper hands tokens to egress.
func (d *Dir) KeySocket() string { return d.Path("run", "bundle", "egress-keys.sock") }

// InitStatus is what the bundle's supervisor says; see [InitStatus].
func (d *Dir) InitStatus() string { return d.Path("status", "init.json") }

// SpentFile is where egress notes once grants that are used up; see [Spent]. The directory is
// its own: the rest of status/ is init's.
func (d *Dir) SpentFile() string { return d.Path("status", DaemonEgress, "spent.json") }

// Live is the verified copy of a config file, which init publishes for its daemon alone to read.
func (d *Dir) Live(file string) string {
	daemon := DaemonEgress
	if file == PipelockFile {
		daemon = DaemonPipelock
	}
	return d.Path("run", "bundle", daemon, file)
}

// DaemonConfig is a daemon's part of bundle.json.
func (d *Dir) DaemonConfig(daemon string) string {
	return d.Path("run", "bundle", daemon, "bundle.json")
}

// HopFile is where init tells egress which pipelock to use; see [Hop].
func (d *Dir) HopFile() string { return d.Path("run", "bundle", DaemonEgress, "hop.json") }

// DaemonStatus is the path of a daemon's status.
func (d *Dir) DaemonStatus(daemon string) string { return d.Path("status", daemon+".json") }

// AccessLog is where init writes egress' access log, see [AccessLine]: one file for what was
// allowed, another for what was refused or failed. Each has an older one beside it, see
// [logfile.OlderSuffix].
func (d *Dir) AccessLog(refusals bool) string {
	if refusals {
		return d.Path("status", "access-refused.jsonl")
	}
	return d.Path("status", "access.jsonl")
}

// Lock takes the bottle's lock, which every change of state is made under, waiting until
// ctx ends. The file is private to the host: a lock on a file that is mounted into the
// sandbox could be held by the sandbox.
func (d *Dir) Lock(ctx context.Context) (unlock func(), err error) {
	return flock(ctx, d.Path("lock"))
}

// Lease takes the keeper's lease, or fails at once with [ErrLocked].
func (d *Dir) Lease() (release func(), err error) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return flock(ctx, d.Path("keeper.lock"))
}

func flock(ctx context.Context, path string) (func(), error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, ErrLocked)
		case <-tick.C:
		}
	}
}
