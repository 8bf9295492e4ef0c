package egress_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"bottle/bottle"
)

// agent2 is [world.agent] for one that offers HTTP/2.
func (w *world) agent2() *http.Client {
	c := w.agent()
	c.Transport.(*http.Transport).ForceAttemptHTTP2 = true //nolint:errcheck // it is one
	return c
}

// upstream2 is [world.upstream] for one that speaks HTTP/2 too.
func (w *world) upstream2(host string, h http.HandlerFunc) {
	s := httptest.NewUnstartedServer(h)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{w.ca.leaf(w.t, host)}}
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.EnableHTTP2 = true
	s.StartTLS()
	w.t.Cleanup(s.Close)
	w.gate.route(host+":443", s.Listener.Addr().String())
}

// protocols says what an upstream was asked by, for those who ask it.
func protocols(rw http.ResponseWriter, r *http.Request) {
	_, _ = fmt.Fprintf(rw, "%s from %s", r.Proto, r.Host)
}

// Each side is spoken to as the other can.
func TestProtocolFollowsTheUpstream(t *testing.T) {
	w := newWorld(t, []bottle.Route{whole("old.example.com"), below("new.example.com", "/v1")})
	w.upstream("old.example.com", protocols)
	w.upstream2("new.example.com", protocols)
	for _, tc := range []struct {
		name, url string
		agent     *http.Client
		proto     string // towards the agent
		status    int
		body      string
	}{
		{"both can", "https://new.example.com/v1", w.agent2(), "HTTP/2.0", 200, "HTTP/2.0 from new.example.com"},
		{"both can, and it is known", "https://new.example.com/v1", w.agent2(), "HTTP/2.0", 200, "HTTP/2.0 from new.example.com"},
		{"the agent can't", "https://new.example.com/v1", w.agent(), "HTTP/1.1", 200, "HTTP/1.1 from new.example.com"},
		{"the upstream can't", "https://old.example.com/", w.agent2(), "HTTP/1.1", 200, "HTTP/1.1 from old.example.com"},
		{"the upstream can't, and it is known", "https://old.example.com/", w.agent2(), "HTTP/1.1", 200, "HTTP/1.1 from old.example.com"},
		{"a forbidden path", "https://new.example.com/v2", w.agent2(), "HTTP/2.0", 403, "blocked by bottle"},
		{"a forbidden host", "https://else.example.com/", w.agent2(), "HTTP/2.0", 403, "request_allowlist_change"},
		{"egress itself", "https://egress.bottle.internal/healthz", w.agent2(), "HTTP/2.0", 200, `"ok":true`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := len(w.gate.targets())
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, tc.url, nil)
			if err != nil {
				t.Fatal(err)
			}
			res, err := tc.agent.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			body, err := io.ReadAll(res.Body)
			if err != nil || res.Proto != tc.proto || res.StatusCode != tc.status || !strings.Contains(string(body), tc.body) {
				t.Errorf("%v: %s %d %s", err, res.Proto, res.StatusCode, body)
			}
			if n := len(w.gate.targets()) - before; n > 1 {
				t.Errorf("%d connections upstream for one request", n)
			}
		})
	}
	for _, target := range w.gate.targets() {
		if target == "else.example.com:443" {
			t.Error("a forbidden host was dialled")
		}
	}
}

// An agent that can speak HTTP/2 alone reaches an upstream that can't.
func TestTranslation(t *testing.T) {
	w := newWorld(t, []bottle.Route{whole("old.example.com")})
	w.upstream("old.example.com", protocols)
	h := w.h2("old.example.com")
	h.get(1, "old.example.com", "/x")
	if a := h.answer(1); a.status != "200" || a.body != "HTTP/1.1 from old.example.com" {
		t.Errorf("%+v", a)
	}
}

// An h2 is an agent that writes HTTP/2 by hand.
type h2 struct {
	w  *world
	c  *tls.Conn
	fr *http2.Framer
	// The encoder's state is the connection's.
	enc *hpack.Encoder
	buf strings.Builder
}

