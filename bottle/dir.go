package bottle

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Schema is the version of every JSON file in a state directory.
const Schema = 1

// maxJSON bounds a state file that has no bound of its own.
const maxJSON = 1 << 20

// maxSunPath is the size of sockaddr_un.sun_path, with its terminating zero (unix(7)).
const maxSunPath = 108

// A Dir is a bottle's state directory. The zero Dir is invalid; see [NewDir].
//
//	manifest.yaml    metadata.json     host
//	etc/             routes.yaml pipelock.yaml bundle.json: host writes, bundle reads
//	ca/              ca.pem ca-key.pem
//	queue/requests/  queue/cancels/    bundle writes, host reads
//	decisions/       host writes, bundle reads
//	status/          bundle writes, host reads
//	run/agent/       mcp.sock, all that the agent sees of this tree
//	run/bundle/      private to the bundle: verified configs, egress' key socket
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
	for _, sock := range []string{d.MCPSocket(), d.KeySocket()} {
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
	for _, p := range []string{"", "etc", "ca", "queue", "queue/requests", "queue/cancels", "decisions", "status", "run", "run/agent", "run/bundle", "records", "journal", "kept"} {
		path := d.Path(p)
		if err := os.MkdirAll(path, 0o700); err != nil {
			return fmt.Errorf("create state directory: %w", err)
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

// The fixed places.
func (d *Dir) Routes() string       { return d.Path("etc", RoutesFile) }
func (d *Dir) Pipelock() string     { return d.Path("etc", PipelockFile) }
func (d *Dir) BundleConfig() string { return d.Path("etc", "bundle.json") }
func (d *Dir) Manifest() string     { return d.Path("manifest.yaml") }
func (d *Dir) Metadata() string     { return d.Path("metadata.json") }
func (d *Dir) CACert() string       { return d.Path("ca", "ca.pem") }
func (d *Dir) CAKey() string        { return d.Path("ca", "ca-key.pem") }
func (d *Dir) Requests() string     { return d.Path("queue", "requests") }
func (d *Dir) Cancels() string      { return d.Path("queue", "cancels") }
func (d *Dir) Decisions() string    { return d.Path("decisions") }
func (d *Dir) Records() string      { return d.Path("records") }
func (d *Dir) Journal() string      { return d.Path("journal") }
func (d *Dir) Kept() string         { return d.Path("kept") }
func (d *Dir) Audit() string        { return d.Path("audit.jsonl") }
func (d *Dir) AuditHead() string    { return d.Path("audit.head") }
func (d *Dir) MCPSocket() string    { return d.Path("run", "agent", "mcp.sock") }
func (d *Dir) KeySocket() string    { return d.Path("run", "bundle", "egress-keys.sock") }
func (d *Dir) InitStatus() string   { return d.Path("status", "init.json") }
func (d *Dir) SpentFile() string    { return d.Path("status", "spent.json") }

// Live is the verified copy of a config file, which init publishes and daemons read.
func (d *Dir) Live(file string) string { return d.Path("run", "bundle", file) }

// DaemonStatus is the path of a daemon's status.
func (d *Dir) DaemonStatus(daemon string) string { return d.Path("status", daemon+".json") }

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

// ReadFile reads a regular file of at most limit bytes without following a link at its
// last element and without blocking on a FIFO. It is for files that the bundle or the
// agent may have put there. A larger file, or another kind, is an [ErrCorrupt].
func ReadFile(path string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, unix.ELOOP) {
			return nil, fmt.Errorf("read %s: a symbolic link, not a file: %w", path, ErrCorrupt)
		}
		if errors.Is(err, unix.ENXIO) {
			return nil, fmt.Errorf("read %s: a socket, not a file: %w", path, ErrCorrupt)
		}
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("read %s: %s, not a regular file: %w", path, st.Mode().Type(), ErrCorrupt)
	}
	// The bound is on what is read, not on the size: the file may grow meanwhile.
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("read %s: over its bound of %d bytes: %w", path, limit, ErrCorrupt)
	}
	return b, nil
}

// ReadJSON reads a state file into v with the checks of [ReadFile] (limit 0 means 1 MiB)
// and refuses a schema that is missing ([ErrCorrupt]) or newer ([ErrNewer]).
func ReadJSON(path string, limit int64, v any) error {
	if limit == 0 {
		limit = maxJSON
	}
	b, err := ReadFile(path, limit)
	if err != nil {
		return err
	}
	return DecodeJSON(path, b, v)
}

// DecodeJSON is the second half of [ReadJSON]; path is for its errors.
func DecodeJSON(path string, b []byte, v any) error {
	var head struct {
		Schema int `json:"schema"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return fmt.Errorf("read %s: truncated or not JSON (%v): %w", path, err, ErrCorrupt)
	}
	switch {
	case head.Schema > Schema:
		return fmt.Errorf("read %s: schema %d, but this bottle knows %d at most; use the newer bottle: %w", path, head.Schema, Schema, ErrNewer)
	case head.Schema < 1:
		return fmt.Errorf("read %s: no schema: %w", path, ErrCorrupt)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("read %s: %v: %w", path, err, ErrCorrupt)
	}
	return nil
}

// WriteJSON is [WriteFile] of v as JSON, with mode 0600.
func WriteJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return WriteFile(path, append(b, '\n'), 0o600)
}

// WriteFile replaces the file whole: temp beside it, fsync, rename, fsync of the
// directory. After it returns nil the file is durable; after an error the old one stands.
// It is for directories of ours, never for a file that is mounted on its own.
func WriteFile(path string, b []byte, mode fs.FileMode) error {
	return writeFile(path, b, mode, true)
}

// WriteStatus is [WriteJSON] without fsync, for what is worthless after a crash.
func WriteStatus(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return writeFile(path, append(b, '\n'), 0o600, false)
}

func writeFile(path string, b []byte, mode fs.FileMode, durable bool) (err error) {
	dir, base := filepath.Split(path)
	f, err := os.CreateTemp(dir, "."+base+".*.tmp")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	if err = f.Chmod(mode); err != nil {
		return err
	}
	if _, err = io.Copy(f, bytes.NewReader(b)); err != nil {
		return err
	}
	if durable {
		if err = f.Sync(); err != nil {
			return err
		}
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	if durable {
		return SyncDir(dir)
	}
	return nil
}

// SyncDir makes renames and removals in a directory durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir) //nolint:gosec // G304: a directory of ours
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
