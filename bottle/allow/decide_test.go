package allow_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"bottle/bottle"
	"bottle/bottle/allow"
)

func compile(t testing.TB, routes ...bottle.Route) *allow.Table {
	t.Helper()
	tab, err := allow.Compile(routes)
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

func path(kind bottle.MatchType, v string) *bottle.PathMatch {
	return &bottle.PathMatch{Type: kind, Value: v}
}

func prefix(v string) *bottle.PathMatch { return path(bottle.PathPrefix, v) }

func grant(name string, kind bottle.DurationKind) *bottle.Grant {
	return &bottle.Grant{Request: name, By: "1000 operator", At: time.Unix(0, 0), Duration: bottle.Duration{Kind: kind}}
}

func dead(*bottle.Grant) bool { return false }

func TestDecideHost(t *testing.T) {
	tab := compile(t,
		bottle.Route{Host: "Example.com."},
		bottle.Route{Host: "*.wild.test"},
		bottle.Route{Host: "bücher.example"},
	)
	for _, tt := range []struct {
		name, host string
		ok         bool
		nearest    string
	}{
		{"the name", "example.com", true, ""},
		{"below it", "api.example.com", false, "does not cover names below"},
		{"a suffix", "notexample.com", false, ""},
		{"a left part", "example.com.evil.test", false, ""},
		{"above it", "com", false, ""},
		{"one label under the wildcard", "a.wild.test", true, ""},
		{"two labels", "b.a.wild.test", false, "exactly one label"},
		{"the wildcard's apex", "wild.test", false, "does not cover the name below which"},
		{"the pattern itself", "*.wild.test", false, "exactly one label"},
		{"punycode", "xn--bcher-kva.example", true, ""},
		{"not canonical: case", "Example.com", false, ""},
		{"not canonical: dot", "example.com.", false, ""},
		{"not canonical: case, under the wildcard", "A.wild.test", false, ""},
		{"not canonical: dot, under the wildcard", "a.wild.test.", false, ""},
		{"an empty label", ".wild.test", false, ""},
		{"NUL", "a\x00.wild.test", false, ""},
		{"CRLF", "a\r\n.wild.test", false, ""},
		{"a tab", "a\t.wild.test", false, ""},
		{"an escape", "%61.wild.test", false, ""},
		{"userinfo", "x@a.wild.test", false, ""},
		{"Unicode", "ü.wild.test", false, ""},
		{"an overlong label", strings.Repeat("a", 64) + ".wild.test", false, ""},
		{"empty", "", false, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q := allow.Query{Host: bottle.Host(tt.host), Port: 443, Method: "GET", Path: "/", TLS: true}
			v := tab.Decide(q, nil)
			if v.Allowed != tt.ok || !strings.Contains(v.Nearest, tt.nearest) || v.Reason == "" {
				t.Errorf("%+v", v)
			}
			if c := tab.Connect(q.Host, 443, nil); c.Known != tt.ok || !strings.Contains(c.Nearest, tt.nearest) || c.Reason == "" {
				t.Errorf("connect: %+v", c)
			}
		})
	}
}

