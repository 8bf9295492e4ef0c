package egress

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"

	"golang.org/x/net/http/httpguts"

	"bottle/bottle"
	"bottle/bottle/allow"
)

// An exchange is one request and its response.
type exchange struct {
	query    allow.Query
	path     string // what goes upstream, byte for byte
	limited  bool   // by matches, so that nothing may speak past them
	single   bool   // its grant is for one use: it must be sent once, or not at all
	rawQuery string // as the agent wrote it
	// credential is the name of what is put in, and secret the thing itself.
	credential string
	secret     *held
	websocket  bool
	key        string // Sec-WebSocket-Key
	closeAfter bool   // the connection is no longer framed; see [wireConn]
	h2         bool   // it came by HTTP/2
	bodiless   bool   // its response has no body
	first      *first // the tunnel's
	entry      *entry // of the access log; nil for what egress answers itself
}

type (
	connKey     struct{} // context key of the *clientConn
	tunnelKey   struct{} // of the *tunnel
	exchangeKey struct{} // of the *exchange
)

func (ex *exchange) to() authority { return authority{ex.query.Host, ex.query.Port} }

// refusal returns one with what is known of the exchange.
func (ex *exchange) refusal(status int, reason string) *refusal {
	path := ex.query.Path
	if ex.query.Method == http.MethodConnect {
		path = ""
	}
	return &refusal{
		status: status, layer: layerEgress, host: string(ex.query.Host), port: ex.query.Port, tls: ex.query.TLS,
		method: ex.query.Method, path: path, reason: reason, close: ex.closeAfter, entry: ex.entry,
	}
}

// servePlain answers what is not in a tunnel: a CONNECT, or a request in absolute-form.
func (s *Server) servePlain(w http.ResponseWriter, r *http.Request) {
	if !s.handlers.enter() {
		panic(http.ErrAbortHandler)
	}
	defer s.handlers.leave()
	w, r = bothWays(w, r)
	if !bottle.ProxyAuthorized(r.Header["Proxy-Authorization"], s.cfg.Secret) {
		s.turnAway(w, r)
		return
	}
	if r.Method == http.MethodConnect {
		s.serveConnect(w, r)
		return
	}
	n := &refusal{status: http.StatusBadRequest, layer: layerEgress, host: r.Host, method: r.Method, close: true}
	target, ok := cutScheme(r.RequestURI)
	switch {
	case !ok:
		n.reason = "this is a proxy: send http://host/path as the target (absolute-form), or CONNECT host:port"
	case target.tls:
		n.reason = "https goes through CONNECT host:port, not through a plain request"
	}
	if n.reason != "" {
		s.logRefusal(n)
		n.write(w, r.Header["Accept"]) // no rule forbade it, so it is no denial
		return
	}
	to, err := parseAuthority(target.authority, schemePort(false))
	if err != nil {
		n.status, n.host, n.reason = http.StatusForbidden, target.authority, err.Error()
		s.note(n)
		n.write(w, r.Header["Accept"])
		return
	}
	conn, _ := r.Context().Value(connKey{}).(*clientConn)
	s.serve(w, r, to, false, target.path, &tunnel{conn: conn})
}

// serveTunnelled answers a request inside a tunnel whose TLS egress ended.
func (s *Server) serveTunnelled(w http.ResponseWriter, r *http.Request) {
	if !s.handlers.enter() {
		panic(http.ErrAbortHandler)
	}
	defer s.handlers.leave()
	w, r = bothWays(w, r)
	t, ok := r.Context().Value(tunnelKey{}).(*tunnel)
	if !ok {
		panic(http.ErrAbortHandler) // no tunnel, no answer
	}
	if t.refused != nil {
		n := *t.refused
		n.close = true
		n.write(w, r.Header["Accept"])
		return
	}
	target, n := t.misdirected(r)
	if n != nil {
		s.note(n)
		n.write(w, r.Header["Accept"])
		return
	}
	if r.ProtoMajor == 2 {
		defer s.streams.Add(-1)
		if s.streams.Add(1) > maxAllStreams {
			w.Header().Set("Retry-After", "1")
			http.Error(w, tooManyStreams, http.StatusServiceUnavailable)
			return
		}
	}
	s.serve(w, r, t.to, true, target, t)
}

