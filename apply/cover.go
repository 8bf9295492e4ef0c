package apply

import (
	"fmt"
	"slices"
	"strings"

	"bottle/bottle"
)

// covers reports whether whatever b allows, a allows too, for at least as long. It may say no where that is so: then a
// change is taken for a mixed one, and is carried out more carefully than it need be.
func covers(a, b bottle.Route) bool {
	if !a.Host.Covers(b.Host) || a.Mode() != b.Mode() || !outlives(a.Grant, b.Grant) {
		return false
	}
	// Without a credential less can be done, although the same is reached.
	if b.Credential != "" && a.Credential != b.Credential {
		return false
	}
	for _, p := range b.AllPorts() {
		if !slices.Contains(a.AllPorts(), p) {
			return false
		}
	}
	if len(a.Matches) == 0 {
		return true
	}
	return len(b.Matches) > 0 && !slices.ContainsFunc(b.Matches, func(m bottle.Match) bool {
		return !slices.ContainsFunc(a.Matches, func(wide bottle.Match) bool { return matchCovers(wide, m) })
	})
}

// outlives reports whether a grant (nil: a route without end) lasts at least as long as another.
func outlives(a, b *bottle.Grant) bool {
	switch {
	case a == nil:
		return true
	case b == nil:
		return a.Duration.Kind == bottle.Permanent
	case a.Duration.Kind == bottle.TTL && b.Duration.Kind == bottle.TTL:
		return a.ExpiresAt != nil && b.ExpiresAt != nil && !a.ExpiresAt.Before(*b.ExpiresAt)
	}
	return a.Duration.Kind == b.Duration.Kind && a.Request == b.Request || a.Duration.Kind == bottle.Permanent
}

func matchCovers(wide, m bottle.Match) bool {
	if wide.Method != "" && wide.Method != m.Method {
		return false
	}
	for _, h := range wide.Headers {
		if !slices.Contains(m.Headers, h) {
			return false
		}
	}
	for _, q := range wide.Query {
		if !slices.Contains(m.Query, q) {
			return false
		}
	}
	switch {
	case wide.Path == nil:
		return true
	case m.Path == nil:
		return false
	case *wide.Path == *m.Path:
		return true
	case wide.Path.Type != bottle.PathPrefix || m.Path.Type == bottle.RegularExpression:
		return false
	}
	prefix := strings.TrimSuffix(wide.Path.Value, "/")
	return m.Path.Value == prefix || strings.HasPrefix(m.Path.Value, prefix+"/")
}

// coveredBy returns those of the routes that one of others covers, in order.
func coveredBy(routes, others []bottle.Route) []bottle.Route {
	return slices.DeleteFunc(slices.Clone(routes), func(r bottle.Route) bool {
		return !slices.ContainsFunc(others, func(o bottle.Route) bool { return covers(o, r) })
	})
}

// covered says which entries are allowed already. Granting them all the same is fine, and may make them last longer.
func covered(add []bottle.Entry, routes []bottle.Route) []string {
	var notes []string
	for _, e := range add {
		want := bottle.Route{Host: e.Host, Ports: e.Ports, Matches: e.Matches}
		for _, r := range routes {
			until := ""
			if r.Grant != nil {
				until = " " + r.Grant.Duration.Words()
			}
			have := r
			have.Grant = nil
			if covers(have, want) {
				notes = append(notes, fmt.Sprintf("%s is allowed already%s, by: %s", strings.Join(e.Lines(), "; "), until, strings.Join(r.Entry().Lines(), "; ")))
				break
			}
		}
	}
	return notes
}
