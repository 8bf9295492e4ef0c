package mcp

import (
	"bufio"
	"bytes"
	"errors"
	"net"
	"time"
)

// errLongLine is returned for a line over the bound; the next one can be read.
var errLongLine = errors.New("line too long")

// A lineReader reads lines of at most max bytes. Between lines it waits for ever; a line
// that was begun must end within timeout, so that a peer can't hold memory by dribbling.
type lineReader struct {
	nc      net.Conn
	r       *bufio.Reader
	max     int
	timeout time.Duration
}

func newLineReader(nc net.Conn, limit int, timeout time.Duration) *lineReader {
	return &lineReader{nc: nc, r: bufio.NewReaderSize(nc, 4<<10), max: limit, timeout: timeout}
}

// next returns the next line that is not blank, without its end, in memory of its own.
func (l *lineReader) next() ([]byte, error) {
	for {
		line, err := l.read()
		if err != nil {
			return nil, err
		}
		if line = bytes.TrimSpace(line); len(line) > 0 {
			return line, nil
		}
	}
}

func (l *lineReader) read() ([]byte, error) {
	if _, err := l.r.Peek(1); err != nil {
		return nil, err
	}
	if head, _ := l.r.Peek(l.r.Buffered()); bytes.IndexByte(head, '\n') < 0 {
		if err := l.nc.SetReadDeadline(time.Now().Add(l.timeout)); err != nil {
			return nil, err
		}
		defer l.nc.SetReadDeadline(time.Time{}) //nolint:errcheck // a closed connection shows at the next read
	}
	var line []byte
	long := false
	for {
		part, err := l.r.ReadSlice('\n')
		if long = long || len(line)+len(part) > l.max+1; long {
			line = nil
		} else {
			line = append(line, part...)
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
		case err != nil:
			return nil, err
		case long:
			return nil, errLongLine
		default:
			return line, nil
		}
	}
}