// misdirected refuses a request that names another place than its tunnel does: fronting, or
// a connection that is reused for another host (RFC 9110 section 7.4). It returns the target
// without what names the host.
func (t *tunnel) misdirected(r *http.Request) (target string, n *refusal) {
	h2 := r.ProtoMajor == 2
	target, hosts := r.RequestURI, []string{r.Host}
	n = &refusal{
		status: http.StatusMisdirectedRequest, layer: layerEgress, host: string(t.to.host), port: t.to.port, tls: true,
		method: r.Method, path: pathOnly(target), close: !h2, // the other streams have done nothing
	}
	plain := false
	if h2 {
		if why := malformed(r); why != "" {
			n.status, n.reason = http.StatusBadRequest, "malformed request: "+why
			return "", n
		}
		hosts = names(r) // net/http hides :scheme, which is written anew as https
	} else if abs, ok := cutScheme(target); ok {
		target, hosts, plain = abs.path, []string{abs.authority}, !abs.tls
	}
	if plain {
		n.reason = "fronting: an http target inside the TLS of " + t.to.String()
		return "", n
	}
	for _, name := range hosts {
		if to, err := parseAuthority(name, 443); err != nil || to != t.to {
			n.reason = fmt.Sprintf("fronting: CONNECT and TLS name %s, but Host is %q", t.to, printable(name, maxShownHost))
			return "", n
		}
	}
	return target, nil
}

func pathOnly(target string) string {
	path, _, _ := strings.Cut(target, "?")
	return path
}

// serve judges one request and carries it out.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, to authority, tls bool, target string, t *tunnel) {
	s.count(countRequests)
	accept := r.Header["Accept"]
	_, upgrade := r.Header["Upgrade"] // an empty one counts, as it does for wireConn
	ex := &exchange{closeAfter: upgrade, h2: r.ProtoMajor == 2, first: t.first}
	header := forwardable(r)
	ex.query = allow.Query{Host: to.host, Port: to.port, Method: r.Method, Path: pathOnly(target), Header: header, TLS: tls}
	_, ex.rawQuery, _ = strings.Cut(target, "?")
	ex.query.Query = ex.rawQuery
	if to.host == bottle.EgressHost {
		s.introspect(w, r, ex)
		return
	}
	ex.entry = s.begin(ex, r, target)
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	whole := false
	defer func() { s.finish(ctx, ex.entry, whole) }()
	if r.Method == http.MethodTrace || r.Method == http.MethodConnect {
		// An upstream echoes a TRACE, and what was put into it.
		n := ex.refusal(http.StatusMethodNotAllowed, r.Method+" is not passed on")
		s.note(n)
		n.write(w, accept)
		return
	}
	f := &flow{cancel: cancel, conn: t.conn, entry: ex.entry}
	if ex.h2 {
		f.stream = newStream(w)
		defer f.stream.end()
	}
	s.flows.add(f)
	defer s.forget(f)
	if n := s.admit(ctx, f, ex); n != nil {
		s.note(n)
		n.write(w, accept)
		return
	}
	if isWebsocket(r) {
		ex.websocket, ex.key = true, r.Header.Get("Sec-Websocket-Key")
		header = header.Clone() // the other one is the question's, which a reload may be asking now
		header.Set("Connection", "Upgrade")
		header.Set("Upgrade", "websocket")
	}
	out := r.WithContext(context.WithValue(ctx, exchangeKey{}, ex))
	out.Header, out.Body = header, ex.entry.upload(r.Body)
	answer := &informed{ResponseWriter: w, ex: ex, head: http.Header{}}
	if !ex.h2 && httpguts.HeaderValuesContainsToken(r.Header["Expect"], "100-continue") && r.Body != http.NoBody {
		out.Body = &wanted{out.Body, sync.OnceFunc(answer.goOn)}
	}
	defer func() {
		if !whole && context.Cause(ctx) == nil {
			answer.flushCut()
		}
	}()
	s.proxy.ServeHTTP(answer, out)
	whole = true // else it panics
}