// Each spelling of a way out of /v1 that THREATS knows, raw on the wire.
func TestDecideNeverWidens(t *testing.T) {
	tab := compile(t, bottle.Route{Host: "a.test", Matches: []bottle.Match{{Path: prefix("/v1/"), Method: "GET"}}})
	for raw, sent := range map[string]string{
		"/v1": "/v1", "/v1/": "/v1/", "/v1/x": "/v1/x", "/%761/x": "/v1/x", "/v1/a%20b": "/v1/a%20b", "/v1/x;y=z": "/v1/x;y=z",
		"/v1beta": "", "/v1.0": "", "/V1/x": "", "/": "", "": "", "/v": "", "/v1;x/admin": "", "/v1%20/x": "",
		"/v1/../admin": "", "/v1/%2e%2e/admin": "", "/v1/%2E./admin": "", "/v1/..;/admin": "", "/v1/..%3B/admin": "",
		"/v1/%252e%252e/admin": "", "/v1//../admin": "", "//v1/x": "", "/v1//x": "", "/v1%2f..%2fadmin": "", `/v1\..\admin`: "",
		"/v1%5c..%5cadmin": "", "/v1/..%c0%afadmin": "", "/v1/x\x00": "", "/v1/x%00": "", "/v1/x\r\nHost: b": "", "/v1/%": "",
		"/x/../v1/y": "", "/./v1/x": "",
	} {
		v := tab.Decide(allow.Query{Host: "a.test", Port: 443, Method: "GET", Path: raw, TLS: true}, nil)
		if v.Allowed != (sent != "") || v.Path != sent {
			t.Errorf("%q: %+v; want %q sent", raw, v, sent)
		}
		if strings.ContainsAny(v.Reason+v.Nearest, "\r\n\x00") || v.Reason == "" || !v.Allowed && v.Route != -1 {
			t.Errorf("%q: %+v", raw, v)
		}
	}
}

func TestDecidePathsUnderWholeHost(t *testing.T) {
	tab := compile(t, bottle.Route{Host: "a.test"}, bottle.Route{Host: "get.test", Matches: []bottle.Match{{Method: "GET"}}})
	for raw, ok := range map[string]bool{
		"/@scope%2fname": true, "/a//b": true, "/x/../y": true, "/%zz": true, "/a;b": true,
		"//evil.test/": false, "/a b": false, "/a\r\nX: y": false, "/\x00": false, "http://evil.test/": false, "*": false,
	} {
		for _, h := range []bottle.Host{"a.test", "get.test"} {
			v := tab.Decide(allow.Query{Host: h, Port: 80, Method: "GET", Path: raw}, nil)
			if v.Allowed != ok || ok && v.Path != raw {
				t.Errorf("%s %q: %+v", h, raw, v)
			}
		}
	}
}

func TestDecideParts(t *testing.T) {
	tab := compile(t,
		bottle.Route{Host: "a.test", Ports: []int{8443}, Matches: []bottle.Match{
			{Path: path(bottle.Exact, "/x"), Method: "post"},
			{Path: path(bottle.RegularExpression, "/r/[0-9]+")},
			{Path: prefix("/h"), Headers: []bottle.HeaderMatch{{Name: "X-One", Value: "1"}, {Name: "x-two", Type: bottle.RegularExpression, Value: "a|bb"}}},
		}},
		bottle.Route{Host: "key.test", Credential: "key"},
		bottle.Route{Host: "past.test", Grant: grant("r3", bottle.Session)},
	)
	for _, tt := range []struct {
		name   string
		q      allow.Query
		live   allow.Live
		ok     bool
		reason string
	}{
		{"exact", allow.Query{Host: "a.test", Port: 8443, Method: "POST", Path: "/x"}, nil, true, "POST =/x"},
		{"exact, a slash more", allow.Query{Host: "a.test", Port: 8443, Method: "POST", Path: "/x/"}, nil, false, "outside it"},
		{"another method", allow.Query{Host: "a.test", Port: 8443, Method: "GET", Path: "/x"}, nil, false, `method "GET" is not POST`},
		{"methods have a case", allow.Query{Host: "a.test", Port: 8443, Method: "post", Path: "/x"}, nil, false, `method "post"`},
		{"another port", allow.Query{Host: "a.test", Port: 443, Method: "POST", Path: "/x"}, nil, false, "port 443 is not among the route's port 8443"},
		{"expression", allow.Query{Host: "a.test", Port: 8443, Method: "PUT", Path: "/r/12"}, nil, true, ""},
		{"expression, the whole value", allow.Query{Host: "a.test", Port: 8443, Method: "PUT", Path: "/r/12/x"}, nil, false, "outside it"},
		{"headers", allow.Query{Host: "a.test", Port: 8443, Path: "/h", Header: http.Header{"X-One": {"1"}, "X-Two": {"bb"}}}, nil, true, ""},
		{"a header is missing", allow.Query{Host: "a.test", Port: 8443, Path: "/h", Header: http.Header{"X-One": {"1"}}}, nil, false, "x-two is missing"},
		{"a header has another value", allow.Query{Host: "a.test", Port: 8443, Path: "/h", Header: http.Header{"X-One": {"1"}, "X-Two": {"b"}}}, nil, false, "x-two has another value"},
		{"a header twice", allow.Query{Host: "a.test", Port: 8443, Path: "/h", Header: http.Header{"X-One": {"1", "1"}, "X-Two": {"a"}}}, nil, false, "x-one is there 2 times"},
		{
			"a header twice, in two spellings",
			allow.Query{Host: "a.test", Port: 8443, Path: "/h", Header: http.Header{"X-One": {"1"}, "x-one": {"2"}, "X-Two": {"a"}}},
			nil, false, "x-one is there 2 times",
		},
		{"a credential inside TLS", allow.Query{Host: "key.test", Port: 443, Method: "GET", TLS: true}, nil, true, ""},
		{"a credential over http", allow.Query{Host: "key.test", Port: 80, Method: "GET"}, nil, false, "only over TLS"},
		{"a live grant", allow.Query{Host: "past.test", Port: 443}, nil, true, "grant r3"},
		{"a grant that has ended", allow.Query{Host: "past.test", Port: 443}, dead, false, "the grant r3 has ended"},
		{"a manifest route asks nobody", allow.Query{Host: "key.test", Port: 443, TLS: true}, dead, true, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := tab.Decide(tt.q, tt.live)
			if v.Allowed != tt.ok || !strings.Contains(v.Reason, tt.reason) {
				t.Errorf("%+v; want %q", v, tt.reason)
			}
			if !v.Allowed && v.Nearest == "" {
				t.Error("no nearest rule")
			}
		})
	}
}

