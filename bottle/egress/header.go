package egress

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"

	"bottle/bottle"
)

// hopByHop are the fields that end here (RFC 9110 section 7.6.1, and those that predate it).
func hopByHop() []string {
	return []string{
		"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer",
		"Transfer-Encoding", "Upgrade", "Expect", "Http2-Settings", "Host", // which net/http has elsewhere, but for HTTP/2
		// A server that believes these is told another host or client than it is called for.
		"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Server",
		"X-Host", "X-Original-Host", "X-Http-Host-Override",
	}
}

// dashed is the name as a server reads it that makes no difference between _ and -: CGI
// (RFC 3875 section 4.1.18) and what came of it.
func dashed(name string) string {
	return http.CanonicalHeaderKey(strings.ReplaceAll(name, "_", "-"))
}

// removeAll takes out the fields of those names, in each spelling that a server could read
// as one of them.
func removeAll(h http.Header, names []string) {
	for name := range h {
		if slices.Contains(names, dashed(name)) {
			delete(h, name)
		}
	}
}

// forwardable returns a copy of the header without what does not go on. It is what the
// routes judge: a field that a match requires, and Connection names, would be judged and
// then not sent.
func forwardable(r *http.Request) http.Header {
	out := r.Header.Clone()
	for _, v := range r.Header["Connection"] {
		for name := range strings.SplitSeq(v, ",") {
			out.Del(strings.TrimSpace(name))
		}
	}
	removeAll(out, hopByHop())
	for name := range out {
		if d := dashed(name); d != name && d == "Content-Length" { // net/http writes the real one
			delete(out, name)
		}
	}
	if wantsTrailers(r) {
		out.Set("Te", "trailers")
	}
	return out
}

// overrides are fields by which some servers take another path or method than the request
// line's. A route with matches does not let them pass.
func overrides() []string {
	return []string{
		"X-Original-Url", "X-Rewrite-Url", "X-Original-Uri", "X-Forwarded-Uri", "X-Forwarded-Prefix", "X-Forwarded-Path",
		"X-Http-Method-Override", "X-Http-Method", "X-Method-Override",
	}
}

// twin refuses a field, or a parameter of the query, that some servers take for one by which the route judges, or in
// which its credential goes: whose value they would then act on is anyone's guess.
func (ex *exchange) twin(route bottle.Route, c bottle.Credential) *refusal {
	var names []string
	for _, m := range route.Matches {
		for _, h := range m.Headers {
			names = append(names, h.Name)
		}
	}
	if route.Credential != "" {
		names = append(names, c.Carrier(), "Authorization")
	}
	for name := range ex.query.Header {
		if d := dashed(name); d != name && slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, d) }) {
			return ex.refusal(http.StatusForbidden, fmt.Sprintf("the header %s reads as %s to some servers, which this route decides on; leave it out", printable(name, 100), d))
		}
	}
	if c.Query != "" {
		if t := queryTwin(ex.rawQuery, c.Query); t != "" {
			return ex.refusal(http.StatusForbidden, fmt.Sprintf("the query parameter %s reads as %s to some servers, which this route puts in; leave it out", printable(t, 100), c.Query))
		}
	}
	return nil
}

// informed is an exchange's [http.ResponseWriter]. It passes on informational responses,
// which [Server.modify] does not see: as they came, but without what an upstream may not
// tell; nothing at all beside the status where there is a credential that they could echo.
type informed struct {
	http.ResponseWriter
	ex *exchange

	head http.Header // until it goes out

	mu   sync.Mutex // the transport's goroutines send and receive at once
	went bool       // the final head has gone out
}

// Header implements [http.ResponseWriter].
func (w *informed) Header() http.Header {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.went { // for trailers
		return w.ResponseWriter.Header()
	}
	return w.head
}

// WriteHeader implements [http.ResponseWriter].
func (w *informed) WriteHeader(status int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := w.ResponseWriter.Header()
	maps.Copy(h, w.head)
	if status >= http.StatusOK || status == http.StatusSwitchingProtocols {
		w.went = true
		w.ex.entry.status.Store(int64(status))
		if len(h["Content-Type"]) == 0 {
			h["Content-Type"] = nil // else net/http makes a guess
		}
		w.ResponseWriter.WriteHeader(status)
		return
	}
	h.Del(layerHeader)
	h.Del("Alt-Svc")
	removeAll(h, hopByHop())
	if w.ex.credential != "" {
		clear(h)
	}
	w.ResponseWriter.WriteHeader(status)
	clear(h)
}

// goOn tells an agent that waits for it to send the request's body (100 Continue). net/http
// does so itself at the first read, but in HTTP/1.1 without regard for another informational
// response that is being written at that moment, and the two come out as one.
func (w *informed) goOn() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.went {
		w.ResponseWriter.WriteHeader(http.StatusContinue)
	}
}

// A wanted body has the agent told to send it when it is first read.
type wanted struct {
	io.ReadCloser
	goOn func()
}

// Read implements [io.Reader].
func (b *wanted) Read(p []byte) (int, error) {
	b.goOn()
	return b.ReadCloser.Read(p)
}

// FlushError is for [http.ResponseController]. A response without a body is not flushed
// before its end: in HTTP/2 its head would then not be its end, as gRPC wants it of an answer
// that is nothing but trailers.
func (w *informed) FlushError() error {
	if w.ex.bodiless {
		return nil
	}
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// flushCut sends on what there is of a response whose upstream broke off, so that the agent sees
// a response that is not whole. Else it could see none, and take that for egress' own failure.
func (w *informed) flushCut() {
	w.mu.Lock()
	went := w.went
	w.mu.Unlock()
	if went {
		_ = http.NewResponseController(w.ResponseWriter).Flush()
	}
}

// Write implements [io.Writer].
func (w *informed) Write(b []byte) (int, error) {
	n, err := w.ResponseWriter.Write(b)
	w.ex.entry.down.Add(int64(n))
	return n, err
}

// Unwrap is for [http.ResponseController].
func (w *informed) Unwrap() http.ResponseWriter { return w.ResponseWriter }
