package pipelock_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"bottle/bottle"
	"bottle/bottle/pipelock"
)

// A scripted resolver gives each name's answers in turn, the last one for ever.
type scripted struct {
	mu      sync.Mutex
	answers map[string][][]string
	asked   []string
}

func (s *scripted) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := strings.TrimSuffix(host, ".")
	s.asked = append(s.asked, name)
	list := s.answers[name]
	if len(list) == 0 {
		return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	if len(list) > 1 {
		s.answers[name] = list[1:]
	}
	var out []netip.Addr
	for _, a := range list[0] {
		out = append(out, netip.MustParseAddr(a))
	}
	return out, nil
}

// A running gate, with what the test needs to steer it.
type running struct {
	t      testing.TB
	addr   string
	config string
	status string
	reload chan struct{}
	stop   func() error
	log    *syncBuffer
}

type syncBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

func start(t testing.TB, change func(*pipelock.GateConfig), allow ...bottle.AllowEntry) *running {
	t.Helper()
	dir := t.TempDir()
	r := &running{
		t: t, config: filepath.Join(dir, "pipelock.yaml"), status: filepath.Join(dir, "pipelock.json"),
		reload: make(chan struct{}), log: &syncBuffer{},
	}
	r.write(sealed(t, allow...))
	cfg := pipelock.GateConfig{
		Config: r.config, Listen: "127.0.0.1:0", StatusPath: r.status, AllowCIDRs: loopback, Reload: r.reload,
		Resolver: &scripted{answers: map[string][][]string{"a.test": {{"127.0.0.1"}}, "x.a.test": {{"127.0.0.1"}}, "y.x.a.test": {{"127.0.0.1"}}, "b.test": {{"127.0.0.1"}}}},
		Logger:   slog.New(slog.NewJSONHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if change != nil {
		change(&cfg)
	}
	g, err := pipelock.NewGate(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.addr = g.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	r.stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return r
}

func sealed(t testing.TB, allow ...bottle.AllowEntry) []byte {
	t.Helper()
	doc, err := pipelock.New(allow)
	if err != nil {
		t.Fatal(err)
	}
	b, _, err := doc.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (r *running) write(b []byte) {
	r.t.Helper()
	if err := os.WriteFile(r.config, b, 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// change writes a config, has it reloaded, and returns when the gate has dealt with it:
// a second receive can only follow the first one's reload.
func (r *running) change(b []byte) {
	r.t.Helper()
	r.write(b)
	r.reload <- struct{}{}
	r.reload <- struct{}{}
}

// started returns the status that the gate wrote at its start: a reload comes after it.
func (r *running) started() bottle.DaemonStatus {
	r.t.Helper()
	r.reload <- struct{}{}
	return r.readStatus()
}

func (r *running) readStatus() bottle.DaemonStatus {
	r.t.Helper()
	var s bottle.DaemonStatus
	if err := bottle.ReadJSON(r.status, 0, &s); err != nil {
		r.t.Fatal(err)
	}
	return s
}

type answer struct {
	code   int
	header http.Header
	Layer  string
	Host   string
	Port   int
	Reason string
}

// connect opens a tunnel; conn is nil if it was refused.
func (r *running) connect(target string) (net.Conn, answer) {
	r.t.Helper()
	c, err := (&net.Dialer{}).DialContext(r.t.Context(), "tcp", r.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = c.Close() })
	if _, err := fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target); err != nil {
		r.t.Fatal(err)
	}
	return r.readAnswer(c)
}

func (r *running) readAnswer(c net.Conn) (net.Conn, answer) {
	r.t.Helper()
	br := bufio.NewReaderSize(c, 16<<10)
	resp, err := http.ReadResponse(br, &http.Request{Method: http.MethodConnect})
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	a := answer{code: resp.StatusCode, header: resp.Header}
	if resp.StatusCode == http.StatusOK {
		return c, a
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	if resp.Header.Get("Content-Type") == "application/json" {
		if err := json.Unmarshal(body, &a); err != nil {
			r.t.Fatalf("%s: %v", body, err)
		}
	}
	return nil, a
}

// client sends plain requests through the gate.
func (r *running) client() *http.Client {
	tr := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: r.addr})}
	r.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// echo serves connections that send back what comes, and end when their peer does.
func echo(t *testing.T) int {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer c.Close()
				b, _ := io.ReadAll(io.TeeReader(c, c))
				_, _ = fmt.Fprintf(c, "|%d", len(b))
			})
		}
	})
	t.Cleanup(func() { _ = ln.Close(); conns.Wait() })
	return portOf(t, ln.Addr().String())
}

