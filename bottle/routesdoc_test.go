package bottle_test

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"bottle/bottle"
)

const commented = `# head of the file

# above the key
routes: # beside the key
  # above the first
  - host: API.Example.com   # beside the first
    ports: [ 443 ]

  # above the second, with a blank line before it
  - {host: b.example, credential: "tok"}
    # below the second
  - host: c.example
    # within the third
    matches:
    -   path: {type: PathPrefix,   value: /v1/}
        method: get   # a verb
    grant: {request: r7, by: "1000 operator", at: 2026-01-01T00:00:00Z, expires_at: 2026-01-01T02:00:00+01:00}
# foot of the file
`

func TestParseRoutes(t *testing.T) {
	doc, err := bottle.ParseRoutes([]byte(commented))
	if err != nil {
		t.Fatal(err)
	}
	end := time.Date(2026, 1, 1, 1, 0, 0, 0, time.UTC)
	want := []bottle.Route{
		{Host: "api.example.com", Ports: []int{443}},
		{Host: "b.example", Credential: "tok"},
		{
			Host:    "c.example",
			Matches: []bottle.Match{{Path: &bottle.PathMatch{Type: bottle.PathPrefix, Value: "/v1"}, Method: "GET"}},
			Grant: &bottle.Grant{
				Request: "r7", By: "1000 operator", At: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), ExpiresAt: &end,
				Duration: bottle.Duration{Kind: bottle.TTL, TTL: time.Hour},
			},
		},
	}
	if got := doc.Routes(); !reflect.DeepEqual(got, want) {
		t.Errorf("routes\n got %+v\nwant %+v", got, want)
	}
	b, rev, err := doc.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	if string(bottle.Body(b)) != commented {
		t.Errorf("an unchanged document was changed:\n%s", b)
	}
	if got, err := bottle.CheckSeal(b); err != nil || got != rev {
		t.Errorf("CheckSeal = %s, %v; want %s", got, err, rev)
	}
}

