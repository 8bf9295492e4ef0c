package allow_test

import (
	"strings"
	"testing"

	"bottle/bottle"
	"bottle/bottle/allow"
)

// A query fits if its parameter is what every server would take it for.
func TestDecideByQuery(t *testing.T) {
	route := func(q ...bottle.QueryMatch) *allow.Table {
		return compile(t, bottle.Route{Host: "a.test", Matches: []bottle.Match{{Path: prefix("/x"), Query: q}}})
	}
	service := route(bottle.QueryMatch{Name: "service", Value: "git-upload-pack"})
	word := route(bottle.QueryMatch{Name: "q", Type: bottle.RegularExpression, Value: "[a-z+ ]+"})
	for _, tc := range []struct {
		name  string
		table *allow.Table
		query string
		want  bool
	}{
		{"exact", service, "service=git-upload-pack", true},
		{"with others", service, "a=1&service=git-upload-pack&b", true},
		{"escaped", service, "%73ervice=git%2Dupload-pack", true},
		{"an empty parameter beside it", service, "&service=git-upload-pack&", true},
		{"none", service, "", false},
		{"another value", service, "service=git-receive-pack", false},
		{"a longer value", service, "service=git-upload-packs", false},
		{"no value", service, "service", false},
		{"twice", service, "service=git-upload-pack&service=git-receive-pack", false},
		{"twice the same", service, "service=git-upload-pack&service=git-upload-pack", false},
		{"twice, one escaped", service, "service=git-upload-pack&%73ervice=git-receive-pack", false},
		{"another case beside it", service, "service=git-upload-pack&Service=git-receive-pack", false},
		{"another case alone", service, "Service=git-upload-pack", false},
		{"an array beside it", service, "service=git-upload-pack&service[]=git-receive-pack", false},
		{"an escaped array beside it", service, "service=git-upload-pack&service%5B0%5D=git-receive-pack", false},
		{"a blank before the other", service, "service=git-upload-pack&+service=git-receive-pack", false},
		{"escaped twice beside it", service, "service=git-upload-pack&%2573ervice=git-receive-pack", false},
		{"cut at a NUL beside it", service, "service=git-upload-pack&service%00x=git-receive-pack", false},
		{"a semicolon", service, "service=git-upload-pack;service=git-receive-pack", false},
		{"a semicolon in another", service, "service=git-upload-pack&a=b;c", false},
		{"a bad escape in another", service, "service=git-upload-pack&a=%zz", false},
		{"what IIS decodes", service, "service=git-upload-pack&%u0073ervice=git-receive-pack", false},
		{"a bad escape in it", service, "service=git-upload-pack%2", false},
		{"an expression", word, "q=abc", true},
		{"over the whole value", word, "q=abc1", false},
		{"a line break", word, "q=abc%0a", false},
		{"a plus that fits both ways", word, "q=a+b", true},
		{"a plus that fits as a blank alone", route(bottle.QueryMatch{Name: "q", Value: "a b"}), "q=a+b", false},
		{"the blank itself", route(bottle.QueryMatch{Name: "q", Value: "a b"}), "q=a%20b", true},
		{"a plus that fits as itself alone", route(bottle.QueryMatch{Name: "q", Value: "a+b"}), "q=a+b", false},
		{"the plus itself", route(bottle.QueryMatch{Name: "q", Value: "a+b"}), "q=a%2Bb", true},
		{"two that are there", route(bottle.QueryMatch{Name: "a", Value: "1"}, bottle.QueryMatch{Name: "b", Value: "2"}), "b=2&a=1", true},
		{"two of which one is", route(bottle.QueryMatch{Name: "a", Value: "1"}, bottle.QueryMatch{Name: "b", Value: "2"}), "a=1", false},
		{"no query is judged", compile(t, bottle.Route{Host: "a.test", Matches: []bottle.Match{{Path: prefix("/x")}}}), "a=%zz;b&a", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := tc.table.Decide(allow.Query{Host: "a.test", Port: 443, Method: "GET", Path: "/x", Query: tc.query, TLS: true}, nil)
			if v.Allowed != tc.want || !v.Allowed && !strings.Contains(v.Reason, "query") {
				t.Errorf("%+v", v)
			}
			if strings.Contains(v.Reason+v.Nearest, "receive") {
				t.Errorf("the agent's values are shown: %+v", v)
			}
		})
	}
}

// The match that names more of the query decides, as the more specific one.
func TestQueryIsMoreSpecific(t *testing.T) {
	m := func(q ...bottle.QueryMatch) []bottle.Match { return []bottle.Match{{Path: prefix("/x"), Query: q}} }
	table := compile(t, bottle.Route{Host: "a.test", Matches: m()}, bottle.Route{Host: "a.test", Matches: m(bottle.QueryMatch{Name: "k", Value: "1"})})
	for query, want := range map[string]int{"": 0, "k=2": 0, "k=1": 1} {
		if v := table.Decide(allow.Query{Host: "a.test", Port: 443, Method: "GET", Path: "/x", Query: query, TLS: true}, nil); v.Route != want {
			t.Errorf("%q: %+v", query, v)
		}
	}
}
