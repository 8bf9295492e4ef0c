package allow

import (
	"strings"

	"bottle/bottle"
)

// SuggestAsk returns the narrowest sensible ask that would let the query through: its host,
// its port alone (the usual ones would open plain HTTP beside TLS), its method, and its path:
// reads get the directory, since the next read is likely beside it; all else gets the very
// path. What begins a git fetch gets the request that follows it too. A CONNECT, of which no
// more is known, gets the host. A path that no rule can match is left out. The caller's
// reason is to be filled in: the one given only says so. A host that no route could name
// (an IP literal) gives the zero Ask.
func SuggestAsk(q Query) bottle.Ask {
	e := bottle.Entry{Host: q.Host}
	if q.Port != 0 {
		e.Ports = []int{q.Port}
	}
	if q.Method != "CONNECT" {
		e.Matches = suggestMatches(q.Method, q.Path)
	}
	c, err := e.Canonical()
	if err != nil && len(e.Matches) > 0 { // a method that can't be routed
		e.Matches = nil
		c, err = e.Canonical()
	}
	if err != nil {
		return bottle.Ask{}
	}
	return bottle.Ask{Kind: bottle.KindAccess, Add: []bottle.Entry{c}, Reason: "say in a sentence what you need " + string(c.Host) + " for"}
}

func suggestMatches(method, raw string) []bottle.Match {
	if raw == "" {
		raw = "/"
	}
	p, err := bottle.NormalizePath(raw)
	if err != nil || len(p) > bottle.MaxValue {
		if method == "" {
			return nil
		}
		return []bottle.Match{{Method: method}}
	}
	if method == "GET" {
		if fetch := gitFetch(p); fetch != nil {
			return fetch
		}
	}
	path := &bottle.PathMatch{Type: bottle.Exact, Value: p}
	if method == "GET" || method == "HEAD" {
		if dir := p[:strings.LastIndexByte(p, '/')]; dir != "" {
			path = &bottle.PathMatch{Type: bottle.PathPrefix, Value: dir}
		}
	}
	return []bottle.Match{{Method: method, Path: path}}
}

// gitFetch returns what a fetch or clone over git's smart HTTP protocol sends, if p is the
// path of its first request, or nil: a GET of REPOSITORY/info/refs, then a POST to
// REPOSITORY/git-upload-pack (gitprotocol-http). That the query names the service can't be
// seen here; a push, whose first request has the same path, is not helped by this.
func gitFetch(p string) []bottle.Match {
	repo, ok := strings.CutSuffix(p, "/info/refs")
	pack := repo + "/git-upload-pack"
	if !ok || len(pack) > bottle.MaxValue {
		return nil
	}
	return []bottle.Match{
		{Method: "GET", Path: &bottle.PathMatch{Type: bottle.PathPrefix, Value: p}},
		{Method: "POST", Path: &bottle.PathMatch{Type: bottle.Exact, Value: pack}},
	}
}