func portOf(t *testing.T, addr string) int {
	t.Helper()
	_, p, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(p)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func entry(host string, ports ...int) bottle.AllowEntry {
	return bottle.AllowEntry{Host: bottle.Host(host), Ports: ports}
}

func ping(t *testing.T, c net.Conn) {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "ping" {
		t.Fatalf("echo: %q, %v", b, err)
	}
}

func closeWrite(t *testing.T, c net.Conn) {
	t.Helper()
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		t.Fatalf("%T is not a TCP connection", c)
	}
	if err := tcp.CloseWrite(); err != nil {
		t.Fatal(err)
	}
}

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

func TestReload(t *testing.T) {
	port := echo(t)
	r := start(t, nil, entry("a.test", port))
	first := r.started()
	if first.Daemon != "pipelock" || first.PID != os.Getpid() || first.Revision == "" || first.Listen != r.addr || first.Instance == "" {
		t.Errorf("first status %+v", first)
	}
	a, _ := r.connect(fmt.Sprintf("a.test:%d", port))
	ping(t, a)
	if _, ans := r.connect(fmt.Sprintf("b.test:%d", port)); ans.code != 403 {
		t.Fatalf("b.test before it is allowed: %+v", ans)
	}

	r.change(sealed(t, entry("a.test", port), entry("b.test", port)))
	wide := r.readStatus()
	if wide.Revision == first.Revision || wide.Refused != nil || wide.Instance != first.Instance {
		t.Errorf("after widening: %+v", wide)
	}
	if !strings.Contains(r.log.String(), `"msg":"config_reload","status":"success","config_hash":"`) {
		t.Error("config_reload is not in the log")
	}
	ping(t, a)
	b, ans := r.connect(fmt.Sprintf("b.test:%d", port))
	if b == nil {
		t.Fatalf("%+v", ans)
	}
	ping(t, b)

	for name, bad := range map[string]struct{ body, why string }{
		"empty":         {"", "empty"},
		"no mode":       {"api_allowlist: [evil.test]\n", "mode: missing"},
		"balanced":      {"mode: balanced\napi_allowlist: [evil.test]\n", "only strict"},
		"no seal":       {"mode: strict\napi_allowlist: [evil.test]\n", "not a revision line"},
		"a wrong seal":  {"mode: strict\napi_allowlist: [evil.test]\n# revision: sha256:" + strings.Repeat("0", 64) + "\n", "but the content is"},
		"nothing found": {"mode: strict\napi_allowlist: []\n", "bottle.invalid"},
	} {
		r.change([]byte(bad.body))
		s := r.readStatus()
		if s.Revision != wide.Revision || s.Refused == nil || !strings.Contains(s.Refused.Error, bad.why) {
			t.Errorf("%s: %+v %+v; want %q", name, s, s.Refused, bad.why)
		}
		ping(t, a)
		ping(t, b)
		if c, _ := r.connect(fmt.Sprintf("b.test:%d", port)); c == nil {
			t.Errorf("%s: the old table is not in force", name)
		}
	}

	r.change(sealed(t, entry("a.test", port)))
	if s := r.readStatus(); s.Revision != first.Revision || s.Refused != nil || s.Counters["cut"] == 0 {
		t.Errorf("after narrowing: %+v", s)
	}
	ping(t, a)
	if err := b.SetDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the tunnel to b.test lives on: %v", err)
	}
	if _, ans := r.connect(fmt.Sprintf("b.test:%d", port)); ans.code != 403 {
		t.Errorf("%+v", ans)
	}
}

