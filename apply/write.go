package apply

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"bottle/bottle"
)

// maxConfig bounds a config file in bytes, as the bundle does.
const maxConfig = 4 << 20

// A target is a config file that is open for writing in place.
type target struct {
	name  string // routes.yaml
	f     *os.File
	doubt error // why it may not be what the bundle has mounted; nil for a widening
	chunk int
	fault func(string)
}

// openTarget opens a config file for writing without following a link, creating or truncating anything, and refuses
// what is not exactly one regular file under one name.
func (a *Applier) openTarget(name string, v view) (*target, error) {
	path := a.cfg.Dir.Path("etc", name)
	// O_NONBLOCK: the open of a FIFO without a reader fails (ENXIO) instead of waiting for one.
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		switch {
		case errors.Is(err, unix.ELOOP):
			return nil, fmt.Errorf("write %s: a symbolic link where the file should be; remove it, then run bottle restart %s: %w", path, a.cfg.Dir.Name(), bottle.ErrCorrupt)
		case errors.Is(err, unix.ENXIO):
			return nil, fmt.Errorf("write %s: a FIFO or socket where the file should be; remove it, then run bottle restart %s: %w", path, a.cfg.Dir.Name(), bottle.ErrCorrupt)
		}
		return nil, fmt.Errorf("write config: %w", err)
	}
	doubt, err := checkTarget(f, name, path, a.cfg.Dir.Name(), v)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &target{name: name, f: f, doubt: doubt, chunk: a.chunk, fault: a.cfg.Fault}, nil
}

func checkTarget(f *os.File, name, path, bottleName string, v view) (doubt, err error) {
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("write config: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("write %s: %s, not a regular file; remove it, then run bottle restart %s: %w", path, info.Mode().Type(), bottleName, bottle.ErrCorrupt)
	case !ok:
		return nil, fmt.Errorf("write %s: no inode known: %w", path, bottle.ErrCorrupt)
	case st.Nlink != 1:
		return nil, fmt.Errorf("write %s: it has %d names (hard links), so the write would change another file too; copy it, put the copy in its place, then run bottle restart %s: %w", path, st.Nlink, bottleName, bottle.ErrCorrupt)
	}
	return v.doubt(name, path, uint64(st.Dev), st.Ino, bottleName), nil //nolint:unconvert // the width of Dev differs between architectures
}

// write overwrites the file. It is never empty and never without a last line in between: the new bytes go over the old
// ones from the front, then the rest is cut off. A reader in between sees a mixture, which its revision line betrays.
func (t *target) write(b []byte) error {
	for off := 0; off < len(b); {
		t.fault(fmt.Sprintf("pwrite %s %d", t.name, off))
		n, err := t.f.WriteAt(b[off:min(off+t.chunk, len(b))], int64(off))
		off += n
		if err == nil && n == 0 {
			err = io.ErrShortWrite
		}
		if err != nil {
			return fmt.Errorf("write %s: %w", t.name, err)
		}
	}
	t.fault("ftruncate " + t.name)
	if err := t.f.Truncate(int64(len(b))); err != nil {
		return fmt.Errorf("write %s: %w", t.name, err)
	}
	t.fault("fsync " + t.name)
	if err := t.f.Sync(); err != nil {
		return fmt.Errorf("write %s: %w", t.name, err)
	}
	return nil
}

// targets are the files of one change.
type targets struct {
	open map[string]*target
	live bool // there is a bundle that is to take them
}

// openTargets opens every file that a change touches, so that what can be refused is refused before anything is
// written. What the bundle says of its mounts bars a widening only. The caller closes them.
func (a *Applier) openTargets(c *change, v view) (*targets, error) {
	ts := &targets{open: map[string]*target{}, live: v.up}
	for _, name := range c.touched() {
		t, err := a.openTarget(name, v)
		if err != nil {
			ts.close()
			return nil, err
		}
		ts.open[name] = t
		if t.doubt != nil && c.widens() {
			ts.close()
			return nil, t.doubt
		}
	}
	return ts, nil
}

// close needs no error: every write was followed by an fsync whose error counted.
func (ts *targets) close() {
	for _, t := range ts.open {
		_ = t.f.Close()
	}
}

// readConfig reads a config file as it is.
func (a *Applier) readConfig(name string) ([]byte, error) {
	b, err := bottle.ReadFile(filepath.Join(a.cfg.Dir.Path("etc"), name), maxConfig)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	return b, nil
}
