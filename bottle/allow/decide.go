package allow

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"bottle/bottle"
)

// A Query is one request to judge. All of it but Host was written by the agent.
type Query struct {
	Host   bottle.Host // from [bottle.ParseHost]; the one that would be dialled
	Port   int
	Method string      // as on the wire; methods are case-sensitive (RFC 9110, 9.1)
	Path   string      // raw, as on the wire, without the query; empty means /
	Query  string      // raw, without the question mark. Only one that servers can't read in two ways fits a match by query.
	Header http.Header // canonical keys, as net/http reads them
	TLS    bool        // it came, and would go on, inside TLS
}

// A Verdict is what [Table.Decide] made of a query. Its texts are one line each and
// escape what the agent wrote.
type Verdict struct {
	Allowed bool
	Route   int    // index into [Table.Routes] of the route that allows it, else -1
	Path    string // what must go upstream, byte for byte; empty unless allowed
	Reason  string // why, in either case
	Nearest string // of a denial: the rule that came nearest and why it does not fit; may be empty
}

// Live reports whether a grant still holds: not ended, not spent. It is asked only of
// routes that have one.
type Live = func(*bottle.Grant) bool

// how far a rule came before it failed; the further, the nearer.
const (
	failedPort = iota + 1
	failedPath
	failedMethod
	failedHeader
	failedQuery
	failedTLS
	failedGrant
)

// Decide judges a request against the live routes; a nil live takes every grant as live.
//
// Of several routes that allow it, the verdict names the first in this order: one that is
// not for a single request before one that is (so that nothing is spent needlessly); a
// named host before a wildcard; by path Exact, RegularExpression, the longer PathPrefix,
// none; with a method before without; more headers before fewer; more query parameters before
// fewer; the earlier in the file.
// A credential gives no precedence of its own, so it goes along only if the route that
// has it is the more specific one. A credentialed route never fits a request without TLS.
func (t *Table) Decide(q Query, live Live) Verdict {
	if q.Path == "" {
		q.Path = "/"
	}
	if err := bottle.CheckRawPath(q.Path); err != nil {
		return Verdict{Route: -1, Reason: reason(err)}
	}
	norm, pathErr := bottle.NormalizePath(q.Path)
	var (
		best  *found
		worse miss
	)
	named, wild := t.candidates(q.Host)
	for _, list := range [][]int{named, wild} {
		for _, i := range list {
			f, m := t.rules[i].try(q, norm, pathErr, live)
			if f == nil {
				m.route = i
				if m.stage > worse.stage {
					worse = m
				}
				continue
			}
			f.route = i
			if best == nil || compareFound(f, best) < 0 {
				best = f
			}
		}
	}
	if best != nil {
		v := Verdict{Allowed: true, Route: best.route, Path: q.Path}
		if best.byPath {
			v.Path = norm
		}
		v.Reason = "allowed by " + t.describe(best.route, best.text)
		return v
	}
	v := Verdict{Route: -1}
	switch {
	case worse.stage == 0:
		v.Reason = fmt.Sprintf("no route allows the host %s", q.Host)
		v.Nearest = t.nearestHost(q.Host)
	case pathErr != nil && worse.stage == failedPath:
		v.Reason = reason(pathErr)
		v.Nearest = t.nearestRule(worse)
	default:
		v.Reason = fmt.Sprintf("no route for %s allows this request: %s", q.Host, worse.why)
		v.Nearest = t.nearestRule(worse)
	}
	return v
}

// found is a rule that fits, and how specific it is.
type found struct {
	route   int
	text    string
	byPath  bool // a path constraint had its say
	once    bool
	wild    bool
	rank    pathRank
	method  bool
	headers int
	query   int
}