func TestReloadCutsPlainStreams(t *testing.T) {
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "first")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	t.Cleanup(up.Close)
	port := portOf(t, up.Listener.Addr().String())
	r := start(t, nil, entry("a.test", port))
	resp, err := r.client().Do(newRequest(t, fmt.Sprintf("http://a.test:%d/", port)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadFull(resp.Body, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	r.change(sealed(t))
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("the stream ended as if it were whole")
	}
}

func TestStopDrains(t *testing.T) {
	port := echo(t)
	r := start(t, nil, entry("a.test", port))
	c, _ := r.connect(fmt.Sprintf("a.test:%d", port))
	ping(t, c)
	began := time.Now()
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 2*time.Second { // a second, and slack for a busy machine
		t.Errorf("stopping took %s", took)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the tunnel outlived the gate")
	}
}

func TestGateDoesNotStart(t *testing.T) {
	good := string(sealed(t, entry("a.test")))
	taken := echo(t)
	for name, tt := range map[string]struct {
		body   string
		change func(*pipelock.GateConfig)
		want   string
	}{
		"empty":           {"", nil, "empty"},
		"comments alone":  {"# nothing\n", nil, "comments alone"},
		"lost its mode":   {strings.Replace(good, "mode: strict\n", "", 1), nil, "mode: missing"},
		"audit mode":      {strings.Replace(good, "strict", "audit", 1), nil, "only strict"},
		"unsealed":        {string(bottle.Body([]byte(good))), nil, "revision line"},
		"edited":          {strings.Replace(good, "a.test", "b.test", 1), nil, "edited by hand"},
		"torn":            {good[:len(good)/2], nil, "pipelock.yaml"},
		"no logger":       {good, func(c *pipelock.GateConfig) { c.Logger = nil }, "Logger is required"},
		"no config":       {good, func(c *pipelock.GateConfig) { c.Config = "" }, "Config is required"},
		"no address":      {good, func(c *pipelock.GateConfig) { c.Listen = "" }, "one of Listener and Listen"},
		"a missing file":  {good, func(c *pipelock.GateConfig) { c.Config += ".gone" }, "no such file"},
		"a bad resolve":   {good, func(c *pipelock.GateConfig) { c.Resolve = map[string]string{"a.test": "b"} }, "not an IP address"},
		"a bad host":      {good, func(c *pipelock.GateConfig) { c.Resolve = map[string]string{"a b": "127.0.0.1"} }, "resolve"},
		"a port taken":    {good, func(c *pipelock.GateConfig) { c.Listen = fmt.Sprintf("127.0.0.1:%d", taken) }, "address already in use"},
		"every interface": {good, func(c *pipelock.GateConfig) { c.Listen = ":0" }, "give a loopback address"},
		"a public one":    {good, func(c *pipelock.GateConfig) { c.Listen = "192.0.2.1:1" }, "give a loopback address"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "pipelock.yaml")
			if err := os.WriteFile(path, []byte(tt.body), 0o600); err != nil {
				t.Fatal(err)
			}
			cfg := pipelock.GateConfig{Config: path, Listen: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler)}
			if tt.change != nil {
				tt.change(&cfg)
			}
			if _, err := pipelock.NewGate(cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v; want %q", err, tt.want)
			}
		})
	}
}

func TestKeptKeysAreNamed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipelock.yaml")
	b, _ := bottle.Seal([]byte("mode: strict\napi_allowlist: [a.test]\ndlp: {scan_env: true}\n"))
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	r := start(t, func(c *pipelock.GateConfig) { c.Config = path })
	get(t, http.DefaultClient, "http://"+r.addr+"/health")
	if !strings.Contains(r.log.String(), `"keys":["dlp"]`) {
		t.Errorf("no warning in %s", r.log)
	}
}