func (w *world) h2(host string) *h2 {
	w.t.Helper()
	conn, status := w.tunnel(host + ":443")
	if status != http.StatusOK {
		w.t.Fatal(status)
	}
	c := tls.Client(conn, &tls.Config{RootCAs: w.roots, ServerName: host, NextProtos: []string{"h2"}})
	if err := c.HandshakeContext(w.t.Context()); err != nil || c.ConnectionState().NegotiatedProtocol != "h2" {
		w.t.Fatalf("%v, %q", err, c.ConnectionState().NegotiatedProtocol)
	}
	h := &h2{w: w, c: c, fr: http2.NewFramer(c, bufio.NewReader(c))}
	h.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	h.enc = hpack.NewEncoder(&h.buf)
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		w.t.Fatal(err)
	}
	h.must(h.fr.WriteSettings())
	return h
}

func (h *h2) must(err error) {
	h.w.t.Helper()
	if err != nil {
		h.w.t.Fatal(err)
	}
}

func (h *h2) block(fields ...string) []byte {
	h.buf.Reset()
	for f := range slices.Chunk(fields, 2) {
		h.must(h.enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}))
	}
	return []byte(h.buf.String())
}

// ask sends a request's head, and ends the stream.
func (h *h2) ask(id uint32, fields ...string) {
	h.w.t.Helper()
	h.must(h.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: h.block(fields...), EndHeaders: true, EndStream: true}))
}

func (h *h2) get(id uint32, authority, path string) {
	h.w.t.Helper()
	h.ask(id, ":method", "GET", ":scheme", "https", ":authority", authority, ":path", path)
}

// An h2Answer is what came on a stream by its end.
type h2Answer struct {
	status, layer, body string
	reset               http2.ErrCode
	wasReset            bool
	goAway              bool // the connection is at its end
}

// answer reads until the stream ends.
func (h *h2) answer(id uint32) h2Answer {
	h.w.t.Helper()
	var a h2Answer
	for {
		f, err := h.fr.ReadFrame()
		if err != nil {
			h.w.t.Fatalf("stream %d: %v, after %+v", id, err, a)
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				h.must(h.fr.WriteSettingsAck())
			}
			continue
		case *http2.GoAwayFrame:
			a.goAway = true
			continue
		}
		if f.Header().StreamID != id {
			continue
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			if s := f.PseudoValue("status"); s != "" {
				a.status = s
			}
			for _, field := range f.RegularFields() {
				if field.Name == "x-bottle-layer" {
					a.layer = field.Value
				}
			}
		case *http2.DataFrame:
			a.body += string(f.Data())
		case *http2.RSTStreamFrame:
			a.reset, a.wasReset = f.ErrCode, true
			return a
		}
		if f.Header().Flags.Has(http2.FlagDataEndStream) { // the same bit for HEADERS
			return a
		}
	}
}

