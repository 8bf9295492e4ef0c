package prompt

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// JSON writes v indented and in ASCII: every other character is a \u escape, so that the
// output of --json is as harmless on a terminal as in a file, and parses to the same value.
func JSON(w io.Writer, v any) error {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("encode json: %w", err)
	}
	_, err := w.Write(ASCII(buf.Bytes()))
	return err
}

// ASCII returns JSON text with each character outside printable ASCII as a \u escape.
// Outside strings JSON has none, so the meaning is unchanged.
func ASCII(b []byte) []byte {
	out := make([]byte, 0, len(b))
	for len(b) > 0 {
		r, size := utf8.DecodeRune(b)
		switch {
		case r == 0x7f:
			out = append(out, `\u007f`...)
		case r < utf8.RuneSelf:
			out = append(out, b[0])
		case r > 0xffff:
			hi, lo := utf16.EncodeRune(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, hi, lo)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		b = b[size:]
	}
	return out
}

// A LogWriter passes log lines on with [ASCII] applied, and any control character but the
// line's end escaped.
type LogWriter struct{ W io.Writer }

// Write implements [io.Writer]; it reports the length of p, not of what was written.
func (l LogWriter) Write(p []byte) (int, error) {
	out := ASCII(p)
	clean := out[:0:0]
	for i, c := range out {
		if unicode.IsControl(rune(c)) && (c != '\n' || i != len(out)-1) {
			clean = fmt.Appendf(clean, `\u%04x`, c)
			continue
		}
		clean = append(clean, c)
	}
	if _, err := l.W.Write(clean); err != nil {
		return 0, err
	}
	return len(p), nil
}

// LineWriter returns a writer that passes lines on with [Text] applied to each. A line
// longer than 64 KiB comes out in pieces.
func LineWriter(w io.Writer) io.Writer { return &lineWriter{w: w} }

type lineWriter struct {
	w   io.Writer
	buf []byte
}

const maxLogLine = 64 << 10

func (l *lineWriter) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		if i < 0 && len(l.buf)+len(p) < maxLogLine {
			l.buf = append(l.buf, p...)
			return n, nil
		}
		end, skip := i, i+1
		if i < 0 || len(l.buf)+i > maxLogLine {
			end = min(len(p), maxLogLine)
			skip = end
		}
		l.buf = append(l.buf, p[:end]...)
		if _, err := fmt.Fprintln(l.w, Text(string(l.buf))); err != nil {
			return 0, err
		}
		l.buf, p = l.buf[:0], p[skip:]
	}
	return n, nil
}
