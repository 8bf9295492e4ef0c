package egress_test

import (
	"bufio"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"bottle/bottle"
	"bottle/bottle/egress"
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

func TestFronting(t *testing.T) {
	w := newWorld(t, []bottle.Route{whole("a.example.com"), whole("b.example.com"), {Host: "pass.example.com", TLS: bottle.Passthrough}})
	for _, h := range []string{"a.example.com", "b.example.com", "pass.example.com"} {
		w.upstream(h, func(http.ResponseWriter, *http.Request) { t.Errorf("a request reached %s", h) })
	}
	for _, tc := range []struct{ name, connect, sni, request, status string }{
		{"other SNI", "a.example.com", "b.example.com", "GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n", "403"},
		{"no SNI", "a.example.com", "", "GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n", "403"},
		{"no SNI, passthrough", "pass.example.com", "", "GET / HTTP/1.1\r\nHost: pass.example.com\r\n\r\n", "403"},
		{"other SNI, passthrough", "pass.example.com", "a.example.com", "GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n", "403"},
		{"other Host", "a.example.com", "a.example.com", "GET / HTTP/1.1\r\nHost: b.example.com\r\n\r\n", "421"},
		{"other port in Host", "a.example.com", "a.example.com", "GET / HTTP/1.1\r\nHost: a.example.com:8443\r\n\r\n", "421"},
		{"absolute-form to another", "a.example.com", "a.example.com", "GET https://b.example.com/ HTTP/1.1\r\nHost: b.example.com\r\n\r\n", "421"},
		{"absolute-form, Host differs", "a.example.com", "a.example.com", "GET https://a.example.com/ HTTP/1.1\r\nHost: b.example.com\r\n\r\n", "421"},
		{"http inside TLS", "a.example.com", "a.example.com", "GET http://a.example.com/ HTTP/1.1\r\nHost: a.example.com\r\n\r\n", "421"},
		{"CONNECT inside TLS", "a.example.com", "a.example.com", "CONNECT b.example.com:443 HTTP/1.1\r\nHost: b.example.com:443\r\n\r\n", "421"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, status := w.tunnel(tc.connect + ":443")
			if status != 200 {
				t.Fatal(status)
			}
			tlsc := tls.Client(c, &tls.Config{InsecureSkipVerify: true, ServerName: tc.sni})
			if _, err := io.WriteString(tlsc, tc.request); err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(tlsc)
			if err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 "+tc.status) || !strings.Contains(string(b), "fronting") {
				t.Errorf("%v %s", err, b)
			}
		})
	}
	t.Run("not TLS", func(t *testing.T) {
		for _, host := range []string{"a.example.com:80", "pass.example.com:443", "unknown.example.com:22"} {
			c, _ := w.tunnel(host)
			_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: b.example.com\r\n\r\n")
			if b, err := io.ReadAll(c); err != nil || !strings.Contains(string(b), "not TLS") {
				t.Errorf("%s: %v %q", host, err, b)
			}
		}
	})
	if got := w.gate.targets(); len(got) != 0 {
		t.Errorf("dialled %v", got)
	}
	found := 0
	for _, d := range w.denials() {
		if strings.Contains(d.Reason, "fronting") {
			found++
		}
	}
	if found < 8 {
		t.Errorf("%d groups of fronting in the denials: %+v", found, w.denials())
	}
}