// admit judges the exchange, spends its grant if it is for one use, finds its credential,
// and leaves its question in f. See [registry] for the order.
func (s *Server) admit(ctx context.Context, f *flow, ex *exchange) *refusal {
	claimed := ""
	for {
		generation := s.flows.generation.Load()
		snap := s.snap.Load()
		v := snap.table.Decide(ex.query, s.live(claimed))
		if !v.Allowed {
			n := ex.refusal(http.StatusForbidden, v.Reason)
			n.nearest, n.ask = v.Nearest, suggest(ex.query)
			return n
		}
		route := snap.routes[v.Route]
		f.entry.route = &snap.routes[v.Route]
		ex.path, ex.limited, ex.credential = v.Path, len(route.Matches) > 0, route.Credential
		if n := ex.twin(route, s.keys.credentials[route.Credential]); n != nil {
			return n
		}
		if ex.credential != "" {
			if n := s.takeCredential(ctx, ex); n != nil {
				return n
			}
		}
		if g := route.Grant; g != nil && g.Duration.Kind == bottle.Once && g.Request != claimed {
			switch ok, err := s.spent.claim(g.Request); {
			case err != nil:
				n := ex.refusal(http.StatusServiceUnavailable, "the grant "+g.Request+" is for one use, which could not be recorded: "+err.Error())
				n.failure = true
				return n
			case !ok:
				continue // another request was first
			}
			claimed, f.claimed = g.Request, g.Request
		}
		ex.single = claimed != ""
		question := s.exchangeQuestion(ex.query, claimed, ex.credential)
		f.question.Store(&question)
		if s.flows.generation.Load() == generation {
			return nil
		}
	}
}

// exchangeQuestion is what keeps an exchange open: some route allows it still, and if it
// carries a credential, some route still sends that one there. It is asked by another
// goroutine, so it shares nothing with the exchange.
func (s *Server) exchangeQuestion(q allow.Query, claimed, credential string) func() bool {
	return func() bool {
		snap, live := s.snap.Load(), s.live(claimed)
		return snap.table.Decide(q, live).Allowed &&
			(credential == "" || snap.carries(credential, authority{q.Host, q.Port}, live))
	}
}

// takeCredential puts the secret into the exchange. That it may go to this host was
// checked when the routes were loaded, and is checked again here.
func (s *Server) takeCredential(ctx context.Context, ex *exchange) *refusal {
	c, ok := s.keys.credentials[ex.credential]
	switch {
	case !ok || !c.Allows(ex.query.Host):
		return ex.refusal(http.StatusForbidden, fmt.Sprintf("credential %s is not for %s", ex.credential, ex.query.Host))
	case !ex.query.TLS:
		return ex.refusal(http.StatusForbidden, fmt.Sprintf("credential %s is sent over TLS alone; use https", ex.credential))
	}
	if ex.secret = s.keys.await(ctx, ex.credential); ex.secret == nil {
		n := ex.refusal(http.StatusServiceUnavailable, fmt.Sprintf("credential %s has not been handed over; is the keeper running?", ex.credential))
		n.failure = true
		return n
	}
	return nil
}

