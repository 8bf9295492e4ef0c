package allow

import (
	"slices"
	"strings"

	"bottle/bottle"
)

// SuggestAsk returns the narrowest sensible ask that would let the query through: its host,
// its port unless that is a usual one, its method, and its path: reads get the directory,
// since the next read is likely beside it; all else gets the very path. A CONNECT, of which
// no more is known, gets the host. A path that no rule can match is left out. The caller's
// reason is to be filled in: the one given only says so. A host that no route could name
// (an IP literal) gives the zero Ask.
func SuggestAsk(q Query) bottle.Ask {
	e := bottle.Entry{Host: q.Host}
	if q.Port != 0 && !slices.Contains(bottle.DefaultPorts(), q.Port) {
		e.Ports = []int{q.Port}
	}
	m := bottle.Match{}
	if q.Method != "CONNECT" {
		m.Method = q.Method
		m.Path = suggestPath(q.Method, q.Path)
	}
	if m.Method != "" || m.Path != nil {
		e.Matches = []bottle.Match{m}
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

func suggestPath(method, raw string) *bottle.PathMatch {
	if raw == "" {
		raw = "/"
	}
	p, err := bottle.NormalizePath(raw)
	if err != nil || len(p) > bottle.MaxValue {
		return nil
	}
	if method == "GET" || method == "HEAD" {
		if dir := p[:strings.LastIndexByte(p, '/')]; dir != "" {
			return &bottle.PathMatch{Type: bottle.PathPrefix, Value: dir}
		}
	}
	return &bottle.PathMatch{Type: bottle.Exact, Value: p}
}
