package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"bottle/bottle"
)

// maxTail is how much of a log is read at once, in bytes; all of ours are smaller. What is
// before that is passed by.
const maxTail = 32 << 20

// A logTail reads a log file on, whole lines at a time, through its rotation or its being cut.
type logTail struct {
	path  string
	older string // the file before it, which is read first; "" for none
	f     *os.File
	at    int64
}

func newLogTail(path, older string) *logTail { return &logTail{path: path, older: older} }

// Close closes the file.
func (t *logTail) Close() error {
	if t.f == nil {
		return nil
	}
	return t.f.Close()
}

// more returns the lines that came since. A file that is not there is empty.
func (t *logTail) more() ([]byte, error) {
	var out []byte
	if t.f == nil {
		f, err := openLog(t.path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		// In this order: if it is rotated between the two, both are the same file, and nothing is
		// passed over.
		if out, err = t.before(f); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		t.f, t.at = f, 0
	}
	b, err := t.read()
	out = append(out, b...)
	if err != nil {
		return out, err
	}
	now, err := os.Lstat(t.path)
	if err != nil { // rotated, and the next one has not come
		return out, nil //nolint:nilerr // it will, or the log is over
	}
	have, err := t.f.Stat()
	if err != nil {
		return out, err
	}
	if os.SameFile(have, now) {
		return out, nil
	}
	b, err = t.read() // what came before it was rotated
	out = append(out, b...)
	if err == nil {
		err = t.f.Close()
	}
	t.f, t.older = nil, ""
	if err != nil {
		return out, err
	}
	b, err = t.more()
	return append(out, b...), err
}

// before is what is in the older file, unless that is f.
func (t *logTail) before(f *os.File) ([]byte, error) {
	if t.older == "" {
		return nil, nil
	}
	o, err := openLog(t.older)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer o.Close()
	a, err := o.Stat()
	if err != nil {
		return nil, err
	}
	if b, err := f.Stat(); err != nil || os.SameFile(a, b) {
		return nil, err
	}
	return (&logTail{path: t.older, f: o}).read()
}

// read returns the whole lines from where it is to the file's end.
func (t *logTail) read() ([]byte, error) {
	st, err := t.f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() < t.at { // cut: what is left was read before, most of it
		t.at = st.Size()
	}
	from := max(t.at, st.Size()-maxTail)
	b, err := io.ReadAll(io.NewSectionReader(t.f, from, st.Size()-from))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", t.path, err)
	}
	n := bytes.LastIndexByte(b, '\n') + 1
	t.at = from + int64(n)
	return b[:n], nil
}

// openLog opens a log, which the bundle may have put there: not by a link, and no FIFO.
func openLog(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("read %s: not a regular file: %w", path, bottle.ErrCorrupt), err, f.Close())
	}
	return f, nil
}
