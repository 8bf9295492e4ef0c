package egress

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"
)

const (
	// maxHead bounds a request's head: its request line and header fields.
	maxHead = 64 << 10
	// maxTrailer bounds what follows a chunked body. net/http gives up at 4 KiB, and then
	// takes what is left for a request.
	maxTrailer = 3 << 10
)

// A wireConn watches the bytes that net/http's server reads and ends the connection where
// a request could be read in two ways. net/http is lenient where RFC 9112 lets it be (bare
// LF as a line's end, folded fields, Content-Length beside Transfer-Encoding, equal
// Content-Lengths), and hides what it forgave; the next parser may forgive otherwise, and
// that is request smuggling. So the rule here is one spelling for each message:
//
//   - lines end in CR LF, and CR, LF and NUL are nowhere else;
//   - a request line is three words with one space between;
//   - a field is name, colon, value; no space before the colon, no folding, no octets that
//     RFC 9110 section 5.5 does not have;
//   - the body is framed by one Content-Length of digits, or one Transfer-Encoding that is
//     "chunked", never both, and that not in HTTP/1.0; chunk sizes are hexadecimal digits,
//     with no extension;
//   - the Host field names the host that an absolute target does.
//
// It passes bytes on as they come and holds back nothing but a violation, which net/http
// gets as a read error. If the violation is in the head, no handler has run by then; if it is
// in the body, the handler's exchange ends, and the answer is given by [wireConn.Close]. After
// a CONNECT or an Upgrade the rest of the connection is not HTTP, and it only passes on;
// such a connection must then be hijacked or closed.
type wireConn struct {
	net.Conn
	// refuse is told of a violation, once, and returns the response to send.
	refuse func(*violation) []byte

	// What follows belongs to whoever reads, and net/http has one reader at a time.
	state   wireState
	line    []byte // of the head, so far
	size    int    // of the head, so far
	body    int64  // bytes of body or chunk still to come
	head    head
	pending error // after what was already passed on

	mu        sync.Mutex
	violated  *violation
	answering bool // a response was begun and has not ended
}

type wireState int

const (
	inRequestLine wireState = iota
	inFields
	inBody
	inChunkSize
	inChunk
	inChunkEnd
	inTrailer
	raw
)

// head is what of a request's head decides on its framing.
type head struct {
	method, target string
	lengths        int
	length         int64
	chunked        bool
	upgrade        bool
	expect         bool
	old            bool // HTTP/1.0
	hosts          []string
	authorization  []string // Proxy-Authorization
}

// A violation is a request that was not let through to a parser.
type violation struct {
	status   int // to answer with
	method   string
	target   string
	reason   string
	fronting bool
	// authorization is what Proxy-Authorization had said by then. It is a secret.
	authorization []string
}

func (v *violation) Error() string { return "malformed request: " + v.reason }

func (c *wireConn) Read(p []byte) (int, error) {
	if c.pending != nil {
		return 0, c.pending
	}
	n, err := c.Conn.Read(p)
	if good, v := c.scan(p[:n]); v != nil {
		c.mu.Lock()
		c.violated = v
		c.mu.Unlock()
		c.pending = v
		if good == 0 {
			return 0, v
		}
		return good, nil
	}
	return n, err
}

// Write replaces the bare 400 with which net/http's server answers a read error.
func (c *wireConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	v := c.violated
	if !bytes.HasPrefix(p, []byte("HTTP/1.1 1")) || bytes.HasPrefix(p, []byte("HTTP/1.1 101 ")) {
		c.answering = true
	}
	c.mu.Unlock()
	if v != nil && bytes.HasPrefix(p, []byte("HTTP/1.1 400 Bad Request\r\n")) {
		if _, err := c.Conn.Write(c.refuse(v)); err != nil {
			return 0, err
		}
		return len(p), nil
	}
	return c.Conn.Write(p)
}

// idle is called when a response is complete.
func (c *wireConn) idle() {
	c.mu.Lock()
	c.answering = false
	c.mu.Unlock()
}

