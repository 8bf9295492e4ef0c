package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// settle opens the log and makes it agree with its head, under the lock. What it mends is what a crash of this
// package can leave: no files yet, a whole line past the head, or a torn one. For the rest see ErrTampered.
func (l *Log) settle() (*os.File, head, error) {
	h, err := readHead(l.cfg.HeadPath)
	noHead := errors.Is(err, fs.ErrNotExist)
	switch {
	case errors.Is(err, errHead):
		return nil, head{}, l.tampered(fmt.Sprintf("%s is not an audit head", l.cfg.HeadPath))
	case err != nil && !noHead:
		return nil, head{}, err
	}

	// Only the first line may find no file: later a log that is gone must not be begun anew.
	flags := os.O_RDWR | os.O_APPEND
	if noHead || h.Seq == 0 {
		flags |= os.O_CREATE
	}
	f, info, err := openRegular(l.cfg.Path, flags)
	switch {
	case errors.Is(err, fs.ErrNotExist) && h.Seq > 0:
		return nil, head{}, l.tampered(fmt.Sprintf("%s is gone, with lines 1 to %d", l.cfg.Path, h.Seq))
	case err != nil:
		return nil, head{}, fmt.Errorf("open audit log: %w", err)
	}
	switch {
	case !noHead:
		h, err = l.reconcile(f, info.Size(), h)
	case info.Size() > 0:
		err = l.tampered(fmt.Sprintf("%s is gone", l.cfg.HeadPath))
	default:
		h = firstHead()
		err = errors.Join(syncDir(filepath.Dir(l.cfg.Path)), writeHead(l.cfg.HeadPath, h))
	}
	if err != nil {
		_ = f.Close()
		return nil, head{}, err
	}
	return f, h, nil
}

// reconcile compares the log's end with the head, and settles what lies past it.
func (l *Log) reconcile(f *os.File, size int64, h head) (head, error) {
	if size < h.Size {
		return head{}, l.tampered(fmt.Sprintf("the log was cut from %d bytes to %d", h.Size, size))
	}
	if h.Seq > 0 {
		last, err := lineEndingAt(f, h.Size)
		if err != nil {
			return head{}, err
		}
		e, err := decode(last)
		if errors.Is(err, ErrNewer) {
			return head{}, fmt.Errorf("%s: %w", l.cfg.Path, err)
		}
		if err != nil || e.Seq != h.Seq || e.Hash != h.Hash {
			return head{}, l.tampered(fmt.Sprintf("line %d is not the one that was acknowledged", h.Seq))
		}
	}
	if size == h.Size {
		return h, nil
	}
	if size-h.Size > MaxLine {
		return head{}, l.tampered(fmt.Sprintf("%d bytes follow the last acknowledged line", size-h.Size))
	}
	rest := make([]byte, size-h.Size)
	if _, err := f.ReadAt(rest, h.Size); err != nil {
		return head{}, fmt.Errorf("read audit log: %w", err)
	}
	return l.settleRest(f, h, rest)
}

func (l *Log) settleRest(f *os.File, h head, rest []byte) (head, error) {
	kind, e, err := classify(h, rest)
	switch kind {
	case restAdopt:
		next := head{Schema: Schema, Seq: e.Seq, Hash: e.Hash, Size: h.Size + int64(len(rest))}
		// The writer may have been killed before its own sync.
		if err := f.Sync(); err != nil {
			return head{}, fmt.Errorf("sync audit log: %w", err)
		}
		return next, writeHead(l.cfg.HeadPath, next)
	case restTorn:
		if err := errors.Join(f.Truncate(h.Size), f.Sync()); err != nil {
			return head{}, fmt.Errorf("cut the torn line off the audit log: %w", err)
		}
		return h, nil
	default:
		if errors.Is(err, ErrNewer) {
			return head{}, fmt.Errorf("%s: %w", l.cfg.Path, err)
		}
		return head{}, l.tampered("what follows the last acknowledged line was not written by this log")
	}
}

type restKind int

const (
	restForeign restKind = iota
	restAdopt            // the one whole line that a crash between line and head leaves
	restTorn             // a part of one
)

// classify judges what lies past the head.
func classify(h head, rest []byte) (restKind, Entry, error) {
	// A block that a power cut kept from the disk reads as zeros; no line holds one.
	if bytes.IndexByte(rest, '\n') < 0 || bytes.IndexByte(rest, 0) >= 0 {
		if len(rest) > MaxLine {
			return restForeign, Entry{}, nil
		}
		return restTorn, Entry{}, nil
	}
	e, err := decode(rest[:len(rest)-1])
	if err != nil || rest[len(rest)-1] != '\n' || e.Seq != h.Seq+1 || e.Prev != h.Hash {
		return restForeign, Entry{}, err
	}
	return restAdopt, e, nil
}

// lineEndingAt returns the line whose newline is the byte before end, without it; nil where there is none.
func lineEndingAt(f io.ReaderAt, end int64) ([]byte, error) {
	start := max(end-MaxLine-1, 0)
	buf := make([]byte, end-start)
	if _, err := f.ReadAt(buf, start); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read audit log: %w", err)
	}
	line, ok := bytes.CutSuffix(buf, []byte("\n"))
	if !ok {
		return nil, nil
	}
	return line[bytes.LastIndexByte(line, '\n')+1:], nil
}

func (l *Log) tampered(what string) error {
	return fmt.Errorf("%w: %s: see `bottle audit --verify`; to start a new log, keep %s and %s elsewhere",
		ErrTampered, what, l.cfg.Path, l.cfg.HeadPath)
}