func TestDecideOrder(t *testing.T) {
	whole := bottle.Route{Host: "a.test"}
	wild := bottle.Route{Host: "*.test.example", Matches: []bottle.Match{{Path: path(bottle.Exact, "/v1/x")}}}
	named := bottle.Route{Host: "a.test.example"}
	v1 := bottle.Route{Host: "a.test", Matches: []bottle.Match{{Path: prefix("/v1")}}}
	keyed := bottle.Route{Host: "a.test", Matches: []bottle.Match{{Path: prefix("/v1")}}, Credential: "key"}
	exact := bottle.Route{Host: "a.test", Matches: []bottle.Match{{Path: path(bottle.Exact, "/v1/x")}}}
	get := bottle.Route{Host: "a.test", Matches: []bottle.Match{{Path: prefix("/v1"), Method: "GET"}}}
	once := bottle.Route{Host: "a.test", Matches: exact.Matches, Grant: grant("r1", bottle.Once)}
	keyedWhole := bottle.Route{Host: "a.test", Credential: "key"}
	for _, tt := range []struct {
		name   string
		host   bottle.Host
		routes []bottle.Route
		want   int
	}{
		{"once comes last", "a.test", []bottle.Route{once, whole}, 1},
		{"once, if nothing else", "a.test", []bottle.Route{once}, 0},
		{"the longer path", "a.test", []bottle.Route{whole, v1}, 1},
		{"exact before prefix", "a.test", []bottle.Route{v1, exact}, 1},
		{"with a method", "a.test", []bottle.Route{v1, get}, 1},
		{"the earlier of equals", "a.test", []bottle.Route{v1, keyed}, 0},
		{"the credential, being narrower", "a.test", []bottle.Route{whole, keyed}, 1},
		{"no credential, being narrower", "a.test", []bottle.Route{keyedWhole, v1}, 1},
		{"the named host", "a.test.example", []bottle.Route{wild, named}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := compile(t, tt.routes...).Decide(allow.Query{Host: tt.host, Port: 443, Method: "GET", Path: "/v1/x", TLS: true}, nil)
			if !v.Allowed || v.Route != tt.want {
				t.Errorf("%+v; want route %d", v, tt.want)
			}
		})
	}
}

