package bottle_test

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"bottle/bottle"
)

func TestRouteCanonical(t *testing.T) {
	end := time.Date(2026, 1, 1, 1, 0, 0, 0, time.FixedZone("x", 3600))
	r := bottle.Route{
		Host: "A.example.", Ports: []int{8443, 443, 8443}, TLS: bottle.Intercept, Credential: "tok",
		Matches: []bottle.Match{
			{Method: "post", Path: &bottle.PathMatch{Type: bottle.PathPrefix, Value: "/"}},
			{Path: &bottle.PathMatch{Type: bottle.PathPrefix, Value: "/%76%31/"}, Headers: []bottle.HeaderMatch{
				{Name: "X-B", Value: "2"}, {Name: "X-A", Type: bottle.Exact, Value: "1"},
			}, Query: []bottle.QueryMatch{
				{Name: "b", Value: "2"}, {Name: "B", Type: bottle.Exact, Value: "1"}, {Name: "b", Value: "2"},
			}},
			{Method: "POST", Path: &bottle.PathMatch{Type: bottle.PathPrefix, Value: "/"}},
		},
		Grant: &bottle.Grant{Request: "r1", By: "0 root", At: end.Add(-time.Hour), ExpiresAt: &end},
	}
	before := slices.Clone(r.Ports)
	got, err := r.Canonical()
	if err != nil {
		t.Fatal(err)
	}
	utc := end.UTC()
	want := bottle.Route{
		Host: "a.example", Ports: []int{443, 8443}, Credential: "tok",
		Matches: []bottle.Match{
			{Method: "POST", Path: &bottle.PathMatch{Type: bottle.PathPrefix, Value: "/"}},
			{Path: &bottle.PathMatch{Type: bottle.PathPrefix, Value: "/v1"}, Headers: []bottle.HeaderMatch{
				{Name: "x-a", Value: "1"}, {Name: "x-b", Value: "2"},
			}, Query: []bottle.QueryMatch{{Name: "B", Value: "1"}, {Name: "b", Value: "2"}}},
		},
		Grant: &bottle.Grant{
			Request: "r1", By: "0 root", At: utc.Add(-time.Hour), ExpiresAt: &utc,
			Duration: bottle.Duration{Kind: bottle.TTL, TTL: time.Hour},
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
	if again, err := got.Canonical(); err != nil || !reflect.DeepEqual(again, got) {
		t.Errorf("not a fixed point: %+v, %v", again, err)
	}
	if !slices.Equal(r.Ports, before) || r.Matches[0].Method != "post" || r.Grant.Duration.Kind != "" {
		t.Errorf("the argument was changed: %+v", r)
	}
}

func TestRouteRefused(t *testing.T) {
	for _, tt := range []struct {
		name string
		r    bottle.Route
		want string
	}{
		{"mode", bottle.Route{Host: "a.example", TLS: "none"}, `tls: "none" is not a mode; use intercept or passthrough`},
		{"credential", bottle.Route{Host: "a.example", Credential: "A B"}, `credential of a.example: name "A B"`},
		{"port", bottle.Route{Host: "a.example", Ports: []int{65536}}, "ports: 65536 of a.example is not a port; use 1 to 65535"},
		{"parameter without a name", byQuery(bottle.QueryMatch{Value: "x"}), `"" is not a parameter's name`},
		{"parameter of a bad type", byQuery(bottle.QueryMatch{Type: bottle.PathPrefix, Name: "a"}), `type "PathPrefix" of a is not Exact or RegularExpression`},
		{"parameter with a bad expression", byQuery(bottle.QueryMatch{Type: bottle.RegularExpression, Name: "a", Value: "("}), "not a regular expression"},
		{"parameter with a line break", byQuery(bottle.QueryMatch{Name: "a", Value: "b\nc"}), "control character"},
		{"parameter that is not UTF-8", byQuery(bottle.QueryMatch{Name: "\xff"}), "is not a parameter's name"},
		{"too many parameters", byQuery(make([]bottle.QueryMatch, 17)...), "17 of them; at most 16"},
		{"reserved", bottle.Route{Host: "x.bottle.internal"}, "answered by bottle itself"},
		{"grant that is too long", bottle.Route{Host: "a.example", Grant: &bottle.Grant{Request: strings.Repeat("r", 65), Duration: bottle.Duration{Kind: bottle.Once}}}, "too long"},
		{"grant that ends before it begins", bottle.Route{Host: "a.example", Grant: &bottle.Grant{Request: "r1", At: time.Unix(2, 0), ExpiresAt: new(time.Time)}}, "grant.expires_at, counted from at"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := tt.r.Canonical()
			if !errors.Is(err, bottle.ErrInvalid) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
}

func byQuery(q ...bottle.QueryMatch) bottle.Route {
	return bottle.Route{Host: "a.example", Matches: []bottle.Match{{Query: q}}}
}

func TestCheckCredential(t *testing.T) {
	defined := map[string]bottle.Credential{
		"one":  {Hosts: []bottle.Host{"a.example"}},
		"wild": {Hosts: []bottle.Host{"*.a.example"}},
	}
	for _, tt := range []struct {
		host       bottle.Host
		credential string
		ok         bool
	}{
		{"a.example", "", true},
		{"a.example", "one", true},
		{"a.example", "two", false},
		{"b.a.example", "one", false},
		{"*.a.example", "one", false},
		{"b.a.example", "wild", true},
		{"*.a.example", "wild", true},
		{"a.example", "wild", false},
		{"c.b.a.example", "wild", false},
		{"*.b.a.example", "wild", false},
	} {
		err := bottle.CheckCredential(bottle.Route{Host: tt.host, Credential: tt.credential}, defined)
		if (err == nil) != tt.ok || (err != nil && !errors.Is(err, bottle.ErrInvalid)) {
			t.Errorf("%s with %q: %v", tt.host, tt.credential, err)
		}
	}
}

func TestRouteLines(t *testing.T) {
	get := bottle.Match{Method: "GET", Path: &bottle.PathMatch{Type: bottle.PathPrefix, Value: "/v1"}}
	for _, tt := range []struct {
		name string
		r    bottle.Route
		want []string
	}{
		{"whole host", bottle.Route{Host: "a.example"}, []string{"a.example  every method and path"}},
		{"ports", bottle.Route{Host: "a.example", Ports: []int{443, 8443}, TLS: bottle.Passthrough}, []string{"a.example:443,8443  every method and path  passthrough"}},
		{
			"matches",
			bottle.Route{Host: "a.example", Credential: "tok", Matches: []bottle.Match{
				get,
				{Path: &bottle.PathMatch{Type: bottle.Exact, Value: "/x"}},
				{Path: &bottle.PathMatch{Type: bottle.PathPrefix, Value: "/"}},
				{Method: "PUT", Headers: []bottle.HeaderMatch{{Name: "a", Value: "b\n"}, {Type: bottle.RegularExpression, Name: "c", Value: ".*"}}},
				{Path: &bottle.PathMatch{Type: bottle.RegularExpression, Value: "/a b"}},
			}},
			[]string{
				"a.example  GET /v1/*  credential tok", "a.example  any =/x  credential tok", "a.example  any /*  credential tok",
				`a.example  PUT /* a="b\n" c~".*"  credential tok`, `a.example  any ~"/a b"  credential tok`,
			},
		},
		{"grant", bottle.Route{Host: "a.example", Matches: []bottle.Match{get}, Grant: &bottle.Grant{Request: "r7", Duration: bottle.Duration{Kind: bottle.Once}}}, []string{"a.example  GET /v1/*  for one request (r7)"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.r.Lines(); !slices.Equal(got, tt.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
		})
	}
}

func TestCheckName(t *testing.T) {
	for in, ok := range map[string]bool{
		"a": true, "a-1": true, "1": true, strings.Repeat("a", 40): true, strings.Repeat("a", 41): false,
		"": false, "A": false, "-a": false, "a-": false, "a_b": false, "a/b": false, "..": false, "a\n": false, "ä": false,
	} {
		if err := bottle.CheckName(in); (err == nil) != ok {
			t.Errorf("CheckName(%q) = %v", in, err)
		}
	}
}