func compareFound(a, b *found) int {
	return cmp.Or(
		first(!a.once, !b.once),
		first(!a.wild, !b.wild),
		-cmp.Compare(a.rank.kind, b.rank.kind),
		-cmp.Compare(a.rank.length, b.rank.length),
		first(a.method, b.method),
		-cmp.Compare(a.headers, b.headers),
		-cmp.Compare(a.query, b.query),
		cmp.Compare(a.route, b.route),
	)
}

func first(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

// miss is a rule that does not fit, and why.
type miss struct {
	route int
	stage int
	text  string // the match that came furthest
	why   string
}

// try judges q by one rule whose host covers it.
func (r *rule) try(q Query, norm string, pathErr error, live Live) (*found, miss) {
	if !slices.Contains(r.ports, q.Port) {
		return nil, miss{stage: failedPort, why: fmt.Sprintf("port %d is not among %s", q.Port, portList(r.ports))}
	}
	f := &found{once: r.route.Grant != nil && r.route.Grant.Duration.Kind == bottle.Once, wild: r.route.Host.Wildcard()}
	if len(r.matches) > 0 {
		var (
			hit   *match
			worse miss
		)
		for i := range r.matches {
			m := &r.matches[i]
			ok, why := m.try(q, norm, pathErr)
			if !ok {
				if why.stage > worse.stage {
					worse = why
				}
				continue
			}
			if hit == nil || m.compare(hit) < 0 {
				hit = m
			}
		}
		if hit == nil {
			return nil, worse
		}
		f.text, f.byPath, f.rank = hit.text, hit.path != nil, hit.rank
		f.method, f.headers = hit.method != "", len(hit.headers)
		f.query = len(hit.query)
	}
	if r.route.Credential != "" && !q.TLS {
		return nil, miss{stage: failedTLS, text: f.text, why: "its credential travels only over TLS, and this is plain HTTP; use https"}
	}
	if g := r.route.Grant; g != nil && live != nil && !live(g) {
		return nil, miss{stage: failedGrant, text: f.text, why: fmt.Sprintf("the grant %s has ended", g.Request)}
	}
	return f, miss{}
}

func (m *match) compare(o *match) int {
	return cmp.Or(
		-cmp.Compare(m.rank.kind, o.rank.kind),
		-cmp.Compare(m.rank.length, o.rank.length),
		first(m.method != "", o.method != ""),
		-cmp.Compare(len(m.headers), len(o.headers)),
		-cmp.Compare(len(m.query), len(o.query)),
	)
}

func (m *match) try(q Query, norm string, pathErr error) (bool, miss) {
	switch {
	case m.path != nil && pathErr != nil:
		return false, miss{stage: failedPath, text: m.text, why: reason(pathErr)}
	case m.path != nil && !m.path(norm):
		return false, miss{stage: failedPath, text: m.text, why: fmt.Sprintf("path %s is outside it", quote(norm))}
	case m.method != "" && m.method != q.Method:
		return false, miss{stage: failedMethod, text: m.text, why: fmt.Sprintf("method %s is not %s", quote(q.Method), m.method)}
	}
	for _, h := range m.headers {
		// net/http has canonical keys; another spelling of the name could only hide a second value.
		values := headerValues(q.Header, h.name)
		switch {
		case len(values) == 0:
			return false, miss{stage: failedHeader, text: m.text, why: fmt.Sprintf("header %s is missing", h.name)}
		case len(values) > 1:
			return false, miss{stage: failedHeader, text: m.text, why: fmt.Sprintf("header %s is there %d times, and one value is judged", h.name, len(values))}
		case !h.match(values[0]):
			return false, miss{stage: failedHeader, text: m.text, why: fmt.Sprintf("header %s has another value", h.name)}
		}
	}
	if why := tryQuery(m.query, q.Query); why != "" {
		return false, miss{stage: failedQuery, text: m.text, why: why}
	}
	return true, miss{}
}

func headerValues(h http.Header, lower string) []string {
	var out []string
	for k, v := range h {
		if len(k) == len(lower) && strings.EqualFold(k, lower) {
			out = append(out, v...)
		}
	}
	return out
}
