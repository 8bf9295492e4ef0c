package audit

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
)

// MaxRead bounds the entries that one Read returns.
const MaxRead = 10_000

// Read returns the entries from sequence number from on, oldest first: at most limit of them, or MaxRead where limit
// is 0 or more than that. The last one's Seq+1 is where to go on. A line that is being written is left out. At a
// damaged line it returns the entries before it, and an error that names the line.
func Read(path string, from uint64, limit int) ([]Entry, error) {
	if limit <= 0 || limit > MaxRead {
		limit = MaxRead
	}
	f, _, err := openRegular(path, os.O_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("read audit log: %w", err)
	}
	defer f.Close()

	var entries []Entry
	lines := newLines(f)
	for n := 1; len(entries) < limit; n++ {
		line, err := lines.next()
		if errors.Is(err, io.EOF) {
			break
		}
		var e Entry
		if err == nil {
			e, err = decode(line)
		}
		if err != nil {
			return entries, fmt.Errorf("%s: line %d: %w", path, n, err)
		}
		if e.Seq >= from {
			entries = append(entries, e)
		}
	}
	return entries, nil
}

var errLong = fmt.Errorf("longer than %d bytes", MaxLine)

// lines reads whole lines in bounded memory.
type lines struct {
	r    *bufio.Reader
	read int64 // bytes, up to the end of the last whole line
}

func newLines(r io.Reader) *lines { return &lines{r: bufio.NewReaderSize(r, MaxLine)} }

// next returns a line without its newline, valid until the next call; errLong for one that it skipped; io.EOF where
// no whole line is left.
func (l *lines) next() ([]byte, error) {
	line, err := l.r.ReadSlice('\n')
	size := int64(len(line))
	long := false
	for errors.Is(err, bufio.ErrBufferFull) {
		long = true
		line, err = l.r.ReadSlice('\n')
		size += int64(len(line))
	}
	switch {
	case errors.Is(err, io.EOF):
		return nil, io.EOF
	case err != nil:
		return nil, fmt.Errorf("read audit log: %w", err)
	}
	l.read += size
	if long {
		return nil, errLong
	}
	return line[:len(line)-1], nil
}
