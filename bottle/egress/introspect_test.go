package egress_test

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"bottle/bottle"
	"bottle/bottle/egress"
)

func TestRefusalIsJSONForWhoAccepts(t *testing.T) {
	w := newWorld(t, []bottle.Route{below("api.example.com", "/v1")})
	a := w.do(w.agent(), "GET", "https://other.example.com/data/x?secret=1", http.Header{"Accept": {"application/json"}})
	var body struct {
		Error, Layer, Host, Method, Path, Reason, Nearest string
		Port                                              int
		Ask                                               struct {
			Tool      string
			Arguments bottle.Ask
		}
	}
	if err := json.Unmarshal([]byte(a.body), &body); err != nil || a.status != 403 {
		t.Fatal(err, a)
	}
	if body.Error != "blocked by bottle" || body.Layer != "egress" || body.Host != "other.example.com" || body.Port != 443 || body.Path != "/data/x" || body.Ask.Tool != "request_allowlist_change" {
		t.Errorf("%+v", body)
	}
	if _, err := body.Ask.Arguments.Canonical(); err != nil {
		t.Errorf("the ready-made ask: %v", err)
	}
	if strings.Contains(a.body, "secret") {
		t.Error("the query is in the refusal")
	}
	if len(w.gate.targets()) != 0 {
		t.Errorf("dialled %v", w.gate.targets())
	}
	d := w.denials()
	if len(d) != 1 || d[0].Host != "other.example.com" || d[0].Path != "/data/x" || d[0].Ask == nil {
		t.Errorf("denials: %+v", d)
	}
}

func TestIntrospection(t *testing.T) {
	w := newWorld(t, []bottle.Route{below("api.example.com", "/v1"), {Host: "pass.example.com", TLS: bottle.Passthrough}})
	c := egress.Client{Proxy: w.addr}
	in, err := c.Routes(t.Context())
	if err != nil || len(in.Routes) != 2 || in.Routes[0].Source != "manifest" || in.Revision == "" {
		t.Fatalf("%+v %v", in, err)
	}
	for _, tc := range []struct {
		url, method string
		allowed     bool
		ask         bool
	}{
		{"https://api.example.com/v1/x", "", true, false},
		{"https://api.example.com/v1/x", "delete", false, true},
		{"https://pass.example.com/any", "DELETE", true, false},
		{"https://other.example.com/a/b", "GET", false, true},
		{"https://127.0.0.1/", "GET", false, false},
		{"http://u:p@api.example.com/v1", "GET", false, false},
		{"gopher://x", "", false, false},
		{"https://api.example.com:99999/v1", "", false, false},
		{"https://api.example.com/v1\x00", "", false, false},
		{"%zz", "", false, false},
		{"", "", false, false},
		{strings.Repeat("a", 9000), "", false, false},
		{"http://egress.bottle.internal/routes", "", true, false},
	} {
		got, err := c.Check(t.Context(), tc.url, tc.method)
		if err != nil || got.Allowed != tc.allowed || (got.Ask != nil) != tc.ask || got.Reason == "" {
			t.Errorf("%.60q %s: %+v %v", tc.url, tc.method, got, err)
		}
	}
	if len(w.denials()) != 0 || len(w.gate.targets()) != 0 {
		t.Error("a check left traces")
	}
	if a := w.get("http://egress.bottle.internal/healthz"); a.status != 200 {
		t.Errorf("%+v", a)
	}
	if a := w.get("http://egress.bottle.internal/nope"); a.status != 404 {
		t.Errorf("%+v", a)
	}
	if a := w.get("https://egress.bottle.internal/routes"); a.status != 200 {
		t.Errorf("%+v", a)
	}
	if _, err := (egress.Client{Proxy: "127.0.0.1:1"}).Routes(t.Context()); err == nil {
		t.Error("no error from an egress that is down")
	}
}

func TestDenialsAreBounded(t *testing.T) {
	w := newWorld(t, []bottle.Route{whole("a.example.com")})
	c := w.agent()
	for i := range 300 {
		w.do(c, "GET", fmt.Sprintf("http://b.example.com/%d", i%290), nil)
	}
	d := w.denials()
	if len(d) != 256 || d[0].Path != "/9" || d[0].Count != 1 && d[0].Count != 2 {
		t.Errorf("%d groups, newest %+v", len(d), d[0])
	}
	w.do(c, "GET", "http://b.example.com/9", nil)
	two, err := egress.Client{Proxy: w.addr}.Denials(t.Context(), 2)
	if err != nil || len(two) != 2 || two[0].Path != "/9" || two[0].Count < 2 || two[1].Path != "/8" {
		t.Errorf("%+v %v", two, err)
	}
}

// However many hosts and paths an agent makes up, the log grows slowly, and says that there
// was more.
func TestLogOfRefusalsIsBounded(t *testing.T) {
	w := newWorld(t, nil)
	began := time.Now()
	const refusals = 500
	c := w.agent()
	for i := range refusals {
		if a := w.do(c, "GET", fmt.Sprintf("http://h%d.example.com/", i), nil); a.status != 403 {
			t.Fatalf("%+v", a)
		}
	}
	// A bucket of ten, and ten for each second begun.
	most := 10 + 10*(int(time.Since(began).Seconds())+1)
	if n := strings.Count(w.log.String(), "request refused"); n < 10 || n > most {
		t.Errorf("%d lines of %d refusals, want 10 to %d", n, refusals, most)
	}
	eventually(t, "the number of those left out", func() bool {
		w.do(c, "GET", "http://last.example.com/"+rand.Text(), nil)
		return strings.Contains(w.log.String(), "left_out=")
	})
}
