package allow_test

import (
	"testing"

	"bottle/bottle"
	"bottle/bottle/allow"
)

func TestSmoke(t *testing.T) {
	tab, err := allow.Compile([]bottle.Route{{Host: "github.com", Matches: []bottle.Match{{Path: &bottle.PathMatch{Type: bottle.PathPrefix, Value: "/acme/"}, Method: "GET"}}}, {Host: "*.example.com"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range []allow.Query{
		{Host: "github.com", Port: 443, Method: "GET", Path: "/acme/x", TLS: true},
		{Host: "github.com", Port: 443, Method: "POST", Path: "/acme/x", TLS: true},
		{Host: "github.com", Port: 443, Method: "GET", Path: "/acme/../x", TLS: true},
		{Host: "github.com", Port: 443, Method: "GET", Path: "/acmex", TLS: true},
		{Host: "github.com", Port: 8443, Method: "GET", Path: "/acmex", TLS: true},
		{Host: "api.github.com", Port: 8443, Method: "GET", Path: "/acmex", TLS: true},
		{Host: "example.com", Port: 8443, Method: "GET", Path: "/acmex", TLS: true},
		{Host: "a.example.com", Port: 443, Method: "GET", Path: "/acmex%2f%zz", TLS: true},
	} {
		t.Logf("%+v\n %+v", q, tab.Decide(q, nil))
		t.Logf("%+v", allow.SuggestAsk(q))
	}
	for _, h := range []bottle.Host{"github.com.evil.test", "g1thub.com", "git-hub.com", "github.co", "gihtub.com", "github-login.com", "xn--gthub-n4a.com", "api.github.com", "gitlab.com"} {
		k, w, ok := allow.LookAlike(h, []bottle.Host{"github.com", "*.example.com"})
		t.Log(h, k, w, ok, allow.HostNotes(h))
	}
}