func TestBadConnectTargets(t *testing.T) {
	w := newWorld(t, []bottle.Route{whole("example.com"), whole("*.corp.example.com")})
	for _, target := range []string{
		"127.0.0.1:443", "2130706433:443", "0x7f000001:443", "0177.0.0.1:443", "127.1:443", "[::1]:443", "[::ffff:127.0.0.1]:443", "[fe80::1%25eth0]:443",
		"example.com", "example.com:0", "example.com:65536", "example.com:0443", "example.com:+443", "example.com:443:443", "user@example.com:443", "user:pw@example.com:443",
		"example.com%00.evil.test:443", "ex%61mple.com:443", "example.com/:443", "*.corp.example.com:443", "example..com:443", "example.com..:443",
		strings.Repeat("a", 64) + ".com:443", "-example.com:443", "exam_ple.com:443", "http://example.com:443", "\xff.com:443",
	} {
		c := w.dial()
		_, _ = io.WriteString(c, "CONNECT "+target+" HTTP/1.1\r\nHost: x\r\n\r\n")
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Errorf("%q: %v", target, err)
			continue
		}
		b, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if res.StatusCode != 403 || res.Header.Get("X-Bottle-Layer") != "egress" || len(b) == 0 {
			t.Errorf("%q: %s %s", target, res.Status, b)
		}
	}
	// Other spellings of an allowed name are that name; neighbours of it are not.
	w.upstream("example.com", hello)
	for host, want := range map[string]int{
		"EXAMPLE.com": 200, "example.com.": 200, "notexample.com": 403, "example.com.evil.test": 403, "www.example.com": 403,
		"corp.example.com": 403, "a.b.corp.example.com": 403, "xn--exmple-cua.com": 403, "exаmple.com": 403,
	} {
		ascii := host
		if host == "exаmple.com" {
			ascii = "xn--exmple-4nf.com"
		}
		c, status := w.tunnel(ascii + ":443")
		if status != 200 {
			t.Errorf("%s: CONNECT %d", host, status)
			continue
		}
		tc := tls.Client(c, &tls.Config{RootCAs: w.roots, ServerName: strings.ToLower(strings.TrimSuffix(ascii, "."))})
		_, _ = fmt.Fprintf(tc, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", ascii)
		hres, err := http.ReadResponse(bufio.NewReader(tc), nil)
		if err != nil {
			t.Errorf("%s: %v", host, err)
			continue
		}
		_ = hres.Body.Close()
		if hres.StatusCode != want {
			t.Errorf("%s: %s, want %d", host, hres.Status, want)
		}
	}
	if got := w.gate.targets(); len(got) != 1 && len(got) != 2 || got[0] != "example.com:443" {
		t.Errorf("dialled %v", got)
	}
}