func TestRoutesDocEdit(t *testing.T) {
	add := func(h bottle.Host) func(*testing.T, *bottle.RoutesDoc) {
		return func(t *testing.T, d *bottle.RoutesDoc) {
			t.Helper()
			if err := d.Append(bottle.Route{Host: h, Matches: []bottle.Match{{Method: "GET", Path: &bottle.PathMatch{Type: bottle.Exact, Value: "/x"}}}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	const added = "  - host: new.example\n    matches:\n      - path: {type: Exact, value: /x}\n        method: GET\n"
	for _, tt := range []struct {
		name, in string
		edit     func(*testing.T, *bottle.RoutesDoc)
		want     string
	}{
		{"append", commented, add("new.example"), commented + added},
		{"append and remove it again", commented, func(t *testing.T, d *bottle.RoutesDoc) { add("x.example")(t, d); d.Remove(3) }, commented},
		{
			"set to the same", commented,
			func(t *testing.T, d *bottle.RoutesDoc) {
				if err := d.Set(0, bottle.Route{Host: "api.EXAMPLE.com.", Ports: []int{443, 443}}); err != nil {
					t.Fatal(err)
				}
			},
			commented,
		},
		{
			"set", commented,
			func(t *testing.T, d *bottle.RoutesDoc) {
				if err := d.Set(1, bottle.Route{Host: "b.example", Ports: []int{8443}}); err != nil {
					t.Fatal(err)
				}
			},
			strings.Replace(commented, `  - {host: b.example, credential: "tok"}`+"\n", "  - host: b.example\n    ports: [8443]\n", 1),
		},
		{
			"remove the first", commented,
			func(_ *testing.T, d *bottle.RoutesDoc) { d.Remove(0) },
			strings.Replace(commented, "  - host: API.Example.com   # beside the first\n    ports: [ 443 ]\n", "", 1),
		},
		{
			"remove all", "routes:   # all of them\n  # why a\n  - host: a.example\n  - host: b.example\n",
			func(_ *testing.T, d *bottle.RoutesDoc) { d.Remove(1); d.Remove(0) },
			"routes: []   # all of them\n  # why a\n",
		},
		{"append to none", "# nothing yet\nroutes: []  # so far\n", add("new.example"), "# nothing yet\nroutes:  # so far\n" + added},
		{"no newline at the end", "routes:\n- host: a.example", add("new.example"), "routes:\n- host: a.example\n" + strings.ReplaceAll(added, "\n  ", "\n")[2:]},
		{
			"flow style", "routes: [{host: a.example}, {host: b.example}] # two\n",
			func(t *testing.T, d *bottle.RoutesDoc) { d.Remove(0); add("new.example")(t, d) },
			"# two\nroutes:\n  - {host: b.example}\n" + added,
		},
		{"all flow", "{routes: []}\n", add("new.example"), "routes:\n" + added},
		{
			"dash alone in its line", "routes:\n  -\n    host: a.example\n  - host: b.example # bee\n",
			func(_ *testing.T, d *bottle.RoutesDoc) { d.Remove(0) },
			"routes:\n  - host: b.example # bee\n",
		},
		{
			"a value that looks like a comment", "routes:\n  - host: a.example\n    matches:\n      - headers:\n          - name: x\n            value: |-\n              # not a comment\n  - host: b.example\n",
			func(_ *testing.T, d *bottle.RoutesDoc) { d.Remove(0) },
			"routes:\n              # not a comment\n  - host: b.example\n",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			doc, err := bottle.ParseRoutes([]byte(tt.in))
			if err != nil {
				t.Fatal(err)
			}
			tt.edit(t, doc)
			b, _, err := doc.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			if got := string(bottle.Body(b)); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
			back, err := bottle.ParseRoutes(b)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(back.Routes(), doc.Routes()) {
				t.Errorf("read back\n%+v\nwant\n%+v", back.Routes(), doc.Routes())
			}
		})
	}
}

func TestRoutesDocRefusesEdits(t *testing.T) {
	doc, err := bottle.ParseRoutes([]byte(commented))
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Append(bottle.Route{Host: "*.com"}); !errors.Is(err, bottle.ErrInvalid) {
		t.Errorf("Append(*.com) = %v, want ErrInvalid", err)
	}
	if err := doc.Set(3, bottle.Route{Host: "a.example"}); !errors.Is(err, bottle.ErrNotFound) {
		t.Errorf("Set(3) = %v, want ErrNotFound", err)
	}
	if b, _, err := doc.Bytes(); err != nil || string(bottle.Body(b)) != commented {
		t.Errorf("a refused edit left a trace: %v\n%s", err, b)
	}
}

func TestNewRoutes(t *testing.T) {
	end := time.Now().Add(time.Hour)
	want := []bottle.Route{
		{Host: "*.a.example", TLS: bottle.Passthrough},
		{Host: "b.example", Ports: []int{8443}, Credential: "tok"},
		{Host: "c.example", Matches: []bottle.Match{
			{Path: &bottle.PathMatch{Type: bottle.RegularExpression, Value: `/a: "b" #c\d+`}},
			{Method: "GET", Headers: []bottle.HeaderMatch{{Name: "x-a", Value: "'{}, "}, {Type: bottle.RegularExpression, Name: "x-b", Value: ".*"}}},
			{Query: []bottle.QueryMatch{{Name: "a[b]", Value: "'{}, é"}, {Type: bottle.RegularExpression, Name: "x", Value: `\d+`}}},
		}},
		{Host: "d.example", Grant: &bottle.Grant{
			Request: "r1", By: "1000 o: #x", At: time.Now(), Duration: bottle.Duration{Kind: bottle.TTL, TTL: time.Hour}, ExpiresAt: &end,
			BootID: "b-1", BootExpires: 123456789.25,
		}},
		{Host: "e.example", Grant: &bottle.Grant{Request: "r2", Duration: bottle.Duration{Kind: bottle.Once}}},
	}
	for i, r := range want {
		c, err := r.Canonical()
		if err != nil {
			t.Fatal(err)
		}
		want[i] = c
	}
	doc, err := bottle.NewRoutes(want)
	if err != nil {
		t.Fatal(err)
	}
	b, _, err := doc.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	back, err := bottle.ParseRoutes(b)
	if err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	if got := back.Routes(); !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v\nin\n%s", got, want, b)
	}
	if empty, err := bottle.NewRoutes(nil); err != nil || empty.Len() != 0 {
		t.Errorf("NewRoutes(nil) = %d routes, %v", empty.Len(), err)
	}
}

func TestParseRoutesRefuses(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"nothing", "", "routes.yaml: empty"},
		{"only comments", "# x\n", "routes.yaml: empty"},
		{"no routes", "{}\n", "routes.yaml:1: no key routes; write routes: [] to allow nothing"},
		{"a list", "- host: a.example\n", `routes.yaml:1: must be a mapping (key: value), not a list`},
		{"null", "routes:\n", "routes.yaml:1: routes has no value; give it one (a list ([] if empty)) or remove the key"},
		{"not a list", "routes: {host: a.example}\n", "routes.yaml:1: routes must be a list ([] if empty), not a mapping"},
		{"unknown top key", "routes: []\nroute: []\n", `routes.yaml:2: unknown key "route"; did you mean "routes"?`},
		{"unknown key", "routes:\n  - host: a.example\n    crednetial: x\n", `routes.yaml:3: unknown key "crednetial" in routes[0]; did you mean "credential"?`},
		{"unknown key, none near", "routes:\n  - host: a.example\n    zzz: x\n", `routes.yaml:3: unknown key "zzz" in routes[0]; known here: host, ports, matches, credential, tls, grant`},
		{"a key twice", "routes:\n  - host: a.example\n    host: b.example\n", `routes.yaml:3: key "host" a second time (first in line 2); keep one`},
		{"anchor", "routes:\n  - &a {host: a.example}\n", "routes.yaml:2: an anchor (&a); write the value out where it is needed"},
		{"alias", "routes:\n  - host: &h a.example\n  - host: *h\n", "routes.yaml:2: an anchor (&h)"},
		{"merge key", "routes:\n  - <<: {host: a.example}\n", "routes.yaml:2: a merge key (<<)"},
		{"tag", "routes:\n  - host: !!str a.example\n", "routes.yaml:2: a tag (!!str); remove it"},
		{"two documents", "routes: []\n---\nroutes: []\n", "a second document"},
		{"broken after the first document", "routes: []\n---\n{", "not YAML"},
		{"not YAML", "routes: [\n", "routes.yaml:"},
		{"not UTF-8", "routes: [{host: \xff}]\n", "routes.yaml: not UTF-8"},
		{"too large", "routes: []\n" + strings.Repeat("#\n", 2<<20), "routes.yaml: 4194315 bytes; at most 4194304"},
		{"too deep", "routes: " + strings.Repeat("[", 30) + strings.Repeat("]", 30) + "\n", "nested deeper than 20 levels"},
		{"far too deep", "routes: " + strings.Repeat("[", 100_000) + "\n", "not YAML"},
		{"too many", "routes:\n" + strings.Repeat("- {host: a}\n", bottle.MaxRoutes+1), "10001 routes; at most 10000"},
		{"empty matches", "routes:\n  - host: a.example\n    matches: []\n", "routes.yaml:2: routes[0].matches is empty; name a match, or remove the key to allow the whole host"},
		{"matches commented out", "routes:\n  - host: a.example\n    matches:\n    # - method: GET\n", "routes.yaml:3: routes[0].matches has no value"},
		{"empty ports", "routes:\n  - host: a.example\n    ports: []\n", "routes.yaml:2: routes[0].ports is empty"},
		{"empty headers", "routes:\n  - host: a.example\n    matches: [{method: GET, headers: []}]\n", "routes[0].matches[0].headers is empty"},
		{"empty match", "routes:\n  - host: a.example\n    matches: [{}]\n", "would match everything"},
		{"octal port", "routes:\n  - host: a.example\n    ports: [0443]\n", `routes.yaml:3: routes[0].ports[0] must be a whole number, not "0443"`},
		{"port in words", "routes:\n  - host: a.example\n    ports: [https]\n", `routes.yaml:3: routes[0].ports[0] must be a whole number, not "https"`},
		{"one port without list", "routes:\n  - host: a.example\n    ports: 443\n", `routes.yaml:3: routes[0].ports must be a list ([] if empty), not "443"`},
		{"host is a list", "routes:\n  - host: [a.example]\n", `routes.yaml:2: routes[0].host must be text ("" if empty), not a list`},
		{"bad host", "routes:\n  - host: a.example\n  - host: 10.0.0.1\n", `routes.yaml:3: routes[1]: host "10.0.0.1": an IP address`},
		{"no host", "routes:\n  - ports: [443]\n", "routes.yaml:2: routes[0]: host \"\": empty"},
		{"bad time", "routes:\n  - host: a.example\n    grant: {request: r1, duration: 1h, expires_at: 2026-01-01}\n", `routes.yaml:3: routes[0].grant.expires_at must be a time such as 2026-01-02T15:04:05Z, not "2026-01-01"`},
		{"bad duration", "routes:\n  - host: a.example\n    grant: {request: r1, duration: forever}\n", `routes.yaml:3: routes[0].grant.duration: duration "forever": use once`},
		{"ttl without an end", "routes:\n  - host: a.example\n    grant: {request: r1, duration: 1h}\n", "grant.expires_at: missing"},
		{"session with an end", "routes:\n  - host: a.example\n    grant: {request: r1, duration: session, expires_at: 2026-01-01T00:00:00Z}\n", "grant.expires_at: set, but"},
		{"grant of nobody", "routes:\n  - host: a.example\n    grant: {duration: session}\n", "grant.request: empty"},
		{"grant without length", "routes:\n  - host: a.example\n    grant: {request: r1}\n", "grant.duration: missing"},
		{"infinite boot time", "routes:\n  - host: a.example\n    grant: {request: r1, duration: session, boot_expires: .inf}\n", "boot_expires must be a number"},
		{"passthrough with matches", "routes:\n  - host: a.example\n    tls: passthrough\n    matches: [{method: GET}]\n", "remove matches of a.example or use intercept"},
		{"passthrough with credential", "routes:\n  - host: a.example\n    tls: passthrough\n    credential: x\n", "remove it from a.example or use intercept"},
		{"key is a list", "routes:\n  - [a]: b\n", "a key must be a plain word"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := bottle.ParseRoutes([]byte(tt.in))
			if err == nil {
				t.Fatal("accepted")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got  %s\nwant %s", err, tt.want)
			}
			if strings.ContainsAny(err.Error(), "\n\x1b") || len(err.Error()) > 400 {
				t.Errorf("not one short line: %q", err)
			}
			if !errors.Is(err, bottle.ErrInvalid) {
				t.Errorf("%v: does not wrap ErrInvalid", err)
			}
		})
	}
}

