package bottle_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bottle/bottle"
)

func newDir(t *testing.T) *bottle.Dir {
	t.Helper()
	d, err := bottle.NewDir(filepath.Join(t.TempDir(), "b"))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Create(); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestNewDir(t *testing.T) {
	const longest = 107 - len("/run/bundle/egress-keys.sock")
	for _, tt := range []struct {
		name, root string
		want       string // in the error; empty: none
	}{
		{"absolute", "/state/bottle/a", ""},
		{"relative", "state", "not an absolute path"},
		{"empty", "", "not an absolute path"},
		{"longest", "/" + strings.Repeat("x", longest-1), ""},
		{"too long", "/" + strings.Repeat("x", longest), "is 108 bytes, but a unix socket's path has at most 107: use a shorter state directory (--state-dir or BOTTLE_STATE_DIR) or bottle name"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := bottle.NewDir(tt.root)
			if tt.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, bottle.ErrInvalid) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
}

// Modes are right whatever the umask, and are set right again where they were loosened.
// The umask is the process's: this test must not run in parallel with another.
func TestDirCreate(t *testing.T) {
	for _, umask := range []int{0, 0o077, 0o777} {
		old := unix.Umask(umask)
		root := t.TempDir()
		if err := os.Chmod(root, 0o700); err != nil {
			t.Fatal(err)
		}
		d, err := bottle.NewDir(filepath.Join(root, "b"))
		if err == nil {
			err = d.Create()
		}
		unix.Umask(old)
		if err != nil {
			t.Fatalf("umask %03o: %v", umask, err)
		}
		if err := os.Chmod(d.Records(), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := d.Create(); err != nil {
			t.Fatal(err)
		}
		err = filepath.WalkDir(d.Path(), func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if st, err := e.Info(); err != nil || st.Mode() != fs.ModeDir|0o700 {
				t.Errorf("umask %03o: %s has mode %v, %v", umask, path, st.Mode(), err)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

func TestDirCreateFollowsNoLink(t *testing.T) {
	d := newDir(t)
	elsewhere := t.TempDir()
	if err := os.Chmod(elsewhere, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(d.Cancels()); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(elsewhere, d.Cancels()); err != nil {
		t.Fatal(err)
	}
	if err := d.Create(); !errors.Is(err, bottle.ErrCorrupt) {
		t.Errorf("over a link: %v", err)
	}
	if st, err := os.Stat(elsewhere); err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("the link's target has mode %v, %v", st.Mode(), err)
	}
}

func TestDirLock(t *testing.T) {
	a := newDir(t)
	b, err := bottle.NewDir(a.Path())
	if err != nil {
		t.Fatal(err)
	}
	unlock, err := a.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := b.Lock(ctx); !errors.Is(err, bottle.ErrLocked) {
		t.Errorf("a second lock: %v", err)
	}
	got := make(chan error, 1)
	go func() {
		unlock, err := b.Lock(t.Context())
		if err == nil {
			unlock()
		}
		got <- err
	}()
	unlock()
	if err := <-got; err != nil {
		t.Errorf("after the first was released: %v", err)
	}

	release, err := a.Lease()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Lease(); !errors.Is(err, bottle.ErrLocked) {
		t.Errorf("a second lease: %v", err)
	}
	if unlock, err = b.Lock(t.Context()); err != nil {
		t.Errorf("the lease must not hold the lock: %v", err)
	} else {
		unlock()
	}
	release()
	if release, err = b.Lease(); err != nil {
		t.Errorf("after the lease was released: %v", err)
	} else {
		release()
	}
}

func TestDirLockExcludes(t *testing.T) {
	d := newDir(t)
	const workers, rounds = 8, 20
	var inside, n atomic.Int32
	errs := make(chan error, workers)
	for range workers {
		go func() {
			var err error
			for i := 0; i < rounds && err == nil; i++ {
				var unlock func()
				if unlock, err = d.Lock(t.Context()); err == nil {
					if inside.Add(1) != 1 {
						err = errors.New("two hold the lock")
					}
					n.Add(1)
					inside.Add(-1)
					unlock()
				}
			}
			errs <- err
		}()
	}
	for range workers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if n.Load() != workers*rounds {
		t.Errorf("counted %d, want %d", n.Load(), workers*rounds)
	}
}

func TestDirLockRefusesALink(t *testing.T) {
	d := newDir(t)
	if err := os.Symlink("metadata.json", d.Path("lock")); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Lock(t.Context()); err == nil {
		t.Error("locked through a link")
	}
}

// The places are a contract with what mounts them.
func TestDirPlaces(t *testing.T) {
	d, err := bottle.NewDir("/s/b/")
	if err != nil {
		t.Fatal(err)
	}
	for got, want := range map[string]string{
		d.Name(): "b", d.Path(): "/s/b", d.Routes(): "/s/b/etc/routes.yaml", d.Pipelock(): "/s/b/etc/pipelock.yaml",
		d.BundleConfig(): "/s/b/etc/bundle.json", d.Manifest(): "/s/b/manifest.yaml", d.Metadata(): "/s/b/metadata.json",
		d.CACert(): "/s/b/ca/ca.pem", d.CAKey(): "/s/b/ca/ca-key.pem", d.Requests(): "/s/b/queue/requests",
		d.Cancels(): "/s/b/queue/cancels", d.Decisions(): "/s/b/decisions", d.Records(): "/s/b/records",
		d.Journal(): "/s/b/journal", d.Kept(): "/s/b/kept", d.Audit(): "/s/b/audit.jsonl", d.AuditHead(): "/s/b/audit.head",
		d.MCPSocket(): "/s/b/run/agent/mcp.sock", d.KeySocket(): "/s/b/run/bundle/egress-keys.sock",
		d.InitStatus(): "/s/b/status/init.json", d.SpentFile(): "/s/b/status/egress/spent.json",
		d.Live(bottle.RoutesFile): "/s/b/run/bundle/egress/routes.yaml", d.Live(bottle.PipelockFile): "/s/b/run/bundle/pipelock/pipelock.yaml",
		d.DaemonConfig(bottle.DaemonSupervise): "/s/b/run/bundle/supervise/bundle.json", d.HopFile(): "/s/b/run/bundle/egress/hop.json", d.DaemonStatus(bottle.DaemonEgress): "/s/b/status/egress.json",
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
