package egress

import (
	"io"
	"net/http"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"
)

// Bounds of HTTP/2 towards the agent. net/http bounds the rest itself: a head as MaxHeaderBytes
// says, CONTINUATION frames included (431, and a GOAWAY if it goes on); handlers of streams that
// were reset at once (no more run than there may be streams; ENHANCE_YOUR_CALM if four times as
// many queue up); 10,000 control frames to answer that the agent does not read (PING, SETTINGS,
// resets), after which the connection is closed.
const (
	maxStreams     = 100       // at once on one connection
	maxAllStreams  = 4096      // on all connections
	agentStreamBuf = 256 << 10 // bytes of a request's body that its upstream has not taken yet
	agentConnBuf   = 1 << 20   // of all of a connection's requests
)

const tooManyStreams = "egress: too many requests at once; try again when some are done"

// upstreamStreamBuf is how many bytes of a response wait for an agent that is slower than
// its upstream, and so how many an upstream sends without hearing of it: 40 MB/s at 100 ms.
const upstreamStreamBuf = 4 << 20

// upstreamConnBuf is the same of all responses on one connection. net/http's own is 1 GiB. An agent
// that leaves eight large responses of one host unread waits for itself.
const upstreamConnBuf = 8 * upstreamStreamBuf

func agentHTTP2() *http.HTTP2Config {
	return &http.HTTP2Config{
		MaxConcurrentStreams: maxStreams, MaxReceiveBufferPerStream: agentStreamBuf, MaxReceiveBufferPerConnection: agentConnBuf,
		SendPingTimeout: pingAfter, PingTimeout: pingTimeout,
	}
}

func upstreamHTTP2() *http.HTTP2Config {
	return &http.HTTP2Config{
		MaxReceiveBufferPerStream: upstreamStreamBuf, MaxReceiveBufferPerConnection: upstreamConnBuf,
		SendPingTimeout: pingAfter, PingTimeout: pingTimeout,
	}
}

// malformed says what of a request that came by HTTP/2 could be read in two ways, be it only
// by who gets it as HTTP/1.1 after us; "" if nothing. It is for HTTP/2 what [wireConn] is for
// HTTP/1.1: net/http has checked field names and values and the connection-specific fields
// (RFC 9113 sections 8.2 and 8.3), and lets the rest pass.
func malformed(r *http.Request) string {
	if !validToken(r.Method) {
		return "the method is not a token"
	}
	if r.Method == http.MethodConnect {
		return "" // answered as such
	}
	for i := range len(r.RequestURI) {
		if c := r.RequestURI[i]; c <= ' ' || c >= 0x7f || c == '#' {
			return ":path has a space, a fragment or what is not ASCII"
		}
	}
	if !strings.HasPrefix(r.RequestURI, "/") && (r.RequestURI != "*" || r.Method != http.MethodOptions) {
		return ":path does not begin with a slash"
	}
	for _, name := range names(r) {
		if !httpguts.ValidHostHeader(name) {
			return ":authority or Host is none"
		}
	}
	for name, values := range r.Header {
		for _, v := range values {
			if v != textproto.TrimString(v) { // RFC 9113 section 8.2.1
				return printable(name, 100) + " begins or ends with a space"
			}
		}
	}
	if lengths := r.Header["Content-Length"]; len(lengths) > 0 {
		n, err := strconv.ParseInt(lengths[0], 10, 64)
		if len(lengths) > 1 || err != nil || strings.Trim(lengths[0], "0123456789") != "" || n != r.ContentLength {
			return "Content-Length is not one number, that of the body"
		}
	}
	return ""
}

// validToken reports whether s is a token (RFC 9110 section 5.6.2), which methods and field
// names are alike.
func validToken(s string) bool { return httpguts.ValidHeaderFieldName(s) }

// names returns the hosts by which an HTTP/2 request goes: :authority, and Host fields, which
// must say the same (RFC 9113 section 8.3.1).
func names(r *http.Request) []string { return append([]string{r.Host}, r.Header["Host"]...) }

// wantsTrailers reports whether the agent takes trailers (TE: trailers, which gRPC demands).
// It is all that TE may say in HTTP/2 (RFC 9113 section 8.2.2).
func wantsTrailers(r *http.Request) bool {
	return r.ProtoMajor == 2 && slices.Equal(r.Header["Te"], []string{"trailers"})
}

// A stream is one request of an HTTP/2 connection, which can be ended without the others.
type stream struct {
	control *http.ResponseController

	mu   sync.Mutex
	over bool // its ResponseWriter is not to be used any more
}

func newStream(w http.ResponseWriter) *stream {
	return &stream{control: http.NewResponseController(w)}
}

// reset ends both directions at once (RST_STREAM), also for a handler that waits for an
// agent that does not read.
func (s *stream) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return
	}
	past := time.Unix(1, 0)
	_ = s.control.SetReadDeadline(past)
	_ = s.control.SetWriteDeadline(past)
}

// end is called before the handler returns.
func (s *stream) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
}

// roundTripH2 carries what came by HTTP/2.
func (t *transports) roundTripH2(ex *exchange, r *http.Request) (*http.Response, error) {
	if ex.single {
		return t.onceH2(r)
	}
	res, err := t.h2.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if t.retired.Load() {
		t.closeIdle()
	}
	// A connection that carries streams is not idle until the last one ends.
	atClose(res, func() {
		if t.retired.Load() {
			t.closeIdle()
		}
	})
	return res, nil
}

// onceH2 sends a request on a connection of its own. [http.Transport] sends one again that
// its upstream says it did not look at (REFUSED_STREAM, GOAWAY); this does not.
func (t *transports) onceH2(r *http.Request) (*http.Response, error) {
	conn, err := t.h2.NewClientConn(r.Context(), "https", r.URL.Host)
	if err != nil {
		return nil, err
	}
	closeConn := func() { _ = conn.Close() }
	res, err := conn.RoundTrip(r)
	if err != nil {
		closeConn()
		return nil, err
	}
	atClose(res, closeConn)
	return res, nil
}

// atClose has f called when the response's body is closed. What switches protocols keeps its
// body, which is more than a reader; HTTP/2 has none such.
func atClose(res *http.Response, f func()) {
	if res.StatusCode == http.StatusSwitchingProtocols {
		return
	}
	if res.Body == nil || res.Body == http.NoBody {
		f()
		return
	}
	res.Body = &closing{res.Body, f}
}

type closing struct {
	io.ReadCloser
	after func()
}

func (c *closing) Close() error {
	err := c.ReadCloser.Close()
	c.after()
	return err
}
