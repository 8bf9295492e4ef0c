package egress

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"bottle/bottle"
)

// The protocols of the access log.
const (
	protocolH1        = "h1"
	protocolH2        = "h2"
	protocolWebsocket = "websocket"
	protocolTunnel    = "tunnel"
)

// An entry is what the access log, and the counters, will say of a request or a tunnel.
type entry struct {
	host      string
	port      int
	method    string
	path      string
	params    int
	protocol  string
	requestID string
	began     time.Time
	ended     time.Time

	route    *bottle.Route // that allowed it
	refusal  *refusal      // why it did not get through, or nil
	end      string
	status   atomic.Int64
	up, down atomic.Int64 // counted where the bytes go by, also by the transport's goroutines
}

// begin notes a request that is about to be judged.
func (s *Server) begin(ex *exchange, r *http.Request, target string) *entry {
	e := &entry{
		host: string(ex.query.Host), port: ex.query.Port, method: r.Method, path: pathOnly(target), params: parameters(target),
		protocol: protocolH1, requestID: requestID(r.Header), began: s.now(),
	}
	if r.ProtoMajor == 2 {
		e.protocol = protocolH2
	}
	return e
}

// finish counts and logs what has ended, with its context or the cause of that context's end.
func (s *Server) finish(ctx context.Context, e *entry, whole bool) {
	if e.refusal == nil {
		s.count(countAllowed)
		switch {
		case errors.Is(context.Cause(ctx), errCut):
			e.end = bottle.EndCut
		case !whole:
			e.end = bottle.EndAborted
		}
	}
	s.counts[countUp].Add(uint64(e.up.Load()))     //nolint:gosec // G115: a sum of lengths
	s.counts[countDown].Add(uint64(e.down.Load())) //nolint:gosec // G115: likewise
	s.access.put(e)
}

// logRefusal counts a refusal and has the access log say it: now, or when the entry ends of which
// it is the outcome.
func (s *Server) logRefusal(r *refusal) {
	s.countRefusal(r)
	if r.entry != nil {
		r.entry.refusal = r
		return
	}
	s.access.put(&entry{refusal: r})
}

// parameters is how many the query of a target has, as far as one can tell.
func parameters(target string) int {
	_, query, found := strings.Cut(target, "?")
	if !found || query == "" {
		return 0
	}
	return 1 + strings.Count(query, "&")
}

// maxRequestID is the length, in bytes, of a request ID that is logged; what is longer, or has
// other characters than IDs have, is left out.
const maxRequestID = 64

// requestID is the agent's own ID for its request, if it looks like one.
func requestID(h http.Header) string {
	id := h.Get("X-Request-Id")
	if len(id) > maxRequestID || strings.ContainsFunc(id, func(c rune) bool {
		alphanumeric := c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
		return !alphanumeric && !strings.ContainsRune("-_.", c)
	}) {
		return ""
	}
	return id
}

// upload counts a request's body. What has none is left as it is, for net/http to see that.
func (e *entry) upload(body io.ReadCloser) io.ReadCloser {
	if body == nil || body == http.NoBody {
		return body
	}
	return &uploaded{body, e}
}

type uploaded struct {
	io.ReadCloser
	e *entry
}

// Read implements [io.Reader].
func (u *uploaded) Read(p []byte) (int, error) {
	n, err := u.ReadCloser.Read(p)
	u.e.up.Add(int64(n))
	return n, err
}

// upgraded counts what flows after a switch of protocols; body is what the transport gave
// for the upstream's side.
func (e *entry) upgraded(body io.ReadCloser) io.ReadCloser {
	rw, ok := body.(io.ReadWriteCloser)
	if !ok {
		return body // the proxy refuses it
	}
	e.protocol = protocolWebsocket
	e.status.Store(http.StatusSwitchingProtocols)
	return &switched{rw, e}
}

type switched struct {
	io.ReadWriteCloser
	e *entry
}

// Read implements [io.Reader].
func (s *switched) Read(p []byte) (int, error) {
	n, err := s.ReadWriteCloser.Read(p)
	s.e.down.Add(int64(n))
	return n, err
}

// Write implements [io.Writer].
func (s *switched) Write(p []byte) (int, error) {
	n, err := s.ReadWriteCloser.Write(p)
	s.e.up.Add(int64(n))
	return n, err
}

// CloseWrite ends one direction, if the connection can.
func (s *switched) CloseWrite() error {
	if c, ok := s.ReadWriteCloser.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return http.ErrNotSupported
}
