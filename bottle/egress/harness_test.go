package egress_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bottle/bottle"
	"bottle/bottle/egress"
)

// A world is an egress with a gate behind it and upstreams behind that, all on loopback.
type world struct {
	t      testing.TB
	dir    string
	cfg    egress.Config
	addr   string // of the egress
	init   *initStub
	reload chan struct{}
	gate   *gate
	roots  *x509.CertPool // what the agent trusts: the bottle's CA
	ca     *testCA        // of the upstreams
	log    *syncBuffer
	stop   func()
}

type option func(*egress.Config)

func withCredentials(c map[string]bottle.Credential) option {
	return func(cfg *egress.Config) { cfg.Credentials = c }
}

// newWorld starts an egress on those routes. It is stopped, and waited for, at the test's end.
func newWorld(t testing.TB, routes []bottle.Route, opts ...option) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{
		t: t, dir: dir, init: newInitStub(t, dir), reload: make(chan struct{}),
		gate: newGate(t), ca: newTestCA(t), log: &syncBuffer{},
	}
	w.cfg = egress.Config{
		Routes: filepath.Join(dir, "routes.yaml"), SpentPath: filepath.Join(dir, "spent.json"),
		CACert: filepath.Join(dir, "ca.pem"), CAKey: filepath.Join(dir, "ca-key.pem"),
		HopFile: filepath.Join(dir, "hop.json"), UpstreamCA: w.ca.pem, Reload: w.reload, Report: w.init.report,
		Logger: slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	writeHop(t, w.cfg.HopFile, w.gate.addr)
	for _, o := range opts {
		o(&w.cfg)
	}
	if err := egress.EnsureCA(w.cfg.CACert, w.cfg.CAKey, "test"); err != nil {
		t.Fatal(err)
	}
	w.writeRoutes(routes)
	w.roots = x509.NewCertPool()
	pemBytes, err := os.ReadFile(w.cfg.CACert)
	if err != nil || !w.roots.AppendCertsFromPEM(pemBytes) {
		t.Fatal("CA", err)
	}
	w.start()
	t.Cleanup(func() { w.stop() })
	return w
}

func (w *world) start() {
	w.t.Helper()
	w.cfg.Listener, w.cfg.KeyListener = inherited(w.t, w.init.proxy), inherited(w.t, w.init.keys)
	s, err := egress.New(w.cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	w.init.forget()
	go func() { done <- s.Run(ctx) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("Run: %v", err)
		}
	})
	w.addr = w.waitStatus(func(st bottle.DaemonStatus) bool { return st.Listen != "" }).Listen
}

func (w *world) writeRoutes(routes []bottle.Route) bottle.Hash {
	w.t.Helper()
	doc, err := bottle.NewRoutes(routes)
	if err != nil {
		w.t.Fatal(err)
	}
	b, rev, err := doc.Bytes()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := bottle.WriteFile(w.cfg.Routes, b, 0o600); err != nil {
		w.t.Fatal(err)
	}
	return rev
}

// setRoutes puts routes in force and returns once the status says so.
func (w *world) setRoutes(routes []bottle.Route) {
	w.t.Helper()
	rev := w.writeRoutes(routes)
	w.reload <- struct{}{}
	w.waitStatus(func(st bottle.DaemonStatus) bool { return st.Revision == rev })
}

func (w *world) waitStatus(ok func(bottle.DaemonStatus) bool) bottle.DaemonStatus {
	w.t.Helper()
	var st bottle.DaemonStatus
	eventually(w.t, "the status", func() bool {
		var told bool
		st, told = w.init.status()
		return told && ok(st)
	})
	return st
}

// eventually polls: what is waited for happens in other processes and goroutines.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not in 10 s", what)
		}
	}
}

// proxy is the URL that the agent finds in its environment.
func (w *world) proxy() *url.URL {
	return &url.URL{Scheme: "http", User: bottle.ProxyUserinfo(w.cfg.Secret), Host: w.addr}
}

// agent is an HTTP client as in the sandbox: the proxy, the bottle's CA, nothing else.
func (w *world) agent() *http.Client {
	t := &http.Transport{
		Proxy:           http.ProxyURL(w.proxy()),
		TLSClientConfig: &tls.Config{RootCAs: w.roots},
	}
	w.t.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t}
}

type answer struct {
	status int
	header http.Header
	body   string
}

func (w *world) do(c *http.Client, method, rawURL string, header http.Header) answer {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, rawURL, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	if header != nil {
		req.Header = header
	}
	res, err := c.Do(req)
	if err != nil {
		w.t.Fatalf("%s %s: %v", method, rawURL, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatalf("%s %s: body: %v", method, rawURL, err)
	}
	return answer{res.StatusCode, res.Header, string(b)}
}

func (w *world) get(rawURL string) answer {
	w.t.Helper()
	return w.do(w.agent(), http.MethodGet, rawURL, nil)
}

// tunnel opens a CONNECT and returns the connection and the proxy's answer to it.
func (w *world) tunnel(target string) (c net.Conn, status int) {
	w.t.Helper()
	c = w.dial()
	if _, err := io.WriteString(c, "CONNECT "+target+" HTTP/1.1\r\nHost: "+target+"\r\nProxy-Authorization: "+bottle.ProxyAuthorization(w.cfg.Secret)+"\r\n\r\n"); err != nil {
		w.t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: http.MethodConnect})
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	return c, res.StatusCode
}

