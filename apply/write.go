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

// A target is a config file that is open for writing in place, and known to be the one that the bundle has mounted.
type target struct {
	name  string // routes.yaml
	f     *os.File
	chunk int
	fault func(string)
}

// openTarget opens a config file for writing without following a link, creating or truncating anything, and refuses
// what is not exactly one regular file under one name. With a mounted, it must be the very inode that the bundle sees:
// an editor that writes by rename leaves the bundle on the old one, and a write would then be in force nowhere.
func (a *Applier) openTarget(name string, mounted *bottle.MountedFile) (*target, error) {
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
	if err := checkTarget(f, path, a.cfg.Dir.Name(), mounted); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &target{name: name, f: f, chunk: a.chunk, fault: a.cfg.Fault}, nil
}

func checkTarget(f *os.File, path, bottleName string, mounted *bottle.MountedFile) error {
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("write config: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.Mode().IsRegular():
		return fmt.Errorf("write %s: %s, not a regular file; remove it, then run bottle restart %s: %w", path, info.Mode().Type(), bottleName, bottle.ErrCorrupt)
	case !ok:
		return fmt.Errorf("write %s: no inode known: %w", path, bottle.ErrCorrupt)
	case st.Nlink != 1:
		return fmt.Errorf("write %s: it has %d names (hard links), so the write would change another file too; copy it, put the copy in its place, then run bottle restart %s: %w", path, st.Nlink, bottleName, bottle.ErrCorrupt)
	case mounted != nil && (st.Dev != mounted.Dev || st.Ino != mounted.Ino):
		return fmt.Errorf("write %s: the bundle has another file mounted (inode %d, not %d; an editor replaced it?); run bottle restart %s: %w", path, mounted.Ino, st.Ino, bottleName, bottle.ErrCorrupt)
	}
	return nil
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
	live bool // there is a bundle that has them mounted
}

// openTargets opens every file that a change touches, so that what can be refused is refused before anything is
// written. st is nil if no bundle runs. The caller closes them.
func (a *Applier) openTargets(c *change, st *bottle.InitStatus) (*targets, error) {
	ts := &targets{open: map[string]*target{}, live: st != nil}
	for _, name := range c.touched() {
		m, err := a.mountOf(name, st)
		if err != nil {
			ts.close()
			return nil, err
		}
		t, err := a.openTarget(name, m)
		if err != nil {
			ts.close()
			return nil, err
		}
		ts.open[name] = t
	}
	return ts, nil
}

// mountOf returns what the bundle says of a file, or nil if there is no bundle.
func (a *Applier) mountOf(name string, st *bottle.InitStatus) (*bottle.MountedFile, error) {
	if st == nil {
		return nil, nil //nolint:nilnil // without a bundle there is nothing to compare with
	}
	m, ok := st.Files[name]
	if !ok {
		return nil, fmt.Errorf("write %s: the bundle does not say which file it has mounted; run bottle restart %s: %w", name, a.cfg.Dir.Name(), bottle.ErrCorrupt)
	}
	return &m, nil
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
