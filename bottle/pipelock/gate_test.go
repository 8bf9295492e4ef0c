package pipelock_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"bottle/bottle"
	"bottle/bottle/pipelock"
)

func TestTunnelKeepsHalfClose(t *testing.T) {
	port := echo(t)
	r := start(t, nil, entry("a.test", port))
	c, a := r.connect(fmt.Sprintf("A.Test.:%d", port))
	if c == nil {
		t.Fatalf("%+v", a)
	}
	ping(t, c)
	closeWrite(t, c)
	if b, err := io.ReadAll(c); err != nil || string(b) != "|4" {
		t.Errorf("after half-close: %q, %v; want |4", b, err)
	}
}

func TestEarlyBytesAreForwarded(t *testing.T) {
	port := echo(t)
	r := start(t, nil, entry("a.test", port))
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := fmt.Fprintf(c, "CONNECT a.test:%d HTTP/1.1\r\nHost: a.test:%d\r\n\r\nearly", port, port); err != nil {
		t.Fatal(err)
	}
	closeWrite(t, c)
	b, err := io.ReadAll(c)
	if err != nil || !strings.HasSuffix(string(b), "\r\n\r\nearly|5") {
		t.Errorf("got %q, %v", b, err)
	}
}

func TestConnectRefusals(t *testing.T) {
	port := echo(t)
	r := start(t, nil, entry("a.test", port), entry("*.a.test", port), entry("gone.test"), entry("dead.test"))
	for _, tt := range []struct {
		name, target string
		code         int
		reason       string
	}{
		{"a host that is not listed", "evil.test:443", 403, "evil.test is not in the allowlist"},
		{"a port that is not listed", "a.test:22", 403, "port 22 of a.test is not in the allowlist"},
		{"a wildcard's port", "x.a.test:22", 403, "port 22 of *.a.test"},
		{"a wildcard is one label", fmt.Sprintf("y.x.a.test:%d", port), 403, "y.x.a.test is not in the allowlist"},
		{"a suffix", fmt.Sprintf("nota.test:%d", port), 403, "nota.test is not in"},
		{"a prefix", fmt.Sprintf("a.test.evil.test:%d", port), 403, "not in the allowlist"},
		{"no such name", "gone.test:443", 502, "no such host"},
		{"an address", "127.0.0.1:443", 400, "IP address"},
		{"an address in hex", "0x7f.1:443", 400, "IP address"},
		{"an IPv6 address", "[::1]:443", 400, ""},
		{"userinfo", "a.test@evil.test:443", 400, ""},
		{"no port", "a.test", 400, "no port"},
		{"port 0", "a.test:0", 400, "not a port"},
		{"a padded port", fmt.Sprintf("a.test:0%d", port), 400, "not a port"},
		{"a signed port", "a.test:+443", 400, ""},
		{"a port too large", "a.test:65979", 400, "not a port"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, a := r.connect(tt.target)
			if a.code != tt.code || !strings.Contains(a.Reason, tt.reason) {
				t.Errorf("%+v; want %d and %q", a, tt.code, tt.reason)
			}
			if a.Layer != "" && a.header.Get("X-Bottle-Layer") != "pipelock" {
				t.Errorf("no layer in %v", a.header)
			}
		})
	}
}

func TestAddressClasses(t *testing.T) {
	for class, addr := range map[string]string{
		"loopback": "127.0.0.1", "private": "10.1.2.3", "link-local": "169.254.1.1", "metadata": "169.254.169.254",
		"multicast": "224.0.0.1", "cgnat": "100.64.0.1", "nat64": "64:ff9b::7f00:1", "6to4": "2002:7f00:1::1",
		"teredo": "2001::1", "unspecified": "0.0.0.0", "broadcast": "255.255.255.255", "documentation": "192.0.2.1",
		"benchmark": "198.18.0.1", "unique-local": "fd00::1", "site-local": "fec0::1", "v4-compatible": "::7f00:2",
		"reserved": "4000::1",
	} {
		for _, a := range []string{addr, "::ffff:" + addr} {
			if strings.Contains(addr, ":") && a != addr {
				continue
			}
			t.Run(class+" "+a, func(t *testing.T) {
				r := start(t, func(c *pipelock.GateConfig) {
					c.AllowCIDRs = nil
					c.Resolver = &scripted{answers: map[string][][]string{"a.test": {{a}}, "mixed.test": {{"8.8.8.8", a}}}}
				}, entry("a.test"), entry("mixed.test"))
				for _, host := range []string{"a.test", "mixed.test"} {
					if _, got := r.connect(host + ":443"); got.code != 403 || !strings.Contains(got.Reason, class) {
						t.Errorf("%s: %+v", host, got)
					}
					if got := get(t, r.client(), "http://"+host+"/"); got.code != 403 {
						t.Errorf("plain %s: %d", host, got.code)
					}
				}
			})
		}
	}
}

