package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

const maxFaults = 1000 // listed in a Report

// Report is what Verify found. The log is sound when Faults is empty.
type Report struct {
	Lines  uint64   // whole lines, but for an unacknowledged one
	Head   string   // hash of the last of them, all zeros for none. Compare it with a copy kept elsewhere
	Faults []Fault  // the first 1000
	Notes  []string // what a crash left and the next Append settles: no fault
}

// Fault is one thing that is wrong.
type Fault struct {
	Line    int    // in the file, from 1
	Seq     uint64 // as the line claims; 0 where it cannot be read
	Problem string
}

// Verify reads a whole log and finds each line that was changed, dropped, moved, put in or cut off. It returns an
// error only where it cannot judge: the files cannot be read, or are of a newer schema.
//
// It writes nothing. It holds the log's lock only for the moment in which it reads the head, so that appends go on.
func Verify(path, headPath string) (Report, error) {
	s, done, err := snapshot(path, headPath)
	if err != nil {
		return Report{}, err
	}
	defer done()
	report, err := s.verify()
	if err != nil {
		return Report{}, fmt.Errorf("%s: %w", path, err)
	}
	return report, nil
}

// state is what log and head were at one moment.
type state struct {
	log     io.ReaderAt // nil where it is missing
	size    int64       // of the log in bytes
	head    *head       // nil where headErr is set
	headErr error       // fs.ErrNotExist or errHead
}

// snapshot takes the state under the lock. Where the lock cannot be opened, as in a copy or with another user's
// rights, nobody is writing or it cannot be helped.
func snapshot(path, headPath string) (s state, done func(), err error) {
	ctx, cancel := context.WithTimeout(context.Background(), lockWait)
	defer cancel()
	lock, err := acquire(ctx, lockPath(path), syscall.LOCK_SH)
	switch {
	case err == nil:
		defer lock.Close()
	case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission):
		return state{}, nil, err
	}

	h, err := readHead(headPath)
	switch {
	case err == nil:
		s.head = &h
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, errHead):
		s.headErr = err
	default:
		return state{}, nil, err
	}
	done = func() {}
	f, info, err := openRegular(path, os.O_RDONLY)
	switch {
	case err == nil:
		s.log, s.size = f, info.Size()
		done = func() { _ = f.Close() }
	case !errors.Is(err, fs.ErrNotExist) || errors.Is(s.headErr, fs.ErrNotExist):
		return state{}, nil, fmt.Errorf("read audit log: %w", err)
	}
	return s, done, nil
}

func (s state) verify() (Report, error) {
	h := s.head
	v := verifier{state: s, report: Report{Head: genesis}, readable: true, passed: h != nil && h.Seq == 0}
	if s.log == nil {
		v.end()
		return v.report, nil
	}
	in := newLines(io.NewSectionReader(s.log, 0, s.size))
	for !v.passed || in.read != h.Size {
		line, err := in.next()
		if errors.Is(err, io.EOF) {
			v.end()
			return v.report, nil
		}
		if err == nil || errors.Is(err, errLong) {
			err = v.line(line, err)
		}
		if err != nil {
			return Report{}, err
		}
	}
	rest := make([]byte, min(s.size-h.Size, MaxLine+1))
	n, err := s.log.ReadAt(rest, h.Size)
	if err != nil && !errors.Is(err, io.EOF) { // shorter than size: an append has just cut a torn line off
		return Report{}, fmt.Errorf("read audit log: %w", err)
	}
	if n > 0 {
		err = v.rest(rest[:n])
		if err != nil {
			return Report{}, err
		}
	}
	return v.report, nil
}

type verifier struct {
	state
	report   Report
	n        int    // lines read
	seq      uint64 // of the last line, as it claims or as it should be
	readable bool   // whether that line could be read
	passed   bool   // whether the line that the head names was met
}

func (v *verifier) fault(line int, seq uint64, format string, args ...any) {
	if len(v.report.Faults) < maxFaults {
		v.report.Faults = append(v.report.Faults, Fault{Line: line, Seq: seq, Problem: fmt.Sprintf(format, args...)})
	}
}

// line checks one line against the one before, and then goes by what it claims, so that one change is one fault. It
// returns an error only for a newer schema.
func (v *verifier) line(raw []byte, err error) error {
	v.n++
	v.report.Lines++
	var e Entry
	if err == nil {
		e, err = decode(raw)
	}
	if errors.Is(err, ErrNewer) {
		return fmt.Errorf("line %d: %w", v.n, err)
	}
	want := v.seq + 1
	switch {
	case err != nil:
		v.fault(v.n, e.Seq, "%v", err)
	case e.Seq > want:
		v.fault(v.n, e.Seq, "entries %d to %d are missing before it: dropped or moved", want, e.Seq-1)
	case e.Seq < want:
		v.fault(v.n, e.Seq, "out of order: entry %d was expected: moved or put in", want)
	case e.Prev != v.report.Head && v.readable:
		v.fault(v.n, e.Seq, "does not follow from the entry before it: one of the two was changed or put in")
	}
	if err != nil && !errors.Is(err, errHash) {
		v.seq, v.readable = want, false
		return nil
	}
	v.seq, v.readable, v.report.Head = e.Seq, true, e.Hash
	if v.head != nil && err == nil && e.Seq == v.head.Seq && e.Hash == v.head.Hash {
		v.passed = true
	}
	return nil
}

// end says why a log that was read to its end does not end where the head says.
func (v *verifier) end() {
	switch h := v.head; {
	case errors.Is(v.headErr, fs.ErrNotExist) && v.size == 0:
	case h == nil:
		v.fault(v.n, 0, "audit.head is missing or damaged: whether lines were cut off the end cannot be told")
	case h.Seq == 0:
	case v.passed:
		v.fault(v.n, v.seq, "entry %d ends elsewhere than audit.head says", h.Seq)
	case v.seq < h.Seq:
		v.fault(v.n+1, 0, "cut off: entries %d to %d are missing at the end", v.seq+1, h.Seq)
	default:
		v.fault(v.n, h.Seq, "entry %d is not the one that audit.head acknowledges", h.Seq)
	}
}

// rest judges what follows the line that the head names, as Append would.
func (v *verifier) rest(rest []byte) error {
	kind, e, err := classify(*v.head, rest)
	if errors.Is(err, ErrNewer) {
		return fmt.Errorf("line %d: %w", v.n+1, err)
	}
	switch kind {
	case restAdopt:
		v.note("a crash left entry %d unacknowledged; the next append adopts it", e.Seq)
	case restTorn:
		v.note("a crash left %d bytes of a line that was never acknowledged; the next append cuts them off", len(rest))
	default:
		v.fault(v.n+1, e.Seq, "follows the last acknowledged entry, but was not written by this log: put in")
	}
	return nil
}

func (v *verifier) note(format string, args ...any) {
	v.report.Notes = append(v.report.Notes, fmt.Sprintf(format, args...))
}