// rewrite makes the request that goes upstream.
func (s *Server) rewrite(pr *httputil.ProxyRequest) {
	ex, ok := pr.In.Context().Value(exchangeKey{}).(*exchange)
	if !ok { // never sent: the transport refuses a request without a host
		pr.Out.URL, pr.Out.Host = &url.URL{}, ""
		return
	}
	out := pr.Out
	out.URL = ex.url(pr.In.URL)
	out.Host = ex.to().header(ex.query.TLS)
	out.Trailer = nil
	if ex.h2 && out.Body != nil {
		// Not the proxy's, whose Close does nothing: who waits for more of it to send, after
		// the upstream has answered, is told so by Close.
		out.Body = pr.In.Body
	}
	if ex.limited {
		removeAll(out.Header, overrides())
	}
	if ex.credential != "" {
		// An echo of the secret must come back as it is, so that it is found; see [redact].
		out.Header.Set("Accept-Encoding", "identity")
		for _, name := range []string{"Range", "If-Range", "Sec-Websocket-Extensions", "Authorization"} {
			out.Header.Del(name)
		}
		ex.secret.put(out)
	}
}

// url is what makes net/http send exactly ex.path: an opaque one is not encoded again.
func (ex *exchange) url(in *url.URL) *url.URL {
	u := &url.URL{
		Scheme: scheme(ex.query.TLS), Host: ex.to().String(), Opaque: ex.path,
		RawQuery: in.RawQuery, ForceQuery: in.ForceQuery,
	}
	if !ex.query.TLS { // to pipelock, in absolute-form
		u.Opaque = "//" + ex.to().header(false) + ex.path
	}
	return u
}

// modify looks at a response before it is passed on.
func (s *Server) modify(res *http.Response) error {
	ex, ok := res.Request.Context().Value(exchangeKey{}).(*exchange)
	if !ok {
		return errors.New("a response to no request")
	}
	if layer := res.Header.Get(layerHeader); !ex.query.TLS && layer == layerPipelock && res.StatusCode >= 400 {
		return &hopError{status: res.StatusCode, reason: hopReason(res)}
	}
	withoutOurs(res.Header)
	if res.ContentLength < 0 || res.ProtoMajor == 2 {
		withoutOurs(res.Trailer) // what is announced
		atClose(res, func() { withoutOurs(res.Trailer) })
	}
	if ex.credential != "" {
		redact(res, ex.secret)
	}
	if res.StatusCode < http.StatusOK && res.StatusCode != http.StatusSwitchingProtocols {
		return fmt.Errorf("its status is %03d, which is none", res.StatusCode)
	}
	ex.bodiless = res.ContentLength == 0
	if res.StatusCode == http.StatusSwitchingProtocols {
		if !ex.websocket || !acceptsWebsocket(res, ex.key) {
			return errors.New("it switched protocols without being asked to")
		}
		res.Body = ex.entry.upgraded(res.Body)
		return nil
	}
	if ex.closeAfter {
		res.Header.Set("Connection", "close")
	}
	return nil
}

// withoutOurs takes out by which an upstream would speak for egress, or send the agent another
// way.
func withoutOurs(h http.Header) {
	h.Del(layerHeader)
	h.Del("Alt-Svc")
}

// fail answers for an exchange that did not get a response, or not one to pass on.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	ex, ok := r.Context().Value(exchangeKey{}).(*exchange)
	if !ok || context.Cause(r.Context()) != nil { // cut, or the agent has gone
		panic(http.ErrAbortHandler)
	}
	n := ex.failed(err)
	n.reason = s.keys.hide(n.reason) // which can quote what the upstream sent
	s.note(n)
	n.write(w, r.Header["Accept"])
}

// isWebsocket reports whether r opens a websocket as RFC 6455 section 4.1 says. It is
// judged as the GET that it is.
func isWebsocket(r *http.Request) bool {
	h := r.Header
	return r.Method == http.MethodGet && r.ProtoAtLeast(1, 1) && len(h["Upgrade"]) == 1 &&
		strings.EqualFold(h.Get("Upgrade"), "websocket") && httpguts.HeaderValuesContainsToken(h["Connection"], "upgrade") &&
		h.Get("Sec-Websocket-Version") == "13" && len(h["Sec-Websocket-Key"]) == 1
}
