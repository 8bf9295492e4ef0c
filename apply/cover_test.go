package apply_test

import (
	"testing"
	"time"

	"bottle/apply"
	"bottle/bottle"
)

func TestCovers(t *testing.T) {
	early, late := time.Unix(1000, 0), time.Unix(2000, 0)
	grant := func(k bottle.DurationKind, ends *time.Time) *bottle.Grant {
		return &bottle.Grant{Request: "r1", Duration: bottle.Duration{Kind: k}, ExpiresAt: ends}
	}
	path := func(kind bottle.MatchType, value, method string, headers ...bottle.HeaderMatch) []bottle.Match {
		return []bottle.Match{{Path: &bottle.PathMatch{Type: kind, Value: value}, Method: method, Headers: headers}}
	}
	whole := bottle.Route{Host: "a.example.com"}
	with := func(change func(*bottle.Route)) bottle.Route {
		r := whole
		change(&r)
		return r
	}
	matching := func(m []bottle.Match) bottle.Route { return with(func(r *bottle.Route) { r.Matches = m }) }
	lasting := func(g *bottle.Grant) bottle.Route { return with(func(r *bottle.Route) { r.Grant = g }) }
	v1 := matching(path(bottle.PathPrefix, "/v1", ""))
	header := bottle.HeaderMatch{Name: "x-team", Value: "a"}
	byQuery := matching([]bottle.Match{{Path: v1.Matches[0].Path, Query: []bottle.QueryMatch{{Name: "q", Value: "a"}}}})
	for _, tt := range []struct {
		name       string
		a, b       bottle.Route
		ab, backTo bool // a covers b, b covers a
	}{
		{"itself", whole, whole, true, true},
		{"another host", whole, bottle.Route{Host: "b.example.com"}, false, false},
		{"wildcard", bottle.Route{Host: "*.example.com"}, whole, true, false},
		{"wildcard and apex", bottle.Route{Host: "*.example.com"}, bottle.Route{Host: "example.com"}, false, false},
		{"ports", whole, with(func(r *bottle.Route) { r.Ports = []int{443} }), true, false},
		{"whole host and path", whole, v1, true, false},
		{"segments", v1, matching(path(bottle.PathPrefix, "/v1/x", "")), true, false},
		{"not segments", v1, matching(path(bottle.PathPrefix, "/v1beta", "")), false, false},
		{"exact below", v1, matching(path(bottle.Exact, "/v1/x", "")), true, false},
		{"the prefix itself", v1, matching(path(bottle.Exact, "/v1", "")), true, false},
		{"root", matching(path(bottle.PathPrefix, "/", "")), v1, true, false},
		{"expression", v1, matching(path(bottle.RegularExpression, "/v1/.*", "")), false, false},
		{"method", v1, matching(path(bottle.PathPrefix, "/v1", "GET")), true, false},
		{"header", v1, matching(path(bottle.PathPrefix, "/v1", "", header)), true, false},
		{"query", v1, byQuery, true, false},
		{"another query", byQuery, matching([]bottle.Match{{Path: v1.Matches[0].Path, Query: []bottle.QueryMatch{{Name: "q", Value: "b"}}}}), false, false},
		{"method alone", matching([]bottle.Match{{Method: "GET"}}), matching(path(bottle.PathPrefix, "/v1", "GET")), true, false},
		{"credential", with(func(r *bottle.Route) { r.Credential = "example" }), whole, true, false},
		{"other credential", with(func(r *bottle.Route) { r.Credential = "one" }), with(func(r *bottle.Route) { r.Credential = "two" }), false, false},
		{"passthrough", with(func(r *bottle.Route) { r.TLS = bottle.Passthrough }), whole, false, false},
		{"without end", whole, lasting(grant(bottle.Session, nil)), true, false},
		{"permanent", lasting(grant(bottle.Permanent, nil)), whole, true, true},
		{"longer", lasting(grant(bottle.TTL, &late)), lasting(grant(bottle.TTL, &early)), true, false},
		{"other kinds", lasting(grant(bottle.Session, nil)), lasting(grant(bottle.TTL, &early)), false, false},
		{"the same grant", lasting(grant(bottle.Once, nil)), lasting(grant(bottle.Once, nil)), true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := apply.Covers(tt.a, tt.b); got != tt.ab {
				t.Errorf("a covers b: %v", got)
			}
			if got := apply.Covers(tt.b, tt.a); got != tt.backTo {
				t.Errorf("b covers a: %v", got)
			}
		})
	}
}
