package allow_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"bottle/bottle"
	"bottle/bottle/allow"
)

func host(t *testing.T, s string) bottle.Host {
	t.Helper()
	h, err := bottle.ParsePattern(s)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestLookAlike(t *testing.T) {
	known := []bottle.Host{"github.com", "api.microsoft.com", "*.wikipedia.org", "paypal.com", "a.github.io", "go.dev"}
	for _, tt := range []struct{ in, of, why string }{
		{"github.com.evil.test", "github.com", "starts like"},
		{"www.github.com.evil.test", "github.com", "starts like"},
		{"github-com.evil.test", "github.com", "hyphens for dots"},
		{"github-com.test", "github.com", "hyphens for dots"},
		{"g1thub.com", "github.com", "reads like"},
		{"glthub.com", "github.com", "reads like"},
		{"rnicrosoft.com", "api.microsoft.com", "reads like"},
		{"micr0soft.com", "api.microsoft.com", "reads like"},
		{"vvikipedia.org", "*.wikipedia.org", "reads like"},
		{"gıthub.com", "github.com", "reads like"},
		{"gitһub.com", "github.com", "reads like"}, // Cyrillic shha
		{"раураӏ.com", "paypal.com", "reads like"}, // all Cyrillic
		{"gíthub.com", "github.com", "reads like"},
		{"git-hub.com", "github.com", "but for hyphens"},
		{"github.co", "github.com", "another suffix"},
		{"github.evil.io", "", ""},
		{"gihtub.com", "github.com", "typing error"},
		{"githubb.com", "github.com", "typing error"},
		{"gthub.net", "github.com", "typing error"},
		{"github-login.com", "github.com", "bears the name"},
		{"*.github.co", "github.com", "another suffix"},
		{"api.github.com", "", ""},
		{"github.com", "", ""},
		{"*.github.com", "", ""},
		{"microsoft.com", "", ""},
		{"b.github.io", "", ""}, // another's, but nothing like it
		{"gitlab.com", "", ""},
		{"example.com", "", ""},
		{"to.dev", "", ""}, // too short for typing errors
	} {
		got, why, ok := allow.LookAlike(host(t, tt.in), known)
		if string(got) != tt.of || ok != (tt.of != "") || !strings.Contains(why, tt.why) {
			t.Errorf("%s: %q, %q, %v; want %q, %q", tt.in, got, why, ok, tt.of, tt.why)
		}
	}
}

func TestHostNotes(t *testing.T) {
	for in, want := range map[string][]string{
		"example.com":    nil,
		"bücher.example": {"punycode for bücher.example"},
		"日本語カナ.example":  {"punycode"},
		"gitһub.com":     {"punycode", "mixes scripts: Cyrillic, Latin", "reads like github"},
		"раураӏ.com":     {"punycode", "reads like paypai"},
		"пример.example": {"punycode"},
		"*.gıthub.com":   {"punycode for *.gıthub.com", "reads like github"},
	} {
		got := allow.HostNotes(host(t, in))
		if len(got) != len(want) {
			t.Errorf("%s: %q; want %q", in, got, want)
			continue
		}
		for i := range want {
			if !strings.Contains(got[i], want[i]) {
				t.Errorf("%s: %q; want %q", in, got[i], want[i])
			}
		}
	}
}

func TestRisks(t *testing.T) {
	current := []bottle.Route{{Host: "github.com"}}
	ttl := bottle.Duration{Kind: bottle.TTL, TTL: time.Minute}
	tls := []int{443}
	get := bottle.Match{Method: "GET", Path: prefix("/acme")}
	for _, tt := range []struct {
		name       string
		entry      bottle.Entry
		credential string
		d          bottle.Duration
		want       []string
	}{
		{"a narrow read", bottle.Entry{Host: "a.test", Ports: tls, Matches: []bottle.Match{get}}, "", ttl, nil},
		{"once", bottle.Entry{Host: "a.test", Ports: tls, Matches: []bottle.Match{get}}, "", bottle.Duration{Kind: bottle.Once}, nil},
		{"session", bottle.Entry{Host: "a.test", Ports: tls, Matches: []bottle.Match{get}}, "", bottle.Duration{Kind: bottle.Session}, []string{"low session"}},
		{"permanent", bottle.Entry{Host: "a.test", Ports: tls, Matches: []bottle.Match{get}}, "", bottle.Duration{Kind: bottle.Permanent}, []string{"high permanent"}},
		{"a whole host", bottle.Entry{Host: "a.test", Ports: tls}, "", ttl, []string{"medium whole-host"}},
		{"with a credential", bottle.Entry{Host: "a.test", Ports: tls}, "key", ttl, []string{"high whole-host", "high credential"}},
		{"a wildcard", bottle.Entry{Host: "*.a.test", Ports: tls, Matches: []bottle.Match{get}}, "", ttl, []string{"high wildcard"}},
		{"a look-alike", bottle.Entry{Host: "g1thub.com", Ports: tls, Matches: []bottle.Match{get}}, "", ttl, []string{"high look-alike"}},
		{"punycode", bottle.Entry{Host: "xn--bcher-kva.example", Ports: tls, Matches: []bottle.Match{get}}, "", ttl, []string{"medium spelling"}},
		{"mixed scripts", bottle.Entry{Host: host(t, "xyzһx.com"), Ports: tls, Matches: []bottle.Match{get}}, "", ttl, []string{"high spelling", "high spelling", "medium spelling"}},
		{"any method", bottle.Entry{Host: "a.test", Ports: tls, Matches: []bottle.Match{{Path: prefix("/x")}}}, "", ttl, []string{"medium write"}},
		{"a write", bottle.Entry{Host: "a.test", Ports: tls, Matches: []bottle.Match{{Path: prefix("/x"), Method: "POST"}}}, "", ttl, []string{"medium write"}},
		{"every path", bottle.Entry{Host: "a.test", Ports: tls, Matches: []bottle.Match{{Method: "GET"}}}, "", ttl, []string{"low whole-host"}},
		{"an expression", bottle.Entry{Host: "a.test", Ports: tls, Matches: []bottle.Match{{Path: path(bottle.RegularExpression, ".*"), Method: "GET"}}}, "", ttl, []string{"medium regexp"}},
		{"a header's expression", bottle.Entry{Host: "a.test", Ports: tls, Matches: []bottle.Match{{Path: prefix("/x"), Method: "GET", Headers: []bottle.HeaderMatch{{Name: "x", Type: bottle.RegularExpression, Value: "a"}}}}}, "", ttl, []string{"low regexp"}},
		{"a port", bottle.Entry{Host: "a.test", Ports: []int{22, 443}, Matches: []bottle.Match{get}}, "", ttl, []string{"medium port"}},
		{"plain HTTP", bottle.Entry{Host: "a.test", Ports: []int{80}, Matches: []bottle.Match{get}}, "", ttl, []string{"low plain-http"}},
		{"plain HTTP by default", bottle.Entry{Host: "a.test", Matches: []bottle.Match{get}}, "", ttl, []string{"low plain-http"}},
		{"a place to publish", bottle.Entry{Host: "gist.github.com", Ports: tls, Matches: []bottle.Match{get}}, "", ttl, []string{"high public-upload"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, r := range allow.Risks([]bottle.Entry{tt.entry, tt.entry}, tt.credential, tt.d, current) {
				got = append(got, r.Level+" "+r.Code)
				if r.Text == "" || strings.Contains(r.Text, "\n") {
					t.Errorf("text %q", r.Text)
				}
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("%q; want %q", got, tt.want)
			}
		})
	}
	if got := allow.Risks(nil, "", bottle.Duration{Kind: bottle.Permanent}, current); got != nil {
		t.Errorf("a removal has risks: %v", got)
	}
}