func TestSmuggling(t *testing.T) {
	w := newWorld(t, []bottle.Route{whole("plain.example.com")})
	var reached atomic.Int32
	w.plainUpstream("plain.example.com", func(rw http.ResponseWriter, r *http.Request) { reached.Add(1); hello(rw, r) })
	const line, host = "POST http://plain.example.com/ HTTP/1.1\r\n", "Host: plain.example.com\r\n"
	for _, tc := range []struct{ name, request, status string }{
		{"CL and TE", line + host + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400"},
		{"TE and CL", line + host + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", "400"},
		{"two CL", line + host + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", "400"},
		{"two equal CL", line + host + "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", "400"},
		{"CL list", line + host + "Content-Length: 5, 5\r\n\r\nhello", "400"},
		{"CL sign", line + host + "Content-Length: +5\r\n\r\nhello", "400"},
		{"TE twice", line + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", "400"},
		{"TE other", line + host + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "400"},
		{"TE with a tab", line + host + "Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n", "400"},
		{"space before colon", line + host + "Content-Length : 5\r\n\r\nhello", "400"},
		{"bare LF in the head", line + "Host: plain.example.com\nX: y\r\n\r\n", "400"},
		{"bare LF request line", "GET http://plain.example.com/ HTTP/1.1\n" + host + "\r\n", "400"},
		{"bare LF ends the head", line + host + "Content-Length: 0\r\n\n", "400"},
		{"bare CR", line + host + "X: a\rTransfer-Encoding: chunked\r\n\r\n", "400"},
		{"NUL", line + host + "X: a\x00b\r\n\r\n", "400"},
		{"folded", line + host + "X: a\r\n b\r\n\r\n", "400"},
		{"no colon", line + host + "X\r\n\r\n", "400"},
		{"two Hosts", line + host + host + "\r\n", "400"},
		{"Host differs from target", line + "Host: other.example.com\r\n\r\n", "421"},
		{"two spaces", "GET  http://plain.example.com/ HTTP/1.1\r\n" + host + "\r\n", "400"},
		{"version", "GET http://plain.example.com/ HTTP/1.2\r\n" + host + "\r\n", "505"},
		{"h2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505"},
		{"fragment", "GET http://plain.example.com/#x HTTP/1.1\r\n" + host + "\r\n", "400"},
		{"Upgrade with a body", line + host + "Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 5\r\n\r\nhello", "400"},
		{"origin-form", "GET / HTTP/1.1\r\n" + host + "\r\n", "400"},
		{"https without CONNECT", "GET https://plain.example.com/ HTTP/1.1\r\n" + host + "\r\n", "400"},
		{"ftp", "GET ftp://plain.example.com/ HTTP/1.1\r\n" + host + "\r\n", "400"},
		{"userinfo", "GET http://u@plain.example.com/ HTTP/1.1\r\n" + host + "\r\n", "403"},
		{"head over its bound", line + host + "X: " + strings.Repeat("a", 70<<10) + "\r\n\r\n", "431"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := w.dial()
			go func() { _, _ = io.WriteString(c, tc.request) }()
			b, _ := io.ReadAll(c) // a reset may follow the answer
			if !strings.HasPrefix(string(b), "HTTP/1.1 "+tc.status+" ") || !strings.Contains(string(b), "X-Bottle-Layer: egress") {
				t.Errorf("got %.300q", b)
			}
			if strings.Count(string(b), "X-Bottle-Layer") != 1 {
				t.Errorf("more than one answer: %q", b)
			}
		})
	}
	if n := reached.Load(); n != 0 {
		t.Errorf("%d requests reached the upstream", n)
	}
	t.Run("bad chunk after a good head", func(t *testing.T) {
		for _, chunk := range []string{"5;ext=1\r\nhello\r\n0\r\n\r\n", "5\nhello\r\n0\r\n\r\n", "0x5\r\nhello\r\n0\r\n\r\n", "5\r\nhelloGET / HTTP/1.1\r\n\r\n", "ffffffffffffffff\r\nhello"} {
			c := w.dial()
			_, _ = io.WriteString(c, line+host+"Transfer-Encoding: chunked\r\n\r\n"+chunk)
			b, _ := io.ReadAll(c)
			if strings.Contains(string(b), "200 OK") {
				t.Errorf("%q: %q", chunk, b)
			}
		}
	})
	t.Run("pipelined good ones", func(t *testing.T) {
		c := w.dial()
		_, _ = io.WriteString(c, strings.Repeat(line+host+"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 2)+line+host+"Content-Length: 2\r\nConnection: close\r\n\r\nhi")
		b, err := io.ReadAll(c)
		if n := strings.Count(string(b), "200 OK"); n != 3 || err != nil {
			t.Errorf("%d answers, %v: %s", n, err, b)
		}
	})
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

func TestConfigErrors(t *testing.T) {
	w := newWorld(t, []bottle.Route{whole("a.example.com")})
	for _, tc := range []struct {
		name string
		edit func(*egress.Config)
		want string
	}{
		{"no routes", func(c *egress.Config) { c.Routes = w.dir + "/none" }, "routes"},
		{"no logger", func(c *egress.Config) { c.Logger = nil }, "Logger"},
		{"nothing that names pipelock", func(c *egress.Config) { c.HopFile = "" }, "HopFile"},
		{"no hop", func(c *egress.Config) { c.HopFile = w.dir + "/none" }, "hop"},
		{"no way to report", func(c *egress.Config) { c.Report = nil }, "Report"},
		{"nowhere to listen", func(c *egress.Config) { c.Listener = nil }, "Listener"},
		{"no key socket", func(c *egress.Config) { c.KeyListener = nil }, "KeyListener"},
		{"not a TCP listener", func(c *egress.Config) { c.Listener = new(net.UnixListener) }, "a TCP one"},
		{"not a unix listener", func(c *egress.Config) { c.KeyListener = new(net.TCPListener) }, "unix socket"},
		{"bad roots", func(c *egress.Config) { c.UpstreamCA = []byte("x") }, "upstream_ca"},
		{"unreadable CA", func(c *egress.Config) { c.CACert = w.cfg.Routes }, "CA"},
		{"key of no CA", func(c *egress.Config) { c.CAKey = c.CACert }, "CA"},
		{"damaged spent.json", func(c *egress.Config) { c.SpentPath = c.Routes }, "spent"},
	} {
		cfg := w.cfg
		tc.edit(&cfg)
		if _, err := egress.New(cfg); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

func TestEnsureCA(t *testing.T) {
	dir := t.TempDir()
	cert, key := dir+"/ca.pem", dir+"/ca-key.pem"
	if err := egress.EnsureCA(cert, key, "one"); err != nil {
		t.Fatal(err)
	}
	for path, mode := range map[string]os.FileMode{cert: 0o644, key: 0o600} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v %v", path, st.Mode(), err)
		}
	}
	before, _ := os.ReadFile(cert)
	if err := egress.EnsureCA(cert, key, "one"); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.ReadFile(cert); string(after) != string(before) {
		t.Error("a CA that was there was replaced")
	}
	if err := os.WriteFile(key, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := egress.EnsureCA(cert, key, "one"); err == nil || !strings.Contains(err.Error(), key) || strings.Contains(err.Error(), "nonsense") {
		t.Errorf("a damaged key: %v", err)
	}
	if err := os.Remove(cert); err != nil { // as a crash between the two writes leaves it
		t.Fatal(err)
	}
	if err := egress.EnsureCA(cert, key, "one"); err != nil {
		t.Errorf("a key alone: %v", err)
	}
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	if err := egress.EnsureCA(cert, key, "one"); err == nil {
		t.Error("a certificate alone was accepted")
	}
}
