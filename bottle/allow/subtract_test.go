package allow_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"

	"bottle/bottle"
	"bottle/bottle/allow"
)

func TestSubtract(t *testing.T) {
	m := func(method, p string) bottle.Match { return bottle.Match{Method: method, Path: prefix(p)} }
	all := func(h bottle.Host, ports ...int) bottle.Entry { return bottle.Entry{Host: h, Ports: ports} }
	some := func(h bottle.Host, ms ...bottle.Match) bottle.Entry { return bottle.Entry{Host: h, Matches: ms} }
	for _, tt := range []struct {
		name   string
		route  bottle.Route
		remove []bottle.Entry
		want   []string // lines of what stays; nil: nothing
		over   string
	}{
		{"the whole host", bottle.Route{Host: "a.test", Matches: []bottle.Match{m("GET", "/x")}}, []bottle.Entry{all("a.test")}, nil, ""},
		{"one of two ports", bottle.Route{Host: "a.test", Ports: []int{80, 443, 8443}}, []bottle.Entry{all("a.test", 8443)}, []string{"a.test  every method and path"}, ""},
		{"every port", bottle.Route{Host: "a.test", Ports: []int{443, 8443}}, []bottle.Entry{all("a.test", 8443), all("a.test", 443)}, nil, ""},
		{"the same match", bottle.Route{Host: "a.test", Matches: []bottle.Match{m("GET", "/x"), m("GET", "/y")}}, []bottle.Entry{some("a.test", m("GET", "/x"))}, []string{"a.test  GET /y/*"}, ""},
		{"a wider match", bottle.Route{Host: "a.test", Matches: []bottle.Match{m("GET", "/x/z"), m("GET", "/xy")}}, []bottle.Entry{some("a.test", m("", "/x"))}, []string{"a.test  GET /xy/*"}, ""},
		{"a narrower match takes the wider", bottle.Route{Host: "a.test", Matches: []bottle.Match{m("GET", "/x"), m("GET", "/y")}}, []bottle.Entry{some("a.test", m("GET", "/x/z"))}, []string{"a.test  GET /y/*"}, "a.test  GET /x/* goes too"},
		{"one method of any", bottle.Route{Host: "a.test", Matches: []bottle.Match{m("", "/x")}}, []bottle.Entry{some("a.test", m("POST", "/x"))}, nil, "goes too"},
		{"a match of a whole host", bottle.Route{Host: "a.test"}, []bottle.Entry{some("a.test", m("POST", "/x"))}, nil, "goes too"},
		{"a match on one port", bottle.Route{Host: "a.test", Matches: []bottle.Match{m("GET", "/x"), m("GET", "/y")}}, []bottle.Entry{{Host: "a.test", Ports: []int{443}, Matches: []bottle.Match{m("GET", "/x")}}}, []string{"a.test  GET /y/*"}, "goes too"},
		{"a name under a wildcard", bottle.Route{Host: "*.a.test"}, []bottle.Entry{all("x.a.test")}, nil, "*.a.test  every method and path goes too"},
		{"a wildcard over a name", bottle.Route{Host: "x.a.test"}, []bottle.Entry{all("*.a.test")}, nil, ""},
		{"an expression that fits", bottle.Route{Host: "a.test", Matches: []bottle.Match{{Path: path(bottle.RegularExpression, "/x/[0-9]+")}}}, []bottle.Entry{some("a.test", bottle.Match{Path: path(bottle.Exact, "/x/1")})}, nil, "goes too"},
		{"other headers", bottle.Route{Host: "a.test", Matches: []bottle.Match{
			{Headers: []bottle.HeaderMatch{{Name: "k", Value: "1"}}}, {Headers: []bottle.HeaderMatch{{Name: "k", Value: "2"}}},
		}}, []bottle.Entry{some("a.test", bottle.Match{Headers: []bottle.HeaderMatch{{Name: "k", Value: "1"}}})}, []string{`a.test  any /* k="2"`}, ""},
		{"other queries", bottle.Route{Host: "a.test", Matches: []bottle.Match{
			{Query: []bottle.QueryMatch{{Name: "k", Value: "1"}}}, {Query: []bottle.QueryMatch{{Name: "k", Value: "2"}}},
		}}, []bottle.Entry{some("a.test", bottle.Match{Query: []bottle.QueryMatch{{Name: "k", Value: "1"}}})}, []string{`a.test  any /* ?"k"="2"`}, ""},
		{"a part of the queries", bottle.Route{Host: "a.test", Matches: []bottle.Match{m("GET", "/x")}}, []bottle.Entry{some("a.test", bottle.Match{Path: prefix("/x"), Query: []bottle.QueryMatch{{Name: "k", Value: "1"}}})}, nil, "goes too"},
		{"every query of one", bottle.Route{Host: "a.test", Matches: []bottle.Match{{Path: prefix("/x"), Query: []bottle.QueryMatch{{Name: "k", Value: "1"}}}}}, []bottle.Entry{some("a.test", m("", "/x"))}, nil, ""},
		{"an expression over the query", bottle.Route{Host: "a.test", Matches: []bottle.Match{{Query: []bottle.QueryMatch{{Name: "k", Type: bottle.RegularExpression, Value: "[12]"}}}}}, []bottle.Entry{some("a.test", bottle.Match{Query: []bottle.QueryMatch{{Name: "k", Value: "1"}}})}, nil, "goes too"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			other := bottle.Route{Host: "other.test"}
			kept, err := allow.Subtract([]bottle.Route{other, tt.route}, tt.remove)
			if err != nil {
				t.Fatal(err)
			}
			if len(kept) == 0 || kept[0].Index != 0 || kept[0].Changed {
				t.Fatalf("the other route: %+v", kept)
			}
			var got []string
			for _, k := range kept[1:] {
				if k.Index != 1 || !k.Changed {
					t.Errorf("%+v", k)
				}
				got = append(got, k.Route.Lines()...)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("%q; want %q", got, tt.want)
			}
			over := strings.Join(allow.Overreach([]bottle.Route{other, tt.route}, tt.remove), "\n")
			if !strings.Contains(over, tt.over) || (over == "") != (tt.over == "") {
				t.Errorf("overreach %q; want %q", over, tt.over)
			}
		})
	}
}

