package audit

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// index knows where in the log the lines of each change are. Lines that do not read are left out: Verify reports
// them, and recovery must not hang on them.
type index struct {
	of   os.FileInfo // the log that it was read from
	size int64       // how much of it
	at   map[changeEvent]span
}

type changeEvent struct {
	change string
	event  Event
}

type span struct {
	offset int64
	length int
}

// catchUp reads what was appended since the last call, up to size. Another file under the same name starts it over.
func (x *index) catchUp(f *os.File, size int64) error {
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("index audit log: %w", err)
	}
	if x.at == nil || !os.SameFile(x.of, info) || size < x.size {
		*x = index{of: info, at: make(map[changeEvent]span)}
	}
	base := x.size
	in := newLines(io.NewSectionReader(f, base, size-base))
	for {
		line, err := in.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		x.size = base + in.read
		if errors.Is(err, errLong) {
			continue
		}
		if err != nil {
			return err
		}
		e, err := decode(line)
		key := changeEvent{e.Change, e.Event}
		if _, known := x.at[key]; err != nil || e.Change == "" || known {
			continue
		}
		x.at[key] = span{offset: x.size - int64(len(line)) - 1, length: len(line)}
	}
}

func (x *index) find(f io.ReaderAt, change string, event Event) (Entry, bool, error) {
	where, ok := x.at[changeEvent{change, event}]
	if !ok {
		return Entry{}, false, nil
	}
	line := make([]byte, where.length)
	if _, err := f.ReadAt(line, where.offset); err != nil {
		return Entry{}, false, fmt.Errorf("read audit log: %w", err)
	}
	e, err := decode(line)
	if err != nil {
		return Entry{}, false, fmt.Errorf("read audit log at byte %d: %w", where.offset, err)
	}
	return e, true, nil
}
