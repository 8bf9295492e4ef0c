package bottle

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Schema is the version of every JSON file in a state directory.
const Schema = 1

// maxJSON bounds a state file that has no bound of its own.
const maxJSON = 1 << 20

// ReadFile reads a regular file of at most limit bytes without following a link at its
// last element and without blocking on a FIFO. It is for files that the bundle or the
// agent may have put there. A larger file, another kind, or one with a second name (hard
// link) is an [ErrCorrupt].
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
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && sys.Nlink > 1 { // 0: replaced since it was opened
		return nil, fmt.Errorf("read %s: it has %d names (hard links), so another may write it: %w", path, sys.Nlink, ErrCorrupt)
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
		return fmt.Errorf("read %s: truncated or not JSON (%w): %w", path, err, ErrCorrupt)
	}
	switch {
	case head.Schema > Schema:
		return fmt.Errorf("read %s: schema %d, but this bottle knows %d at most; use the newer bottle: %w", path, head.Schema, Schema, ErrNewer)
	case head.Schema < 1:
		return fmt.Errorf("read %s: no schema: %w", path, ErrCorrupt)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("read %s: %w: %w", path, err, ErrCorrupt)
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
// directory. A reader sees the old content or the new, never a mixture. After it returns
// nil the new one is durable; after an error the old one stands, unless the fsync of the
// directory failed: then the new one is there, but a power cut may bring the old one back.
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
	dir, base := filepath.Dir(path), filepath.Base(path)
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
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