func TestConnectMode(t *testing.T) {
	pass := bottle.Route{Host: "a.example.test", TLS: bottle.Passthrough}
	inter := bottle.Route{Host: "a.example.test"}
	keyed := bottle.Route{Host: "a.example.test", Credential: "key"}
	wild := bottle.Route{Host: "*.example.test", TLS: bottle.Passthrough}
	passOnce := bottle.Route{Host: "a.example.test", TLS: bottle.Passthrough, Grant: grant("r1", bottle.Once)}
	for _, tt := range []struct {
		name   string
		routes []bottle.Route
		live   allow.Live
		want   int
		mode   bottle.TLSMode
	}{
		{"intercept", []bottle.Route{inter}, nil, 0, bottle.Intercept},
		{"passthrough", []bottle.Route{pass}, nil, 0, bottle.Passthrough},
		{"passthrough is the wider", []bottle.Route{inter, pass}, nil, 1, bottle.Passthrough},
		{"a credential needs interception", []bottle.Route{pass, keyed}, nil, 1, bottle.Intercept},
		{"the named host before the wildcard", []bottle.Route{wild, inter}, nil, 1, bottle.Intercept},
		{"once comes last", []bottle.Route{passOnce, pass}, nil, 1, bottle.Passthrough},
		{"a dead grant does not count", []bottle.Route{passOnce, inter}, dead, 1, bottle.Intercept},
		{"nor does it alone", []bottle.Route{passOnce}, dead, -1, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := compile(t, tt.routes...).Connect("a.example.test", 443, tt.live)
			if v.Known != (tt.want >= 0) || v.Route != tt.want || v.Mode != tt.mode {
				t.Errorf("%+v", v)
			}
		})
	}
	if v := compile(t, pass).Connect("a.example.test", 22, nil); v.Known || !strings.Contains(v.Reason, "port 22") || v.Nearest == "" {
		t.Errorf("another port: %+v", v)
	}
}