func TestSubtractRefuses(t *testing.T) {
	routes := []bottle.Route{{Host: "a.test", Ports: []int{443}, Matches: []bottle.Match{{Method: "GET", Path: prefix("/x")}}}}
	for name, e := range map[string]bottle.Entry{
		"another host":      {Host: "b.test"},
		"another port":      {Host: "a.test", Ports: []int{80}},
		"another path":      {Host: "a.test", Matches: []bottle.Match{{Path: prefix("/y")}}},
		"another method":    {Host: "a.test", Matches: []bottle.Match{{Method: "PUT"}}},
		"the wildcard":      {Host: "*.a.test"},
		"a host that is no": {Host: "1.2.3.4"},
	} {
		kept, err := allow.Subtract(routes, []bottle.Entry{{Host: "a.test"}, e})
		if !errors.Is(err, bottle.ErrInvalid) || !strings.HasPrefix(err.Error(), "remove[1]: ") || kept != nil {
			t.Errorf("%s: %v, %v", name, kept, err)
		}
	}
}

// Whatever the routes, after a removal nothing is allowed that the entries describe, and
// nothing that was not allowed before.
func TestSubtractNeverLeavesMore(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	pick := func(s ...string) string { return s[rnd.IntN(len(s))] }
	hosts := []string{"a.test", "b.a.test", "*.a.test", "c.test"}
	paths := []string{"/", "/x", "/x/y", "/xy", "/x/y/z"}
	methods := []string{"", "GET", "POST"}
	entry := func() bottle.Entry {
		e := bottle.Entry{Host: bottle.Host(pick(hosts...))}
		if rnd.IntN(2) == 0 {
			e.Ports = [][]int{{443}, {80}, {443, 8443}}[rnd.IntN(3)]
		}
		for range rnd.IntN(3) {
			m := bottle.Match{Method: pick(methods...)}
			switch rnd.IntN(4) {
			case 0:
				m.Path = path(bottle.Exact, pick(paths...))
			case 1:
				m.Path = prefix(pick(paths...))
			case 2:
				m.Path = path(bottle.RegularExpression, pick("/x.*", "/[xy]/y", ".*", "^/x/y$", "(?i)/X", "/x|/c"))
			}
			if rnd.IntN(3) == 0 || m.Path == nil && m.Method == "" {
				m.Headers = []bottle.HeaderMatch{{Name: "k", Value: pick("1", "2")}, {Name: "l", Type: bottle.RegularExpression, Value: pick("1", "[12]")}}[:1+rnd.IntN(2)]
			}
			if rnd.IntN(3) == 0 {
				m.Query = []bottle.QueryMatch{{Name: "k", Value: pick("1", "2")}, {Name: "l", Type: bottle.RegularExpression, Value: pick("1", "[12]")}}[:1+rnd.IntN(2)]
			}
			e.Matches = append(e.Matches, m)
		}
		return e
	}
	var queries []allow.Query
	for _, h := range []bottle.Host{"a.test", "b.a.test", "z.a.test", "c.test"} {
		for _, port := range []int{80, 443, 8443} {
			for _, method := range []string{"GET", "POST", "PUT"} {
				for _, p := range append([]string{"/q", "/y/y", "/X", "/c"}, paths...) {
					for _, k := range []string{"", "1", "2"} {
						q := allow.Query{Host: h, Port: port, Method: method, Path: p, TLS: true, Header: http.Header{}}
						if k != "" {
							q.Header = http.Header{"K": {k}, "L": {k}}
						}
						for _, raw := range []string{"", "k=1&l=1", "k=2&l=2"} {
							q.Query = raw
							queries = append(queries, q)
						}
					}
				}
			}
		}
	}
	removed := 0
	for range 400 {
		var routes, described []bottle.Route
		for range 1 + rnd.IntN(4) {
			e := entry()
			routes = append(routes, bottle.Route{Host: e.Host, Ports: e.Ports, Matches: e.Matches})
		}
		var remove []bottle.Entry
		for range 1 + rnd.IntN(2) {
			e := entry()
			remove = append(remove, e)
			if e.Ports == nil {
				e.Ports = []int{80, 443, 8443}
			}
			described = append(described, bottle.Route{Host: e.Host, Ports: e.Ports, Matches: e.Matches})
		}
		kept, err := allow.Subtract(routes, remove)
		if err != nil {
			continue
		}
		removed++
		var left []bottle.Route
		for _, k := range kept {
			left = append(left, k.Route)
		}
		before, after, gone := compile(t, routes...), compile(t, left...), compile(t, described...)
		for _, q := range queries {
			if v := after.Decide(q, nil); v.Allowed && (gone.Decide(q, nil).Allowed || !before.Decide(q, nil).Allowed) {
				t.Fatalf("%s %s:%d%s is still allowed by %s\nroutes %s\nremoved %s", q.Method, q.Host, q.Port, q.Path, v.Reason, fmt.Sprint(routes), fmt.Sprint(remove))
			}
		}
	}
	if removed < 100 {
		t.Errorf("only %d of the removals touched anything", removed)
	}
}