// Close ends the connection. Where an exchange was given up for a violation in its body and
// no response had been begun, the refusal is the response. What the peer still sends is read
// for a moment: a close with unread bytes is a reset, which can overtake the answer.
func (c *wireConn) Close() error {
	c.mu.Lock()
	v, unsaid := c.violated, !c.answering
	c.answering = true
	c.mu.Unlock()
	if v == nil {
		return c.Conn.Close()
	}
	_ = c.SetDeadline(time.Now().Add(partingTime))
	if unsaid {
		_, _ = c.Conn.Write(c.refuse(v))
	}
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok && h.CloseWrite() == nil {
		_, _ = io.CopyN(io.Discard, c.Conn, maxHead)
	}
	return c.Conn.Close()
}

// scan moves the state on over b. It returns how many bytes may be passed on: all, or
// those before the line with the violation.
func (c *wireConn) scan(b []byte) (good int, v *violation) {
	for i := 0; i < len(b); {
		switch c.state {
		case raw:
			return len(b), nil
		case inBody, inChunk:
			n := min(int64(len(b)-i), c.body)
			i += int(n)
			if c.body -= n; c.body > 0 {
				continue
			}
			if c.state == inChunk {
				c.state = inChunkEnd
			} else {
				c.next()
			}
		default:
			end := bytes.IndexByte(b[i:], '\n')
			part := b[i:]
			if end >= 0 {
				part = b[i : i+end+1]
			}
			switch c.size += len(part); {
			case c.size > maxHead:
				return i, c.bad(http.StatusRequestHeaderFieldsTooLarge, "the head of the request is over "+strconv.Itoa(maxHead>>10)+" KiB")
			case c.state == inTrailer && c.size > maxTrailer:
				return i, c.bad(http.StatusRequestHeaderFieldsTooLarge, "the trailer of the request is over "+strconv.Itoa(maxTrailer>>10)+" KiB")
			}
			c.line = append(c.line, part...)
			if end >= 0 {
				v := c.endLine()
				c.line = c.line[:0]
				if v != nil {
					return i, v
				}
			}
			i += len(part)
		}
	}
	return len(b), nil
}

func (c *wireConn) next() {
	c.state, c.size, c.head = inRequestLine, 0, head{}
}

func (c *wireConn) bad(status int, reason string) *violation {
	return &violation{
		status: status, method: c.head.method, target: c.head.target, reason: reason, authorization: c.head.authorization,
	}
}

func (c *wireConn) endLine() *violation {
	line, ok := bytes.CutSuffix(c.line, []byte("\r\n"))
	if !ok {
		return c.bad(http.StatusBadRequest, "a line ends in LF alone, not in CR LF")
	}
	if bytes.ContainsAny(line, "\r\n\x00") {
		return c.bad(http.StatusBadRequest, "a line has CR or NUL inside")
	}
	switch c.state {
	case inRequestLine:
		return c.requestLine(string(line))
	case inFields:
		if len(line) == 0 {
			return c.endHead()
		}
		return c.field(line)
	case inTrailer:
		if len(line) == 0 {
			c.next()
			return nil
		}
		if name, _, v := c.splitField(line); v != nil {
			return v
		} else if name == "Content-Length" || name == "Transfer-Encoding" || name == "Host" {
			return c.bad(http.StatusBadRequest, name+" in a trailer")
		}
	case inChunkSize:
		n, err := strconv.ParseUint(string(line), 16, 62)
		if err != nil || len(line) > 15 || line[0] == '+' || bytes.IndexByte(line, '_') >= 0 {
			return c.bad(http.StatusBadRequest, "a chunk's size is not plain hexadecimal")
		}
		c.size = 0 // the bound is on the head, and on the trailer
		if c.body = int64(n); n == 0 {
			c.state = inTrailer
		} else {
			c.state = inChunk
		}
	case inChunkEnd:
		if len(line) != 0 {
			return c.bad(http.StatusBadRequest, "a chunk is longer than its size")
		}
		c.state = inChunkSize
	case inBody, inChunk, raw: // have no lines
	}
	return nil
}