func newRequest(t *testing.T, url string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// reply is a response that has been read.
type reply struct {
	code   int
	header http.Header
	body   []byte
}

func get(t *testing.T, c *http.Client, url string) reply {
	t.Helper()
	return do(t, c, newRequest(t, url))
}

func do(t *testing.T, c *http.Client, req *http.Request) reply {
	t.Helper()
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header, b}
}

// A name that first resolves to what may be dialled and then to what may not.
func TestRebinding(t *testing.T) {
	port := echo(t)
	res := &scripted{answers: map[string][][]string{"a.test": {{"127.0.0.1"}, {"127.0.0.2"}, {"10.0.0.1"}}}}
	r := start(t, func(c *pipelock.GateConfig) {
		c.Resolver = res
		c.AllowCIDRs = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
	}, entry("a.test", port))
	c, a := r.connect(fmt.Sprintf("a.test:%d", port))
	if c == nil {
		t.Fatalf("%+v", a)
	}
	ping(t, c)
	res.mu.Lock()
	if !slices.Equal(res.asked, []string{"a.test"}) {
		t.Errorf("resolved %v; want once for each connection", res.asked)
	}
	res.mu.Unlock()
	for _, want := range []string{"loopback", "private"} {
		if _, a := r.connect(fmt.Sprintf("a.test:%d", port)); a.code != 403 || !strings.Contains(a.Reason, want) {
			t.Errorf("%+v; want %s", a, want)
		}
	}
	ping(t, c)
}

func TestEachClassifiedAddressIsTried(t *testing.T) {
	port := echo(t) // on 127.0.0.1 alone
	r := start(t, func(c *pipelock.GateConfig) {
		c.Resolver = &scripted{answers: map[string][][]string{"a.test": {{"127.0.0.9", "127.0.0.1"}}, "dead.test": {{"127.0.0.9"}}}}
	}, entry("a.test", port), entry("dead.test", port))
	c, a := r.connect(fmt.Sprintf("a.test:%d", port))
	if c == nil {
		t.Fatalf("%+v", a)
	}
	ping(t, c)
	if _, a := r.connect(fmt.Sprintf("dead.test:%d", port)); a.code != 502 || !strings.Contains(a.Reason, "refused") {
		t.Errorf("%+v", a)
	}
}

func TestResolveMapIsClassifiedToo(t *testing.T) {
	port := echo(t)
	r := start(t, func(c *pipelock.GateConfig) {
		c.Resolver = &scripted{}
		c.Resolve = map[string]string{"A.test": "127.0.0.1", "b.test": "10.0.0.1"}
	}, entry("a.test", port), entry("b.test", port))
	if c, a := r.connect(fmt.Sprintf("a.test:%d", port)); c == nil {
		t.Errorf("%+v", a)
	}
	if _, a := r.connect(fmt.Sprintf("b.test:%d", port)); a.code != 403 {
		t.Errorf("%+v", a)
	}
}

func TestPlainHTTP(t *testing.T) {
	var got *http.Request
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r
		if r.URL.Path == "/away" {
			w.Header().Set("Location", "http://evil.test/")
			w.WriteHeader(http.StatusFound)
			return
		}
		w.Header().Set("X-Bottle-Layer", "pipelock")
		w.Header().Set("Connection", "X-Hop")
		w.Header().Set("X-Hop", "1")
		_, _ = io.WriteString(w, "hello")
	}))
	t.Cleanup(up.Close)
	port := portOf(t, up.Listener.Addr().String())
	r := start(t, nil, entry("a.test", port))
	base := fmt.Sprintf("http://a.test:%d", port)

	req := newRequest(t, base+"/a%2Fb?q=%20")
	req.Header = http.Header{"Connection": {"X-Gone"}, "X-Gone": {"1"}, "Proxy-Authorization": {"secret"}, "X-Forwarded-For": {"mine"}, "X-Kept": {"1"}}
	if resp := do(t, r.client(), req); resp.code != 200 || string(resp.body) != "hello" || resp.header.Get("X-Hop") != "" || resp.header.Get("X-Bottle-Layer") != "" {
		t.Errorf("%d %q %v", resp.code, resp.body, resp.header)
	}
	if got.RequestURI != "/a%2Fb?q=%20" || got.Host != fmt.Sprintf("a.test:%d", port) {
		t.Errorf("upstream saw %s at %s", got.RequestURI, got.Host)
	}
	for k, want := range map[string]string{"X-Gone": "", "Proxy-Authorization": "", "X-Forwarded-For": "mine", "X-Kept": "1"} {
		if got.Header.Get(k) != want {
			t.Errorf("upstream saw %s: %q; want %q", k, got.Header.Get(k), want)
		}
	}

	if resp := get(t, r.client(), base+"/away"); resp.code != 302 || resp.header.Get("Location") != "http://evil.test/" {
		t.Errorf("a redirect is the client's: %d", resp.code)
	}
	if resp := get(t, r.client(), "http://evil.test/"); resp.code != 403 || resp.header.Get("X-Bottle-Layer") != "pipelock" {
		t.Errorf("followed: %d", resp.code)
	}
	if resp := get(t, r.client(), "http://a.test/"); resp.code != 403 {
		t.Errorf("port 80: %d", resp.code)
	}
	if resp := get(t, http.DefaultClient, "http://"+r.addr+"/"); resp.code != 400 {
		t.Errorf("origin form: %d", resp.code)
	}
}