// Each stream is judged by itself, and what names another place goes no further.
func TestStreamsAreJudgedOneByOne(t *testing.T) {
	w := newWorld(t, []bottle.Route{below("a.example.com", "/v1"), whole("b.example.com")})
	var reached atomic.Int32
	for _, host := range []string{"a.example.com", "b.example.com"} {
		w.upstream2(host, func(rw http.ResponseWriter, r *http.Request) { reached.Add(1); protocols(rw, r) })
	}
	h := w.h2("a.example.com")
	base := func(more ...string) []string {
		return append([]string{":method", "GET", ":scheme", "https", ":authority", "a.example.com", ":path", "/v1/x"}, more...)
	}
	id := uint32(1)
	for _, tc := range []struct {
		name   string
		fields []string
		status string // "" means a reset
		text   string
	}{
		{"allowed", base(), "200", "HTTP/2.0 from a.example.com"},
		{"forbidden path", []string{":method", "GET", ":scheme", "https", ":authority", "a.example.com", ":path", "/v2"}, "403", "/v1"},
		{"forbidden method", []string{":method", "DELETE", ":scheme", "https", ":authority", "a.example.com", ":path", "/v1/x"}, "403", "DELETE"},
		{"another authority that is allowed", []string{":method", "GET", ":scheme", "https", ":authority", "b.example.com", ":path", "/v1/x"}, "421", "fronting"},
		{"another port", []string{":method", "GET", ":scheme", "https", ":authority", "a.example.com:8443", ":path", "/v1/x"}, "421", "fronting"},
		{"its own port", []string{":method", "GET", ":scheme", "https", ":authority", "A.example.com:443", ":path", "/v1/x"}, "200", "from a.example.com"},
		{"Host that differs", base("host", "b.example.com"), "421", "fronting"},
		{"two Hosts", base("host", "a.example.com", "host", "b.example.com"), "421", "fronting"},
		{"Host that agrees", base("host", "a.example.com"), "200", "from a.example.com"},
		{"Host alone", []string{":method", "GET", ":scheme", "https", ":path", "/v1/x", "host", "a.example.com"}, "200", "from a.example.com"},
		{"Host alone, another", []string{":method", "GET", ":scheme", "https", ":path", "/v1/x", "host", "b.example.com"}, "421", "fronting"},
		{"no authority", []string{":method", "GET", ":scheme", "https", ":path", "/v1/x"}, "421", "fronting"},
		{"userinfo", []string{":method", "GET", ":scheme", "https", ":authority", "u@a.example.com", ":path", "/v1/x"}, "", ""},
		// net/http hides this one. What goes on is https all the same.
		{"http inside TLS", []string{":method", "GET", ":scheme", "http", ":authority", "a.example.com", ":path", "/v1/x"}, "200", "from a.example.com"},
		{"another scheme", []string{":method", "GET", ":scheme", "ftp", ":authority", "a.example.com", ":path", "/v1/x"}, "", ""},
		{"CONNECT", []string{":method", "CONNECT", ":authority", "a.example.com:443"}, "405", "not passed on"},
		{"CONNECT elsewhere", []string{":method", "CONNECT", ":authority", "b.example.com:443"}, "421", "fronting"},
		{"extended CONNECT", []string{":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":authority", "a.example.com", ":path", "/v1/x"}, "", ""},
		{"TRACE", []string{":method", "TRACE", ":scheme", "https", ":authority", "a.example.com", ":path", "/v1/x"}, "405", "not passed on"},
		{"absolute-form", []string{":method", "GET", ":scheme", "https", ":authority", "a.example.com", ":path", "https://b.example.com/v1/x"}, "400", "slash"},
		{"two slashes", []string{":method", "GET", ":scheme", "https", ":authority", "a.example.com", ":path", "//b.example.com/v1/x"}, "403", "two slashes"},
		{"a space in the query", []string{":method", "GET", ":scheme", "https", ":authority", "a.example.com", ":path", "/v1/x?a HTTP/1.1"}, "400", "space"},
		{"a request line in the method", []string{":method", "GET /v2 HTTP/1.1", ":scheme", "https", ":authority", "a.example.com", ":path", "/v1/x"}, "400", "token"},
		{"a fragment", []string{":method", "GET", ":scheme", "https", ":authority", "a.example.com", ":path", "/v1/x#y"}, "400", "fragment"},
		{"not ASCII", []string{":method", "GET", ":scheme", "https", ":authority", "a.example.com", ":path", "/v1/\xff"}, "400", "ASCII"},
		{"dots", []string{":method", "GET", ":scheme", "https", ":authority", "a.example.com", ":path", "/v1/../v2"}, "403", "/v2"},
		{"a length without a body", base("content-length", "5"), "400", "Content-Length"},
		{"a length that is no number", base("content-length", "+0"), "400", "Content-Length"},
		{"two lengths", base("content-length", "0", "content-length", "0"), "400", "Content-Length"},
		{"Connection", base("connection", "close"), "400", ""},
		{"Transfer-Encoding", base("transfer-encoding", "chunked"), "400", ""},
		{"Upgrade", base("upgrade", "websocket"), "400", ""},
		{"TE", base("te", "gzip"), "400", ""},
		{"upper case in a name", base("X-A", "1"), "", ""},
		{"a line break in a value", base("x-a", "1\r\nx-b: 2"), "", ""},
		{"a line break in :path", []string{":method", "GET", ":scheme", "https", ":authority", "a.example.com", ":path", "/v1/x HTTP/1.1\r\nx: y"}, "", ""},
		{"a pseudo field twice", base(":path", "/v1/y"), "", ""},
		{"a pseudo field after a field", []string{":method", "GET", ":scheme", "https", ":authority", "a.example.com", "x-a", "1", ":path", "/v1/x"}, "", ""},
		{"an unknown pseudo field", base(":x", "1"), "", ""},
		{"still allowed", base(), "200", "HTTP/2.0 from a.example.com"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := reached.Load()
			h.ask(id, tc.fields...)
			a := h.answer(id)
			id += 2
			if a.status != tc.status || a.wasReset != (tc.status == "") || !strings.Contains(a.body, tc.text) || a.goAway {
				t.Errorf("%+v", a)
			}
			if n := reached.Load() - before; (n != 0) != (tc.status == "200") {
				t.Errorf("%d requests reached an upstream", n)
			}
		})
	}
	for _, target := range w.gate.targets() {
		if target != "a.example.com:443" {
			t.Errorf("dialled %s", target)
		}
	}
}

// What an upstream sends over HTTP/2 arrives before it sends more, in both directions, and
// trailers after it.
func TestStreamsOfHTTP2AreNotBuffered(t *testing.T) {
	w := newWorld(t, []bottle.Route{whole("api.example.com")})
	w.upstream2("api.example.com", func(rw http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(rw)
		rw.Header().Set("Trailer", "X-Sum")
		_ = rc.Flush()
		br := bufio.NewReader(r.Body)
		n := 0
		for {
			line, err := br.ReadString('\n')
			if err != nil {
				break
			}
			n += len(line)
			_, _ = io.WriteString(rw, strings.ToUpper(line))
			_ = rc.Flush()
		}
		rw.Header().Set("X-Sum", fmt.Sprint(n))
		rw.Header().Set(http.TrailerPrefix+"X-Late", "yes")
	})
	pr, pw := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://api.example.com/", pr)
	if err != nil {
		t.Fatal(err)
	}
	res, err := w.agent2().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	br := bufio.NewReader(res.Body)
	for _, want := range []string{"ONE\n", "TWO\n"} {
		_, _ = io.WriteString(pw, strings.ToLower(want))
		if line, err := br.ReadString('\n'); err != nil || line != want {
			t.Fatalf("%q %v", line, err)
		}
	}
	_ = pw.Close()
	if _, err := io.ReadAll(br); err != nil || res.Trailer.Get("X-Sum") != "8" || res.Trailer.Get("X-Late") != "yes" || res.ProtoMajor != 2 {
		t.Errorf("%v: %s, trailers %v", err, res.Proto, res.Trailer)
	}
}

// A revocation resets the streams that it forbids, also one whose agent does not read, and
// leaves the others on the same connection alone.
func TestRevocationResetsStreamsAlone(t *testing.T) {
	defer noLeak(t)
	w := newWorld(t, []bottle.Route{below("api.example.com", "/keep"), below("api.example.com", "/cut")})
	defer w.stop()
	gone := make(chan struct{}, 8)
	big := make([]byte, 1<<20)
	w.upstream2("api.example.com", func(rw http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/big") {
			for r.Context().Err() == nil {
				_, _ = rw.Write(big)
			}
			gone <- struct{}{}
			return
		}
		stream(gone)(rw, r)
	})
	agent := w.agent2()
	keep, cut := w.openBy(agent, "https://api.example.com/keep/1"), w.openBy(agent, "https://api.example.com/cut/1")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://api.example.com/cut/big", nil)
	if err != nil {
		t.Fatal(err)
	}
	stalled, err := agent.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer stalled.Body.Close()

	start := time.Now()
	w.setRoutes([]bottle.Route{below("api.example.com", "/keep")})
	if n, err := io.Copy(io.Discard, cut); err == nil || n > 0 {
		t.Errorf("%d bytes more, and a clean end", n)
	}
	<-gone
	<-gone // the upstream's side of both is over
	if took := time.Since(start); took > time.Second {
		t.Errorf("the cut took %s", took)
	}
	if a := w.do(agent, "GET", "https://api.example.com/cut/2", nil); a.status != 403 {
		t.Errorf("%+v", a)
	}
	got := make(chan error, 1)
	go func() {
		_, err := keep.Read(make([]byte, 1))
		got <- err
	}()
	select {
	case err := <-got:
		t.Errorf("the stream that is allowed ended: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if n := len(w.gate.targets()); n != 1 {
		t.Errorf("%d connections upstream, want the one that all streams share", n)
	}
	_ = keep.Close()
	if err := <-got; err == nil {
		t.Error("it went on after it was closed")
	}
}
