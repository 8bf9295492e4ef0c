package logfile

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// OlderSuffix is what the file before the newest is called, after a [Rotating] log's path.
const OlderSuffix = ".1"

// A Rotating log is two files: path, and the one before it. It is for who has the directory to
// itself. Unlike [Writer] it copies nothing when it is full, and who reads along finds the rest
// of the older file by its descriptor. It is safe for concurrent use.
type Rotating struct {
	path string
	max  int64

	mu   sync.Mutex
	f    *os.File
	size int64
}

// OpenRotating opens the log at path, or makes it, with mode 0600. It passes max, in bytes, by
// no more than one write, and both files together twice that. A link at path is refused.
func OpenRotating(path string, limit int64) (*Rotating, error) {
	r := &Rotating{path: path, max: limit}
	if err := r.open(); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *Rotating) open() error {
	f, err := os.OpenFile(r.path, os.O_RDWR|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is no file", r.path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("open the log: %w", err), f.Close())
	}
	r.f, r.size = f, st.Size()
	last := make([]byte, 1)
	if r.size > 0 {
		if _, err := f.ReadAt(last, r.size-1); err == nil && last[0] != '\n' {
			_ = r.write([]byte("\n")) // what a crash tore is a line of its own
		}
	}
	return nil
}

// Write appends b, which must be whole lines: all of it or, with an error, nothing.
func (r *Rotating) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.f == nil {
		return 0, os.ErrClosed
	}
	if r.size > 0 && r.size+int64(len(b)) > r.max {
		if err := r.rotate(); err != nil {
			return 0, err
		}
	}
	if err := r.write(b); err != nil {
		return 0, fmt.Errorf("write the log: %w", err)
	}
	return len(b), nil
}

func (r *Rotating) write(b []byte) error {
	n, err := r.f.Write(b)
	if err != nil && n > 0 { // a full disk: half a line would spoil the next
		if terr := r.f.Truncate(r.size); terr != nil {
			r.size += int64(n)
		}
		return err
	}
	r.size += int64(n)
	return err
}

func (r *Rotating) rotate() error {
	if err := os.Rename(r.path, r.path+OlderSuffix); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("rotate the log: %w", err)
	}
	full := r.f
	if err := r.open(); err != nil {
		return err // and on with the full one, wherever it is: the next write tries again
	}
	_ = full.Close() // nothing of it is in a buffer of ours
	return nil
}

// Close closes the file. What is written after that is refused.
func (r *Rotating) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.f == nil {
		return nil
	}
	f := r.f
	r.f = nil
	return f.Close()
}
