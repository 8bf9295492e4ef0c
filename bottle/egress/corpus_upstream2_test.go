package egress_test

import (
	"fmt"
	"io"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// seenFrames is what came by a connection that speaks HTTP/2.
type seenFrames struct {
	streams []*seenStream
	wrong   []string
}

// A seenStream is one request as it came: nothing is joined, folded or checked.
type seenStream struct {
	id              uint32
	fields, trailer []hpack.HeaderField
	body            []byte
	headed          bool
	whole, answered bool
}

func (s *seenFrames) stream(id uint32) *seenStream {
	for _, q := range s.streams {
		if q.id == id {
			return q
		}
	}
	return nil
}

const roomy = 1 << 20 // bytes that egress may send of a body, and in all

// record2 is [recorder.record] for HTTP/2.
func (r *recorder) record2(rec *recorded, conn net.Conn) {
	seen := &seenFrames{}
	wrong := func(format string, args ...any) {
		r.mu.Lock()
		defer r.mu.Unlock()
		seen.wrong = append(seen.wrong, fmt.Sprintf(format, args...))
	}
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(conn, preface); err != nil {
		return
	}
	r.mu.Lock()
	rec.frames = seen
	r.mu.Unlock()
	if string(preface) != http2.ClientPreface {
		wrong("preface %q", preface)
		return
	}
	out := newFrameWriter()
	fr := http2.NewFramer(conn, conn)
	_ = fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: roomy})
	_ = fr.WriteWindowUpdate(0, roomy)
	dec := hpack.NewDecoder(4096, nil)
	var block []byte
	var ends bool
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			if err != io.EOF && !strings.Contains(err.Error(), "closed") && !strings.Contains(err.Error(), "reset") && err != io.ErrUnexpectedEOF { //nolint:errorlint // io's own
				wrong("frame: %v", err)
			}
			return
		}
		id := f.Header().StreamID
		headed := func(fragment []byte, last bool) {
			block = append(block, fragment...)
			if !last {
				return
			}
			fields, err := dec.DecodeFull(block)
			if err != nil {
				wrong("header block: %v", err)
			}
			block = nil
			r.headers(rec, id, fields, ends)
		}
		switch f := f.(type) {
		case *http2.HeadersFrame:
			ends = f.StreamEnded()
			headed(f.HeaderBlockFragment(), f.HeadersEnded())
		case *http2.ContinuationFrame:
			headed(f.HeaderBlockFragment(), f.HeadersEnded())
		case *http2.DataFrame:
			r.mu.Lock()
			if q := seen.stream(id); q == nil || q.whole {
				seen.wrong = append(seen.wrong, fmt.Sprintf("DATA %q on stream %d, which is not open", f.Data(), id))
			} else {
				q.body, q.whole = append(q.body, f.Data()...), f.StreamEnded()
			}
			r.mu.Unlock()
		case *http2.SettingsFrame:
			if !f.IsAck() {
				_ = fr.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !f.IsAck() {
				_ = fr.WritePing(true, f.Data)
			}
		}
		r.mu.Lock()
		var answers []rawFrame
		for _, q := range seen.streams {
			if q.answered || !q.whole && !r.early || !q.headed {
				continue
			}
			q.answered = true
			answers = append(answers, r.reply2(q)...)
		}
		r.mu.Unlock()
		if len(answers) > 0 {
			_, _ = conn.Write(out.bytes(answers...))
		}
	}
}

func (r *recorder) headers(rec *recorded, id uint32, fields []hpack.HeaderField, ends bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := rec.frames
	q := seen.stream(id)
	rec.used = true
	switch {
	case q == nil:
		seen.streams = append(seen.streams, &seenStream{id: id, fields: fields, headed: true, whole: ends})
	case q.whole || len(q.trailer) > 0:
		seen.wrong = append(seen.wrong, fmt.Sprintf("HEADERS on stream %d, which is over", id))
	default:
		q.trailer, q.whole = fields, ends
		if !ends {
			seen.wrong = append(seen.wrong, "a trailer that does not end the stream")
		}
	}
}

