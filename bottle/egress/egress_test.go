package egress_test

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"bottle/bottle"
)

func hello(w http.ResponseWriter, r *http.Request) { _, _ = fmt.Fprintf(w, "hello from %s", r.Host) }

func TestIntercept(t *testing.T) {
	w := newWorld(t, []bottle.Route{below("api.example.com", "/v1")})
	var seen atomic.Pointer[http.Request]
	w.upstream("api.example.com", func(rw http.ResponseWriter, r *http.Request) {
		seen.Store(r)
		hello(rw, r)
	})
	c := w.agent()
	if a := w.do(c, "GET", "https://api.example.com/v1/models?q=a%20b;c", http.Header{"Proxy-Authorization": {"x"}, "Connection": {"X-Hop"}, "X-Hop": {"1"}, "Forwarded": {"host=b"}}); a.status != 200 || a.body != "hello from api.example.com" {
		t.Fatalf("allowed: %+v", a)
	}
	r := seen.Load()
	if r.RequestURI != "/v1/models?q=a%20b;c" {
		t.Errorf("upstream saw %s", r.RequestURI)
	}
	for _, h := range []string{"Proxy-Authorization", "X-Hop", "Forwarded", "Connection"} {
		if r.Header.Get(h) != "" {
			t.Errorf("upstream saw %s", h)
		}
	}
	for _, u := range []string{"https://api.example.com/v1beta/x", "https://api.example.com/v1/%2e%2e/admin", "https://api.example.com//v1/x", "https://api.example.com/v1/..%2fadmin", "https://api.example.com/v1/a%5c..%5cb", "https://api.example.com/v1/..;/admin"} {
		if a := w.do(c, "GET", u, nil); a.status != 403 || a.header.Get("X-Bottle-Layer") != "egress" {
			t.Errorf("%s: %d %s", u, a.status, a.body)
		}
	}
	if a := w.do(c, "POST", "https://api.example.com/v1/x", nil); a.status != 403 || !strings.Contains(a.body, "request_allowlist_change") {
		t.Errorf("POST: %+v", a)
	}
	if a := w.do(c, "TRACE", "https://api.example.com/v1/x", nil); a.status != 405 {
		t.Errorf("TRACE: %+v", a)
	}
	if n := len(w.gate.targets()); n != 1 {
		t.Errorf("%d connections upstream, want the one kept", n)
	}
}

func TestPlainHTTP(t *testing.T) {
	w := newWorld(t, []bottle.Route{below("plain.example.com", "/v1")})
	var uri atomic.Value
	w.plainUpstream("plain.example.com", func(rw http.ResponseWriter, r *http.Request) {
		uri.Store(r.RequestURI)
		rw.Header().Set("X-Bottle-Layer", "upstream says")
		hello(rw, r)
	})
	a := w.get("http://plain.example.com/v1/a?b=c")
	if a.status != 200 || uri.Load() != "/v1/a?b=c" || a.header.Get("X-Bottle-Layer") != "" {
		t.Errorf("%+v %v", a, uri.Load())
	}
	if a := w.get("http://plain.example.com/other"); a.status != 403 {
		t.Errorf("%+v", a)
	}
	if a := w.get("http://plain.example.com:8080/v1/a"); a.status != 403 || !strings.Contains(a.body, "8080") {
		t.Errorf("%+v", a)
	}
}

func TestPassthrough(t *testing.T) {
	w := newWorld(t, []bottle.Route{{Host: "pass.example.com", TLS: bottle.Passthrough}})
	s := w.upstream("pass.example.com", hello)
	w.roots.AddCert(w.ca.cert) // the agent sees the upstream's own certificate
	a := w.get("https://pass.example.com/anything")
	if a.status != 200 {
		t.Fatalf("%+v", a)
	}
	c, status := w.tunnel("pass.example.com:443")
	if status != 200 {
		t.Fatal(status)
	}
	tc := tls.Client(c, &tls.Config{RootCAs: w.roots, ServerName: "pass.example.com"})
	if err := tc.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := tc.ConnectionState().PeerCertificates[0].Issuer.CommonName; got != "upstreams" {
		t.Errorf("certificate of %q: not spliced", got)
	}
	// An upstream that is down is said inside a TLS of the bottle's.
	s.Close()
	w.gate.deny("pass.example.com:443", 502)
	if a := w.get("https://pass.example.com/"); a.status != 502 || a.header.Get("X-Bottle-Layer") != "upstream" {
		t.Errorf("down: %+v", a)
	}
}

func TestRedirectIsJudgedAsAnyRequest(t *testing.T) {
	w := newWorld(t, []bottle.Route{whole("a.example.com")})
	w.upstream("a.example.com", func(rw http.ResponseWriter, r *http.Request) {
		http.Redirect(rw, r, "https://b.example.com/stolen", http.StatusFound)
	})
	w.upstream("b.example.com", func(http.ResponseWriter, *http.Request) { t.Error("reached b") })
	if a := w.get("https://a.example.com/"); a.status != 403 || !strings.Contains(a.body, "b.example.com") {
		t.Errorf("%+v", a)
	}
}

func TestUpstreamFailures(t *testing.T) {
	w := newWorld(t, []bottle.Route{whole("*.example.com")})
	other := newTestCA(t)
	s := w.upstream("selfmade.example.com", hello)
	s.TLS.Certificates = []tls.Certificate{other.leaf(t, "selfmade.example.com")}
	w.upstream("wrongname.example.com", hello).TLS.Certificates = []tls.Certificate{w.ca.leaf(t, "else.example.com")}
	w.upstream("quiet.example.com", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	w.gate.deny("gated.example.com:443", 403)
	w.gate.deny("gated.example.com:80", 403)
	for _, tc := range []struct {
		url, layer, text string
		status           int
	}{
		{"https://selfmade.example.com/", "upstream", "upstream_ca", 502},
		{"https://wrongname.example.com/", "upstream", "not trusted", 502},
		{"https://quiet.example.com/", "upstream", "closed the connection", 502},
		{"https://nodns.example.com/", "upstream", "the gate says no", 502},
		{"http://nodns.example.com/", "upstream", "the gate says no", 502},
		{"https://gated.example.com/x", "pipelock", "the gate says no", 403},
		{"http://gated.example.com/x", "pipelock", "the gate says no", 403},
	} {
		a := w.get(tc.url)
		if a.status != tc.status || a.header.Get("X-Bottle-Layer") != tc.layer || !strings.Contains(a.body, tc.text) {
			t.Errorf("%s: %d %s %s", tc.url, a.status, a.header.Get("X-Bottle-Layer"), a.body)
		}
	}
}
