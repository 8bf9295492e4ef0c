package egress

import (
	"cmp"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"bottle/bottle"
	"bottle/bottle/allow"
)

// introspect answers for [bottle.EgressHost]. What it tells comes from the snapshot that
// judges requests, and holds no secret: credentials are named, not shown.
func (s *Server) introspect(w http.ResponseWriter, r *http.Request, ex *exchange) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		n := ex.refusal(http.StatusMethodNotAllowed, bottle.EgressHost+" answers GET alone")
		n.write(w, r.Header["Accept"])
		return
	}
	var answer any
	query := r.URL.Query()
	switch ex.query.Path {
	case "/routes":
		answer = s.inForce()
	case "/denials":
		limit, err := strconv.Atoi(cmp.Or(query.Get("limit"), "0"))
		if err != nil || limit < 0 {
			ex.refusal(http.StatusBadRequest, "limit: use a number, or leave it out").write(w, r.Header["Accept"])
			return
		}
		answer = s.denials.list(limit)
	case "/check":
		answer = s.check(query.Get("url"), query.Get("method"))
	case "/healthz":
		answer = map[string]any{"ok": true, "revision": s.snap.Load().revision}
	default:
		ex.refusal(http.StatusNotFound, bottle.EgressHost+" has /routes, /denials, /check and /healthz").write(w, r.Header["Accept"])
		return
	}
	b, err := marshal(answer)
	if err != nil {
		ex.refusal(http.StatusInternalServerError, "the answer can't be written as JSON").write(w, r.Header["Accept"])
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	if ex.closeAfter {
		h.Set("Connection", "close")
	}
	_, _ = w.Write(append(b, '\n')) //nolint:gosec // G705: it is JSON and says so, and a client that is gone needs no answer
}

// inForce lists the routes that let requests through now.
func (s *Server) inForce() bottle.InForce {
	snap, live := s.snap.Load(), s.live("")
	out := bottle.InForce{Revision: snap.revision, LoadedAt: snap.loadedAt, Routes: []bottle.RouteInfo{}}
	for _, r := range snap.routes {
		if r.Grant != nil && !live(r.Grant) {
			continue
		}
		info := bottle.RouteInfo{
			Host: r.Host, Ports: r.AllPorts(), Matches: r.Matches, TLS: r.Mode(), Credential: r.Credential, Source: "manifest",
		}
		if g := r.Grant; g != nil {
			info.Source, info.Grant, info.Duration, info.ExpiresAt = "grant", g.Request, g.Duration.String(), g.ExpiresAt
		}
		out.Routes = append(out.Routes, info)
	}
	return out
}

// check says what would become of a request, without making or recording it.
func (s *Server) check(rawURL, method string) bottle.Check {
	method = strings.ToUpper(cmp.Or(method, http.MethodGet))
	out := bottle.Check{URL: clip(rawURL, bottle.MaxPath), Method: printable(method, maxShownMethod)}
	q, err := queryOf(rawURL, method)
	if err != nil {
		out.Reason = err.Error()
		return out
	}
	if q.Host == bottle.EgressHost {
		out.Allowed, out.Rule, out.Reason = true, "built in", "egress answers this itself"
		return out
	}
	snap, live := s.snap.Load(), s.live("")
	if v := snap.table.Connect(q.Host, q.Port, live); q.TLS && v.Known && v.Mode == bottle.Passthrough {
		out.Allowed, out.Rule, out.Reason = true, ruleText(snap.routes[v.Route]), v.Reason
		return out
	}
	v := snap.table.Decide(q, live)
	out.Allowed, out.Reason, out.Nearest = v.Allowed, v.Reason, v.Nearest
	if !v.Allowed {
		out.Ask = suggest(q)
		return out
	}
	route := snap.routes[v.Route]
	out.Rule = ruleText(route)
	if slices.Contains(s.keys.needs(), route.Credential) {
		out.Allowed = false
		out.Reason = "credential " + route.Credential + " has not been handed over; is the keeper running?"
	}
	return out
}

func ruleText(r bottle.Route) string { return strings.Join(r.Lines(), "; ") }

// queryOf reads a URL as a client would send it.
func queryOf(rawURL, method string) (allow.Query, error) {
	if rawURL == "" || len(rawURL) > bottle.MaxPath {
		return allow.Query{}, fmt.Errorf("url: give one such as https://api.example.com/v1/, of at most %d bytes", bottle.MaxPath)
	}
	if method == http.MethodTrace {
		return allow.Query{}, fmt.Errorf("method: %s is not passed on", method)
	}
	u, err := url.Parse(rawURL)
	if err != nil { // its text quotes the URL unbounded
		return allow.Query{}, fmt.Errorf("url: %q is not a URL; give one such as https://api.example.com/v1/", printable(rawURL, 100))
	}
	q := allow.Query{Method: method, Header: http.Header{}, Path: cmp.Or(u.EscapedPath(), "/"), Query: u.RawQuery}
	switch strings.ToLower(u.Scheme) {
	case "https":
		q.TLS = true
	case "http":
	default:
		return allow.Query{}, fmt.Errorf("url: %q does not begin with https:// or http://", printable(rawURL, 100))
	}
	if u.User != nil {
		return allow.Query{}, fmt.Errorf("url: it has a user or password; leave them out")
	}
	to, err := parseAuthority(u.Host, schemePort(q.TLS))
	if err != nil {
		return allow.Query{}, fmt.Errorf("url: %w", err)
	}
	q.Host, q.Port = to.host, to.port
	return q, nil
}
