package pipelock_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
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
		Config: r.config, AllowCIDRs: loopback, Reload: r.reload,
		Report:   func(st bottle.DaemonStatus) error { return bottle.WriteStatus(r.status, st) },
		Resolver: &scripted{answers: map[string][][]string{"a.test": {{"127.0.0.1"}}, "x.a.test": {{"127.0.0.1"}}, "y.x.a.test": {{"127.0.0.1"}}, "b.test": {{"127.0.0.1"}}}},
		Logger:   slog.New(slog.NewJSONHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if change != nil {
		change(&cfg)
	}
	if cfg.Listener == nil {
		cfg.Listener = listenOn(t, "127.0.0.1:0")
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

func listenOn(t testing.TB, addr string) net.Listener {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
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