func (c *wireConn) requestLine(line string) *violation {
	if line == "" { // RFC 9112 section 2.2: an empty line before a request may be passed over; net/http does not
		return c.bad(http.StatusBadRequest, "an empty line where a request line should be")
	}
	words := strings.Split(line, " ")
	if len(words) != 3 || words[0] == "" || words[1] == "" || strings.ContainsRune(line, '\t') {
		return c.bad(http.StatusBadRequest, "the request line is not method, target and version with one space between")
	}
	c.head.method, c.head.target, c.head.old = words[0], words[1], words[2] == "HTTP/1.0"
	switch {
	case words[2] != "HTTP/1.1" && !c.head.old:
		return c.bad(http.StatusHTTPVersionNotSupported, "the version is not HTTP/1.1 or HTTP/1.0")
	case !validToken(words[0]):
		return c.bad(http.StatusBadRequest, "the method is not a token")
	}
	if strings.ContainsRune(c.head.target, '#') {
		return c.bad(http.StatusBadRequest, "the target has a fragment")
	}
	if c.head.method == http.MethodConnect {
		// What net/http can't parse; any other is refused by its handler, by when it is
		// known whether the client may be here.
		if _, err := url.ParseRequestURI("http://" + c.head.target); err != nil {
			if _, err := parseAuthority(c.head.target, 0); err != nil {
				return c.bad(http.StatusForbidden, "CONNECT: "+err.Error())
			}
		}
	}
	c.state = inFields
	return nil
}

func (c *wireConn) splitField(line []byte) (name, value string, v *violation) {
	if line[0] == ' ' || line[0] == '\t' {
		return "", "", c.bad(http.StatusBadRequest, "a header field is folded over two lines")
	}
	n, val, ok := bytes.Cut(line, []byte(":"))
	value = strings.Trim(string(val), " \t")
	switch {
	case !ok, !validToken(string(n)):
		return "", "", c.bad(http.StatusBadRequest, "a header field is not a name, a colon and a value")
	case !httpguts.ValidHeaderFieldValue(value):
		return "", "", c.bad(http.StatusBadRequest, "a header field has a control character in its value")
	}
	return textproto.CanonicalMIMEHeaderKey(string(n)), value, nil
}

func (c *wireConn) field(line []byte) *violation {
	name, value, v := c.splitField(line)
	if v != nil {
		return v
	}
	switch name {
	case "Content-Length":
		n, err := strconv.ParseUint(value, 10, 62)
		if err != nil || strings.Trim(value, "0123456789") != "" {
			return c.bad(http.StatusBadRequest, "Content-Length is not a number")
		}
		c.head.lengths++
		c.head.length = int64(n)
		if c.head.lengths > 1 {
			return c.bad(http.StatusBadRequest, "more than one Content-Length")
		}
	case "Transfer-Encoding":
		switch {
		case c.head.chunked || !isASCII(value, "chunked"):
			return c.bad(http.StatusBadRequest, "Transfer-Encoding is not chunked, once")
		case c.head.old: // RFC 9112 section 6.1
			return c.bad(http.StatusBadRequest, "Transfer-Encoding in HTTP/1.0, which has none")
		}
		c.head.chunked = true
	case "Expect":
		// net/http would say no more than the status.
		if c.head.expect || !isASCII(value, "100-continue") {
			return c.bad(http.StatusExpectationFailed, "Expect is not 100-continue, once")
		}
		c.head.expect = true
	case "Upgrade":
		c.head.upgrade = true
	case "Proxy-Authorization":
		c.head.authorization = append(c.head.authorization, value)
	case "Host":
		c.head.hosts = append(c.head.hosts, value)
		if len(c.head.hosts) > 1 {
			return c.bad(http.StatusBadRequest, "more than one Host")
		}
	}
	if c.head.chunked && c.head.lengths > 0 {
		return c.bad(http.StatusBadRequest, "both Content-Length and Transfer-Encoding")
	}
	return nil
}

