package bundle

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// maxLine bounds a line of a daemon's output, in bytes before escaping; the rest of the line is dropped
// and the cut is marked. A daemon logs what the agent sent, so neither length nor
// content may be trusted.
const maxLine = 8 << 10

// A daemon may write a burst of lines, say the traces of a panic, and after that as many
// a second as are worth reading. What is more is counted and dropped, for what a daemon
// logs is the agent's to provoke.
const (
	burstLines = 1000
	lineRate   = 200 // a second
)

// A quota says which of a daemon's lines are passed on. Once the burst is used up nothing
// is, until a second's worth has come together: in a flood that is one note about
// dropped lines a second and not one between any two.
type quota struct {
	left    float64
	at      time.Time // of left
	muted   bool
	dropped int // since the last line that was passed on
}

func newQuota(now time.Time) *quota { return &quota{left: burstLines, at: now} }

// allow decides about one line. dropped > 0 is how many lines are missing before it.
func (q *quota) allow(now time.Time) (ok bool, dropped int) {
	q.left = min(burstLines, q.left+lineRate*now.Sub(q.at).Seconds())
	q.at = now
	if q.left < 1 || q.muted && q.left < lineRate {
		q.muted = true
		q.dropped++
		return false, 0
	}
	q.left--
	q.muted = false
	dropped, q.dropped = q.dropped, 0
	return true, dropped
}

// A sink is where the lines of all daemons go, whole.
type sink struct {
	mu sync.Mutex
	w  io.Writer
}

func (s *sink) line(daemon, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, _ = io.WriteString(s.w, daemon+" | "+text+"\n") // nowhere to report it
}

func (s *sink) dropped(daemon string, n int) {
	if n > 0 {
		s.line(daemon, fmt.Sprintf("[%d lines dropped: more than %d a second]", n, lineRate))
	}
}

// An output reads one child's stdout and stderr, which share a pipe.
type output struct {
	r    *os.File
	done chan struct{}

	mu   sync.Mutex
	last string
}

// capture returns the output and the writing end for the child; the caller closes that. hear, if
// not nil, is told each line, as it came.
func capture(daemon string, to *sink, wg *sync.WaitGroup, hear func([]byte)) (*output, *os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	o := &output{r: r, done: make(chan struct{})}
	wg.Go(func() {
		defer close(o.done)
		defer r.Close()
		q := newQuota(time.Now())
		lines(r, func(raw []byte, line string) {
			if hear != nil {
				hear(raw)
			}
			o.mu.Lock()
			if strings.TrimSpace(line) != "" {
				o.last = line // dropped or not: it may be why the daemon ends
			}
			o.mu.Unlock()
			ok, missing := q.allow(time.Now())
			to.dropped(daemon, missing)
			if ok {
				to.line(daemon, line)
			}
		})
		to.dropped(daemon, q.dropped)
	})
	return o, w, nil
}

// close ends the capture even if a process that left the group holds the pipe.
func (o *output) close() { _ = o.r.Close() }

// lastLine is the newest line that is not blank: where programs put why they end.
func (o *output) lastLine() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.last
}

// lines calls f with each line, bounded, as it came and escaped, until r ends.
func lines(r io.Reader, f func(raw []byte, escaped string)) {
	br := bufio.NewReaderSize(r, maxLine)
	for {
		b, err := br.ReadSlice('\n')
		cut := errors.Is(err, bufio.ErrBufferFull)
		if len(b) > 0 {
			b = bytes.TrimRight(b, "\r\n")
			text := escape(string(b))
			if cut {
				text += " [cut]"
			}
			f(b, text)
		}
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = br.ReadSlice('\n')
		}
		if err != nil {
			return
		}
	}
}

// escape makes control characters, invalid UTF-8 and what reorders or hides text
// visible, so that a log line can't drive the terminal of whoever reads it.
func escape(s string) string {
	if !strings.ContainsFunc(s, hidden) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case hidden(r):
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
		i += n
	}
	return b.String()
}

func hidden(r rune) bool {
	switch {
	case r == '\t':
		return false
	case r < 0x20, r >= 0x7f && r < 0xa0: // C0, DEL, C1
		return true
	case r == utf8.RuneError:
		return true
	case r >= 0x200b && r <= 0x200f, r >= 0x2028 && r <= 0x202e, r >= 0x2060 && r <= 0x206f, r == 0xfeff, r == 0x061c:
		return true // zero width and bidi controls, line separators
	case r >= 0xe0000 && r <= 0xe007f: // tags
		return true
	}
	return false
}