func (w *world) dial() net.Conn {
	w.t.Helper()
	var d net.Dialer
	c, err := d.DialContext(w.t.Context(), "tcp", w.addr)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		w.t.Fatal(err)
	}
	return c
}

func (w *world) denials() []bottle.Denial {
	w.t.Helper()
	d, err := egress.Client{Proxy: w.addr, Secret: w.cfg.Secret}.Denials(w.t.Context(), 0)
	if err != nil {
		w.t.Fatal(err)
	}
	return d
}

// upstream serves h over TLS as host, whatever the port that the agent names.
func (w *world) upstream(host string, h http.HandlerFunc) *httptest.Server {
	s := httptest.NewUnstartedServer(h)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{w.ca.leaf(w.t, host)}}
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	w.t.Cleanup(s.Close)
	w.gate.route(host+":443", s.Listener.Addr().String())
	return s
}

func (w *world) plainUpstream(host string, h http.HandlerFunc) {
	s := httptest.NewServer(h)
	w.t.Cleanup(s.Close)
	w.gate.route(host+":80", s.Listener.Addr().String())
}

// A gate is the simplest of next hops: it knows addresses, not policy.
type gate struct {
	addr string
	open *countingListener

	mu      sync.Mutex
	to      map[string]string // host:port -> address
	refuse  map[string]int    // host:port -> status
	auth    []string          // their Proxy-Authorization, if any
	seen    []string          // targets of CONNECT and plain requests, in order
	clients http.Transport
}

func newGate(t testing.TB) *gate {
	g := &gate{to: map[string]string{}, refuse: map[string]int{}}
	s := httptest.NewUnstartedServer(g)
	g.open = &countingListener{Listener: s.Listener}
	s.Listener = g.open
	s.Start()
	g.addr = s.Listener.Addr().String()
	g.clients.Proxy = nil
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
		g.clients.CloseIdleConnections()
	})
	return g
}

// A countingListener knows how many of its connections are open.
type countingListener struct {
	net.Listener
	n atomic.Int64
}

func (l *countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.n.Add(1)
	return &countedConn{Conn: c, end: sync.OnceFunc(func() { l.n.Add(-1) })}, nil
}

type countedConn struct {
	net.Conn
	end func()
}

func (c *countedConn) Close() error {
	defer c.end()
	return c.Conn.Close()
}

func (g *gate) route(target, addr string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.to[target] = addr
}

func (g *gate) deny(target string, status int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refuse[target] = status
}

func (g *gate) targets() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.seen)
}

func (g *gate) authorizations() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.auth)
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	target := r.RequestURI
	if r.Method != http.MethodConnect {
		target = r.URL.Host
		if r.URL.Port() == "" {
			target += ":80"
		}
	}
	g.mu.Lock()
	g.seen = append(g.seen, target)
	g.auth = append(g.auth, r.Header["Proxy-Authorization"]...)
	addr, status := g.to[target], g.refuse[target]
	g.mu.Unlock()
	if status == 0 && addr == "" {
		status = http.StatusBadGateway
	}
	if status != 0 {
		w.Header().Set("X-Bottle-Layer", "pipelock")
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]any{"layer": "pipelock", "host": target, "reason": "the gate says no to " + target})
		return
	}
	if r.Method != http.MethodConnect {
		out := r.Clone(r.Context())
		out.RequestURI = ""
		out.Header.Del("Proxy-Authorization")
		out.URL.Host = addr
		res, err := g.clients.RoundTrip(out)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer res.Body.Close()
		for k, v := range res.Header {
			w.Header()[k] = v
		}
		w.WriteHeader(res.StatusCode)
		for buf := make([]byte, 4096); err == nil; {
			var n int
			n, err = res.Body.Read(buf)
			_, _ = w.Write(buf[:n])
			_ = http.NewResponseController(w).Flush()
		}
		return
	}
	up, err := net.Dial("tcp", addr) //nolint:noctx // a test's gate
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer up.Close()
	c, brw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = io.Copy(up, brw); _ = up.(*net.TCPConn).CloseWrite() }) //nolint:errcheck // it is one
	_, _ = io.Copy(c, up)
	_ = c.Close()
	_ = up.Close()
	wg.Wait()
}

// A testCA signs the upstreams' certificates.
type testCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newTestCA(t testing.TB) *testCA {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "upstreams"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &testCA{cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

func (ca *testCA) leaf(t testing.TB, host string) tls.Certificate {
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

type syncBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// noLeak fails the test if goroutines of the package under test outlive what f starts.
func noLeak(t *testing.T) {
	t.Helper()
	eventually(t, "the end of all goroutines of egress", func() bool {
		buf := make([]byte, 1<<20)
		buf = buf[:runtime.Stack(buf, true)]
		return !strings.Contains(string(buf), "bottle/egress.(*Server)") && !strings.Contains(string(buf), "bottle/egress.(*hop)")
	})
}

func whole(host string) bottle.Route { return bottle.Route{Host: bottle.Host(host)} }

func below(host, prefix string) bottle.Route {
	return bottle.Route{Host: bottle.Host(host), Matches: []bottle.Match{{Path: &bottle.PathMatch{Type: bottle.PathPrefix, Value: prefix}, Method: "GET"}}}
}
