package egress

import (
	"bytes"
	"io"
	"net/http"
	"strings"
)

// minRedacted is the length, in bytes, below which a token is not looked for: a few letters
// occur by chance.
const minRedacted = 8

// redact takes a credential out of a response: some hosts echo a request's header or its URL, in an
// error page for one. It finds the token, and what was sent of it, in header fields, trailers and the body,
// for which the request asked uncompressed and whole; an upstream that means to leak it can
// encode it, which is why a credential is bound to its hosts. The body keeps its length and
// streams on. What follows a switch of protocols is not looked through.
func redact(res *http.Response, h *held) {
	for _, e := range h.echoes {
		redactOne(res, e)
	}
}

func redactOne(res *http.Response, token string) {
	if len(token) < minRedacted {
		return
	}
	redactFields(res.Header, token)
	redactFields(res.Trailer, token) // whose names are announced
	if res.StatusCode != http.StatusSwitchingProtocols && res.Body != nil && res.Body != http.NoBody {
		// The trailer is filled in when the body is at its end, and passed on after that.
		res.Body = &redactor{body: res.Body, token: []byte(token), atEnd: func() { redactFields(res.Trailer, token) }}
	}
}

func redactFields(h http.Header, token string) {
	for name, values := range h {
		if strings.Contains(strings.ToLower(name), strings.ToLower(token)) { // which is as HTTP/2 writes it
			delete(h, name)
			continue
		}
		for i, v := range values {
			values[i] = strings.ReplaceAll(v, token, strings.Repeat("*", len(token)))
		}
	}
}

// A redactor overwrites a token in what it passes on. It holds back no more than the end
// that could be a token's beginning, and that only until more comes.
type redactor struct {
	body  io.ReadCloser
	token []byte
	buf   []byte // read and not looked through
	ready []byte // looked through and not passed on
	err   error
	atEnd func() // if not nil, called once the body has ended
}

// Read implements [io.Reader].
func (r *redactor) Read(p []byte) (int, error) {
	for len(r.ready) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		r.fill(len(p))
	}
	n := copy(p, r.ready)
	r.ready = r.ready[n:]
	return n, nil
}

func (r *redactor) fill(size int) {
	held := len(r.buf)
	r.buf = append(r.buf, make([]byte, max(size, 512))...)
	n, err := r.body.Read(r.buf[held:])
	r.buf, r.err = r.buf[:held+n], err
	if err != nil && r.atEnd != nil {
		r.atEnd()
	}
	for rest := r.buf; ; { // a token may itself be made of asterisks
		i := bytes.Index(rest, r.token)
		if i < 0 {
			break
		}
		copy(rest[i:], bytes.Repeat([]byte("*"), len(r.token)))
		rest = rest[i+len(r.token):]
	}
	keep := 0
	if err == nil {
		keep = overlap(r.buf, r.token)
	}
	r.ready = r.buf[:len(r.buf)-keep]
	r.buf = bytes.Clone(r.buf[len(r.buf)-keep:])
}

// overlap is the length of the longest end of b that is a proper beginning of token.
func overlap(b, token []byte) int {
	for n := min(len(b), len(token)-1); n > 0; n-- {
		if bytes.Equal(b[len(b)-n:], token[:n]) {
			return n
		}
	}
	return 0
}

// Close implements [io.Closer].
func (r *redactor) Close() error { return r.body.Close() }