func (c *wireConn) endHead() *violation {
	if v := c.hostAgrees(); v != nil {
		return v
	}
	if v := c.parsed(); v != nil {
		return v
	}
	switch h := c.head; {
	case h.method == http.MethodConnect && (h.chunked || h.length > 0):
		return c.bad(http.StatusBadRequest, "CONNECT with a body")
	case h.upgrade && (h.chunked || h.length > 0): // its end and the new protocol's start would depend on who reads
		return c.bad(http.StatusBadRequest, "Upgrade with a body")
	case h.method == http.MethodConnect, h.upgrade:
		c.state = raw
	case h.chunked:
		c.state, c.size = inChunkSize, 0
	case h.length > 0:
		c.state, c.body = inBody, h.length
	default:
		c.next()
	}
	return nil
}

// parsed refuses what net/http does not parse and would refuse without a reason.
func (c *wireConn) parsed() *violation {
	h := c.head
	if h.method != http.MethodConnect {
		if _, err := url.ParseRequestURI(h.target); err != nil {
			if a, ok := cutScheme(h.target); ok {
				if _, err := parseAuthority(a.authority, schemePort(a.tls)); err != nil {
					return c.bad(http.StatusForbidden, err.Error())
				}
			}
			return c.bad(http.StatusBadRequest, "the target is not a path or a URL")
		}
		if len(h.hosts) == 0 && !h.old {
			return c.bad(http.StatusBadRequest, "no Host")
		}
	}
	if len(h.hosts) > 0 && !httpguts.ValidHostHeader(h.hosts[0]) {
		return c.bad(http.StatusBadRequest, "Host "+printable(h.hosts[0], maxShownHost)+" is none; use letters, digits, hyphens and dots (a name in another script begins with xn--)")
	}
	return nil
}

// isASCII compares without regard to case, in ASCII alone: in Unicode, other letters fold to
// k and s too, in more bytes.
func isASCII(value, word string) bool {
	return len(value) == len(word) && strings.EqualFold(value, word)
}

// hostAgrees compares the Host field with the host that the target names, if it does. The
// target rules (RFC 9112 section 3.2.2) and net/http forgets the field, so a disagreement
// would otherwise go unseen. Of a CONNECT the field says nothing: it does not go on, and some
// clients (node's http.request) name the proxy in it.
func (c *wireConn) hostAgrees() *violation {
	target, ok := cutScheme(c.head.target)
	if !ok || len(c.head.hosts) == 0 || c.head.method == http.MethodConnect {
		return nil
	}
	want, err := parseAuthority(target.authority, schemePort(target.tls))
	if err != nil {
		return nil //nolint:nilerr // the target itself is refused, with its own reason, where it is judged
	}
	have, err := parseAuthority(c.head.hosts[0], want.port)
	if err != nil || have != want {
		v := c.bad(http.StatusMisdirectedRequest, "fronting: the target names "+want.String()+", but Host is "+printable(c.head.hosts[0], 100))
		v.fronting = true
		return v
	}
	return nil
}

// absolute is an absolute-form target (RFC 9112 section 3.2.2) in its parts, none of
// which is decoded.
type absolute struct {
	tls       bool
	authority string
	path      string // with the query; "/" if empty
}

func cutScheme(target string) (absolute, bool) {
	i := strings.Index(target, "://")
	if i < 0 || strings.HasPrefix(target, "/") {
		return absolute{}, false
	}
	a := absolute{}
	switch strings.ToLower(target[:i]) {
	case "http":
	case "https":
		a.tls = true
	default:
		return absolute{}, false
	}
	rest := target[i+3:]
	end := strings.IndexAny(rest, "/?")
	if end < 0 {
		end = len(rest)
	}
	a.authority, a.path = rest[:end], rest[end:]
	if !strings.HasPrefix(a.path, "/") {
		a.path = "/" + a.path
	}
	return a, true
}