// What doesn't know the secret reaches nothing but the health; what does is served, and
// the upstream is not told.
func TestSecret(t *testing.T) {
	const secret = "the-secret-of-the-gate"
	var seen http.Header
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = r.Header
		_, _ = io.WriteString(w, "hello")
	}))
	t.Cleanup(up.Close)
	port := portOf(t, up.Listener.Addr().String())
	r := start(t, func(c *pipelock.GateConfig) { c.Secret = secret }, entry("a.test", port))
	plain := fmt.Sprintf("http://a.test:%d/", port)
	through := func(user *url.Userinfo) *http.Client {
		tr := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", User: user, Host: r.addr})}
		t.Cleanup(tr.CloseIdleConnections)
		return &http.Client{Transport: tr}
	}
	for name, user := range map[string]*url.Userinfo{"no secret": nil, "another": bottle.ProxyUserinfo("other")} {
		resp := get(t, through(user), plain)
		if resp.code != 407 || resp.header.Get("Proxy-Authenticate") == "" || resp.header.Get("X-Bottle-Layer") != "pipelock" || strings.Contains(string(resp.body), secret) {
			t.Errorf("%s: %d %v %s", name, resp.code, resp.header, resp.body)
		}
		req := newRequest(t, fmt.Sprintf("https://a.test:%d/", port))
		if resp, err := through(user).Do(req); err == nil || !strings.Contains(err.Error(), "Proxy Authentication Required") {
			t.Errorf("%s: CONNECT: %v", name, err)
			_ = resp.Body.Close()
		}
	}
	if seen != nil {
		t.Error("it reached the upstream")
	}
	if resp := get(t, through(bottle.ProxyUserinfo(secret)), plain); resp.code != 200 || string(resp.body) != "hello" {
		t.Errorf("with the secret: %d %s", resp.code, resp.body)
	}
	if strings.Contains(fmt.Sprint(seen), "Proxy") {
		t.Errorf("upstream saw %v", seen)
	}
	if resp := get(t, http.DefaultClient, "http://"+r.addr+"/health"); resp.code != 200 {
		t.Errorf("health: %d", resp.code)
	}
	if err := r.stop(); err != nil || strings.Contains(r.log.String(), secret) {
		t.Errorf("the log shows it (%v)", err)
	}
}

func TestLogOfRefusalsIsBounded(t *testing.T) {
	r := start(t, nil, entry("a.test"))
	began := time.Now()
	const refusals = 500
	c := r.client()
	for i := range refusals {
		if resp := get(t, c, fmt.Sprintf("http://h%d.test/", i)); resp.code != 403 {
			t.Fatal(resp.code)
		}
	}
	// A bucket of ten, and ten for each second begun.
	most := 10 + 10*(int(time.Since(began).Seconds())+1)
	if n := strings.Count(r.log.String(), `"msg":"refused"`); n < 10 || n > most {
		t.Errorf("%d lines of %d refusals, want 10 to %d", n, refusals, most)
	}
}

func TestHealth(t *testing.T) {
	r := start(t, nil, entry("a.test"))
	r.started()
	resp := get(t, http.DefaultClient, "http://"+r.addr+"/health")
	var h struct{ Status, Mode, Revision string }
	if err := json.Unmarshal(resp.body, &h); err != nil || h.Status != "healthy" || h.Mode != "strict" || h.Revision != string(r.readStatus().Revision) {
		t.Errorf("%+v, %v", h, err)
	}
}