func TestAllowlist(t *testing.T) {
	got := bottle.Allowlist([]bottle.Route{
		{Host: "b.example", Ports: []int{8443}},
		{Host: "*.a.example"},
		{Host: "b.example"},
		{Host: "b.example", Ports: []int{443}, Credential: "x"},
	})
	want := []bottle.AllowEntry{{Host: "*.a.example", Ports: []int{80, 443}}, {Host: "b.example", Ports: []int{80, 443, 8443}}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := bottle.Allowlist(nil); len(got) != 0 {
		t.Errorf("of no routes: %+v", got)
	}
}

func FuzzRoutesDoc(f *testing.F) {
	f.Add([]byte(commented))
	f.Add([]byte("routes: []\n"))
	f.Add([]byte("routes: [{host: a}, {host: b}]"))
	f.Fuzz(func(t *testing.T, b []byte) {
		doc, err := bottle.ParseRoutes(b)
		if err != nil {
			return
		}
		if doc.Len() > 0 {
			doc.Remove(0)
		}
		if err := doc.Append(bottle.Route{Host: "new.example"}); err != nil {
			t.Fatal(err)
		}
		out, _, err := doc.Bytes()
		if err != nil {
			t.Fatalf("%v\n%q", err, b)
		}
		back, err := bottle.ParseRoutes(out)
		if err != nil || !reflect.DeepEqual(back.Routes(), doc.Routes()) {
			t.Fatalf("%v: %q -> %q", err, b, out)
		}
	})
}

func BenchmarkRoutesDoc(b *testing.B) {
	for _, n := range []int{10, 1000} {
		b.Run(fmt.Sprintf("%d routes", n), func(b *testing.B) {
			var routes []bottle.Route
			for i := range n {
				routes = append(routes, bottle.Route{Host: bottle.Host(fmt.Sprintf("h%d.example", i))})
			}
			doc, err := bottle.NewRoutes(routes)
			if err != nil {
				b.Fatal(err)
			}
			text, _, err := doc.Bytes()
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				doc, err := bottle.ParseRoutes(text)
				if err != nil {
					b.Fatal(err)
				}
				if err := doc.Append(bottle.Route{Host: "new.example"}); err != nil {
					b.Fatal(err)
				}
				if _, _, err := doc.Bytes(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
