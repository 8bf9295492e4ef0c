package egress_test

import (
	"bytes"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// A reading is a way in which some server may read a byte stream as requests. Each field is
// a leniency that has been found in one.
type reading struct {
	lengthFirst bool // Content-Length counts where Transfer-Encoding is there too
	lastLength  bool // of two Content-Lengths the last counts
	looseTE     bool // anything with "chunked" in it is chunked, in a field of any such name
	bareCR      bool // a CR alone ends a line
	looseNames  bool // of a field's name only the letters and digits count
	unfold      bool // a line that begins with a space goes on with the one before
}

// readings are the strict one, each leniency by itself, and all together.
func readings() []reading {
	return []reading{
		{},
		{lengthFirst: true},
		{lastLength: true},
		{looseTE: true, looseNames: true},
		{bareCR: true},
		{looseNames: true},
		{unfold: true},
		{lengthFirst: true, lastLength: true, looseTE: true, bareCR: true, looseNames: true, unfold: true},
	}
}

// A seenRequest is one that an upstream was sent.
type seenRequest struct {
	method, target string
	hosts          []string
	head           []byte // with the line that ends it
	body           []byte
	upgrade        bool
	whole          bool
}

// read takes a byte stream apart. What is left at its end comes back as a last request that
// is not whole.
func (v reading) read(b []byte) []seenRequest {
	var all []seenRequest
	for {
		for len(b) > 0 && (b[0] == '\r' || b[0] == '\n') {
			b = b[1:]
		}
		if len(b) == 0 {
			return all
		}
		r, n := v.one(b)
		all = append(all, r)
		if b = b[n:]; !r.whole {
			return all
		}
	}
}

func (v reading) line(b []byte) (line []byte, n int) {
	ends := "\n"
	if v.bareCR {
		ends = "\r\n"
	}
	i := bytes.IndexAny(b, ends)
	if i < 0 {
		return nil, 0
	}
	if b[i] == '\r' && i+1 < len(b) && b[i+1] == '\n' {
		return b[:i], i + 2
	}
	return bytes.TrimSuffix(b[:i], []byte("\r")), i + 1
}

func (v reading) one(b []byte) (r seenRequest, n int) {
	line, n := v.line(b)
	if n == 0 {
		return seenRequest{method: "unfinished", target: strconv.Quote(string(b))}, len(b)
	}
	words := strings.Fields(string(line))
	if len(words) > 0 {
		r.method = words[0]
	}
	if len(words) > 1 {
		r.target = words[1]
	}
	var lengths []int
	chunked, name := false, ""
	for {
		line, m := v.line(b[n:])
		if m == 0 {
			return seenRequest{method: "unfinished", target: strconv.Quote(string(b))}, len(b)
		}
		n += m
		if len(line) == 0 {
			break
		}
		value := ""
		if v.unfold && (line[0] == ' ' || line[0] == '\t') {
			value = string(line)
		} else {
			name, value, _ = strings.Cut(string(line), ":")
			name = v.name(name)
		}
		value = strings.Trim(value, " \t\v\f\r")
		switch name {
		case "host":
			r.hosts = append(r.hosts, value)
		case "upgrade":
			r.upgrade = true
		case "content-length":
			if l, err := strconv.Atoi(value); err == nil && l >= 0 {
				lengths = append(lengths, l)
			}
		case "transfer-encoding":
			chunked = chunked || strings.EqualFold(value, "chunked") || v.looseTE && strings.Contains(strings.ToLower(value), "chunked")
		}
	}
	r.head, r.whole = b[:n], true
	switch {
	case chunked && (!v.lengthFirst || len(lengths) == 0):
		m := 0
		r.body, m, r.whole = v.chunks(b[n:])
		n += m
	case len(lengths) > 0:
		l := lengths[0]
		if v.lastLength {
			l = lengths[len(lengths)-1]
		}
		if r.whole = l <= len(b)-n; !r.whole {
			l = len(b) - n
		}
		r.body, n = b[n:n+l], n+l
	}
	return r, n
}

func (v reading) name(s string) string {
	s = strings.ToLower(s)
	if !v.looseNames {
		return s
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r == '_':
			return '-'
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '-':
			return r
		}
		return -1
	}, s)
}

func (v reading) chunks(b []byte) (body []byte, n int, whole bool) {
	for {
		line, m := v.line(b[n:])
		if m == 0 {
			return body, len(b), false
		}
		n += m
		hex := strings.ToLower(string(line))
		if i := strings.IndexFunc(hex, func(r rune) bool { return !strings.ContainsRune("0123456789abcdef", r) }); i >= 0 {
			hex = hex[:i]
		}
		size, err := strconv.ParseInt(hex, 16, 32)
		if err != nil {
			return body, len(b), false
		}
		if size == 0 {
			break
		}
		if n+int(size) > len(b) {
			return append(body, b[n:]...), len(b), false
		}
		body = append(body, b[n:n+int(size)]...)
		n += int(size)
		_, m = v.line(b[n:])
		n += m
	}
	for { // the trailer
		line, m := v.line(b[n:])
		if n += m; m == 0 {
			return body, len(b), false
		}
		if len(line) == 0 {
			return body, n, true
		}
	}
}

var (
	goodRequestLine = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+ (?:/|http://[a-z0-9.-]+(?::[1-9][0-9]*)?/)[!-\"$-~]* HTTP/1\\.1$")
	goodConnect     = regexp.MustCompile(`^CONNECT [a-z0-9.-]+:[1-9][0-9]* HTTP/1\.1$`)
	goodField       = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+: ?[^\\x00-\\x08\\x0a-\\x1f\\x7f]*$")
)

// judge reads what an upstream was sent in every way, and returns the requests and what is
// wrong with them: a head that is not in the one strict form, more than one frame for a
// body, or two ways to read it that disagree.
func judge(raw []byte) (reqs []seenRequest, wrong []string) {
	reqs = reading{}.read(raw)
	for _, r := range reqs {
		if !r.whole && r.head == nil {
			wrong = append(wrong, "unfinished head "+r.target)
			continue
		}
		lines := strings.Split(strings.TrimSuffix(string(r.head), "\r\n\r\n"), "\r\n")
		if !goodRequestLine.MatchString(lines[0]) && !goodConnect.MatchString(lines[0]) {
			wrong = append(wrong, fmt.Sprintf("request line %q", lines[0]))
		}
		frames := 0
		for _, l := range lines[1:] {
			if !goodField.MatchString(l) || strings.ContainsAny(l, "\r\n\x00") {
				wrong = append(wrong, fmt.Sprintf("field %q", l))
			}
			switch name, value, _ := strings.Cut(strings.ToLower(l), ":"); name {
			case "content-length":
				frames++
			case "transfer-encoding":
				if frames++; value != " chunked" {
					wrong = append(wrong, fmt.Sprintf("field %q", l))
				}
			}
		}
		if frames > 1 {
			wrong = append(wrong, "more than one frame")
		}
		if len(r.hosts) != 1 {
			wrong = append(wrong, fmt.Sprintf("%d Host fields", len(r.hosts)))
		}
	}
	strict := summary(reqs)
	for _, v := range readings()[1:] {
		if other := summary(v.read(raw)); other != strict {
			wrong = append(wrong, fmt.Sprintf("%+v reads it as %s, not %s", v, other, strict))
		}
	}
	return reqs, wrong
}

func summary(reqs []seenRequest) string {
	var b strings.Builder
	for _, r := range reqs {
		fmt.Fprintf(&b, "[%s %s %q %q]", r.method, r.target, r.hosts, r.body)
	}
	return b.String()
}
