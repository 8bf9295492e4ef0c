// Package logfile bounds the log of a process that writes to its stderr.
//
// What the agent does ends up in the logs of the bundle and of the keeper, so their size is the
// agent's to choose unless it is bounded, and a full disk stops the operator too: a
// revocation needs room for its journal. Rotation by name would need the directory,
// which the bundle does not have, and a new descriptor in every process; so the
// file is cut in place. A log is no record (that is the audit log): a crash or a full disk in the middle
// of a cut loses lines and nothing else.
package logfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// The bounds of a log file in bytes. It passes Max by one line at most.
const (
	Max  = 8 << 20
	Kept = 4 << 20 // what a cut leaves of it: the newest whole lines
)

// A Writer appends to a log file and keeps it within [Max]. It is safe for concurrent use.
type Writer struct {
	mu   sync.Mutex
	f    *os.File
	size int64 // of the file, as far as this process knows
}

// Bound returns w bounded if it is a regular file opened for appending, which is how
// bottle opens its own logs, and w itself if it is anything else: a terminal or a pipe is
// bounded by who reads it, and a file with a position can't be cut under it.
func Bound(w io.Writer) io.Writer {
	f, ok := w.(*os.File)
	if !ok {
		return w
	}
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return w
	}
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_APPEND == 0 {
		return w
	}
	return &Writer{f: f, size: st.Size()}
}

// Write appends b, which should be whole lines, and cuts the file first if it is over its bound.
func (w *Writer) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.size > Max {
		if err := w.cut(); err != nil {
			return 0, fmt.Errorf("cut the log: %w", err)
		}
	}
	n, err := w.f.Write(b)
	w.size += int64(n)
	return n, err
}

// cut leaves the newest lines. They are held in memory meanwhile: the file is opened for
// appending, so nothing can be moved within it.
func (w *Writer) cut() error {
	st, err := w.f.Stat()
	if err != nil {
		return err
	}
	w.size = st.Size()
	if w.size <= Max { // another process cut it
		return nil
	}
	// The descriptor may be for writing only. If the file can't be read, all of it goes.
	tail, err := w.tail(w.size - Kept)
	if terr := w.f.Truncate(0); terr != nil {
		return terr
	}
	w.size = 0
	note := fmt.Sprintf("logfile | the log was over %d MiB: %d bytes of older lines are gone\n", Max>>20, st.Size()-int64(len(tail)))
	if err != nil {
		note += fmt.Sprintf("logfile | the newest could not be kept: %v\n", err)
	}
	n, err := w.f.Write(append([]byte(note), tail...))
	w.size = int64(n)
	return err
}

// tail is what the file holds from the first whole line after offset.
func (w *Writer) tail(offset int64) ([]byte, error) {
	r, err := os.Open("/proc/self/fd/" + strconv.FormatUint(uint64(w.f.Fd()), 10))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b := make([]byte, Kept)
	n, err := r.ReadAt(b, offset)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	_, lines, _ := bytes.Cut(b[:n], []byte("\n"))
	return lines, nil
}