func TestCompileRefuses(t *testing.T) {
	for name, r := range map[string]bottle.Route{
		"an address":         {Host: "127.0.0.1"},
		"a public suffix":    {Host: "*.com"},
		"a path that climbs": {Host: "a.test", Matches: []bottle.Match{{Path: prefix("/a/../b")}}},
		"an expression":      {Host: "a.test", Matches: []bottle.Match{{Path: path(bottle.RegularExpression, "(")}}},
	} {
		if _, err := allow.Compile([]bottle.Route{{Host: "ok.test"}, r}); err == nil || !strings.HasPrefix(err.Error(), "routes[1]: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := allow.Compile(make([]bottle.Route, bottle.MaxRoutes+1)); err == nil {
		t.Error("too many routes compiled")
	}
}

func TestSuggestAsk(t *testing.T) {
	longRefs := "/" + strings.Repeat("a", bottle.MaxValue-len("//info/refs")) + "/info/refs"
	for _, tt := range []struct {
		name string
		q    allow.Query
		want string
	}{
		{"a read gets the directory", allow.Query{Host: "a.test", Port: 443, Method: "GET", Path: "/acme/app/x"}, "a.test:443  GET /acme/app/*"},
		{"a read at the top gets the path", allow.Query{Host: "a.test", Port: 443, Method: "GET", Path: "/x"}, "a.test:443  GET =/x"},
		{"a write gets the path", allow.Query{Host: "a.test", Port: 443, Method: "POST", Path: "/v1/x"}, "a.test:443  POST =/v1/x"},
		{"another port", allow.Query{Host: "a.test", Port: 8443, Method: "GET"}, "a.test:8443  GET =/"},
		{"plain HTTP", allow.Query{Host: "a.test", Port: 80, Method: "GET", Path: "/x"}, "a.test:80  GET =/x"},
		{"a port that isn't known", allow.Query{Host: "a.test", Method: "GET", Path: "/x"}, "a.test  GET =/x"},
		{"a git fetch", allow.Query{Host: "a.test", Port: 443, Method: "GET", Path: "/acme/app.git/info/refs"}, "a.test:443  GET /acme/app.git/info/refs/*;a.test:443  POST =/acme/app.git/git-upload-pack"},
		{"refs at the root", allow.Query{Host: "a.test", Port: 443, Method: "GET", Path: "/info/refs"}, "a.test:443  GET /info/refs/*;a.test:443  POST =/git-upload-pack"},
		{"refs of a repository whose path is too long", allow.Query{Host: "a.test", Port: 443, Method: "GET", Path: longRefs}, "a.test:443  GET " + strings.TrimSuffix(longRefs, "/refs") + "/*"},
		{"refs written", allow.Query{Host: "a.test", Port: 443, Method: "PUT", Path: "/a/info/refs"}, "a.test:443  PUT =/a/info/refs"},
		{"a path without normal form", allow.Query{Host: "a.test", Port: 443, Method: "GET", Path: "/@a%2fb"}, "a.test:443  GET /*"},
		{"a tunnel", allow.Query{Host: "a.test", Port: 443, Method: "CONNECT"}, "a.test:443  every method and path"},
		{"a method that can't be routed", allow.Query{Host: "a.test", Port: 443, Method: "TRACE", Path: "/"}, "a.test:443  every method and path"},
	} {
		ask, err := allow.SuggestAsk(tt.q).Canonical()
		if err != nil {
			t.Errorf("%s: not an ask that would be taken: %v", tt.name, err)
			continue
		}
		if got := strings.Join(ask.Add[0].Lines(), ";"); got != tt.want {
			t.Errorf("%s: %q; want %q", tt.name, got, tt.want)
		}
	}
	if ask := allow.SuggestAsk(allow.Query{Host: "127.0.0.1", Port: 443, Method: "GET"}); len(ask.Add) != 0 {
		t.Errorf("an address: %+v", ask)
	}
}

func FuzzDecide(f *testing.F) {
	for _, h := range []string{"example.com", "a.wild.test", "A.wild.test", "a.wild.test.", "xn--bcher-kva.wild.test", "1.2.3.4", "\x00.wild.test"} {
		f.Add(h, "/v1/x")
	}
	tab := compile(f, bottle.Route{Host: "example.com"}, bottle.Route{Host: "*.wild.test", Matches: []bottle.Match{{Path: prefix("/v1")}}})
	f.Fuzz(func(t *testing.T, host, raw string) {
		v := tab.Decide(allow.Query{Host: bottle.Host(host), Port: 443, Method: "GET", Path: raw, TLS: true}, nil)
		if strings.ContainsAny(v.Path, " \r\n\x00") {
			t.Fatalf("%q would be sent", v.Path)
		}
		if !v.Allowed {
			return
		}
		dialled, err := bottle.ParseHost(host)
		if err != nil || string(dialled) != host {
			t.Fatalf("accepted %q, but %q would be dialled (%v)", host, dialled, err)
		}
		if host != "example.com" && v.Path != "/v1" && !strings.HasPrefix(v.Path, "/v1/") {
			t.Fatalf("%q leads to %q", raw, v.Path)
		}
	})
}

func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{1, 1_000, 10_000} {
		b.Run(fmt.Sprintf("routes=%d", n), func(b *testing.B) {
			routes := make([]bottle.Route, n)
			for i := range routes {
				routes[i] = bottle.Route{Host: bottle.Host(fmt.Sprintf("h%d.example.com", i)), Matches: []bottle.Match{{Path: prefix("/v1"), Method: "GET"}}}
			}
			tab := compile(b, routes...)
			q := allow.Query{Host: routes[n/2].Host, Port: 443, Method: "GET", Path: "/v1/things/12", TLS: true}
			b.ReportAllocs()
			for b.Loop() {
				if !tab.Decide(q, nil).Allowed {
					b.Fatal("denied")
				}
			}
		})
	}
}