func (q *seenStream) get(name string) (all []string) {
	for _, f := range q.fields {
		if f.Name == name {
			all = append(all, f.Value)
		}
	}
	return all
}

func (q *seenStream) only(name string) string { return strings.Join(q.get(name), "+") }

// text is the request in the words of HTTP/1.1.
func (q *seenStream) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\n", q.only(":method"), q.only(":path"))
	for _, f := range slices.Concat(q.fields, q.trailer) {
		fmt.Fprintf(&b, "%s: %s\r\n", f.Name, f.Value)
	}
	return b.String() + "\r\n"
}

// request is what [mayArrive] judges.
func (q *seenStream) request() seenRequest {
	return seenRequest{method: q.only(":method"), target: q.only(":path"), hosts: q.get(":authority"), head: []byte(q.text()), body: q.body, whole: q.whole}
}

var (
	goodToken  = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")
	goodName   = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9a-z-]+$")
	goodTarget = regexp.MustCompile("^(/[!\"$-~]*|\\*)$")
	goodValue  = regexp.MustCompile(`^([^\x00-\x20\x7f]([^\x00-\x08\x0a-\x1f\x7f]*[^\x00-\x20\x7f])?)?$`)
)

// wrong is what in the request two servers could read in two ways, or one by HTTP/1.1 after
// this one.
func (q *seenStream) wrong() (all []string) {
	bad := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	regular := false
	for _, f := range q.fields {
		if strings.HasPrefix(f.Name, ":") {
			if regular {
				bad("%s after a field", f.Name)
			}
			continue
		}
		regular = true
		if !goodName.MatchString(f.Name) {
			bad("field name %q", f.Name)
		}
		if !goodValue.MatchString(f.Value) {
			bad("value of %s, %q", f.Name, f.Value)
		}
		switch f.Name {
		case "host", "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade", "http2-settings", "expect", "trailer":
			bad("field %s", f.Name)
		case "te":
			if f.Value != "trailers" {
				bad("te: %s", f.Value)
			}
		}
	}
	for name, form := range map[string]*regexp.Regexp{
		":method": goodToken, ":scheme": regexp.MustCompile("^https$"), ":authority": regexp.MustCompile(`^[a-z0-9.:-]+$`), ":path": goodTarget,
	} {
		if v := q.get(name); len(v) != 1 || !form.MatchString(v[0]) {
			bad("%s is %q", name, v)
		}
	}
	for _, f := range q.fields {
		if strings.HasPrefix(f.Name, ":") && !slices.Contains([]string{":method", ":scheme", ":authority", ":path"}, f.Name) {
			bad("field %s", f.Name)
		}
	}
	if len(q.trailer) > 0 {
		bad("a trailer %v", q.trailer)
	}
	if v := q.get("content-length"); len(v) > 1 {
		bad("content-length is %q", v)
	} else if len(v) == 1 {
		if n, err := strconv.Atoi(v[0]); err != nil || len(q.body) > n || q.whole && len(q.body) != n {
			bad("content-length is %s for %d bytes", v[0], len(q.body))
		}
	}
	return all
}

// lines is [recorded.lines] for HTTP/2.
func (s *seenFrames) lines(c *recorded, tokens map[string]string) (lines []string, raw string) {
	if len(s.streams) == 0 && len(s.wrong) == 0 {
		return []string{"dial " + c.host}, ""
	}
	for _, q := range s.streams {
		text := q.text() + string(q.body)
		if tag := tagOf(text); c.tag != "" && tag != "" && tag != c.tag {
			continue
		}
		raw += text
		line := fmt.Sprintf("https %s %s %s", c.host, q.only(":method"), q.only(":path"))
		if a := q.only(":authority"); a != c.host && strings.TrimSuffix(a, ":"+portOf(c.conn)) != c.host {
			line += fmt.Sprintf(" :authority=%q", a)
		}
		lines = append(lines, line+rest(q.body, q.whole, text, tokens))
		for _, w := range q.wrong() {
			lines = append(lines, "WRONG "+w)
		}
	}
	for _, w := range s.wrong {
		lines = append(lines, "WRONG "+w)
	}
	return lines, raw
}
