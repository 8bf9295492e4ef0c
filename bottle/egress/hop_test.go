package egress_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bottle/bottle"
	"bottle/bottle/egress"
)

// hopWith replaces the world's gate by one that does with each connection what serve does,
// then closes it.
func hopWith(t *testing.T, serve func(net.Conn)) option {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // a test's listener
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				serve(c)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	return func(c *egress.Config) { writeHop(t, c.HopFile, l.Addr().String()) }
}

// A pipelock that is being replaced closes connections unanswered. That is waited out: by
// then no byte of the request was sent.
func TestReplacedPipelockIsWaitedFor(t *testing.T) {
	var drop atomic.Int32
	var gate atomic.Pointer[string]
	w := newWorld(t, []bottle.Route{whole("a.example.com")}, hopWith(t, func(c net.Conn) {
		if drop.Add(-1) >= 0 {
			return
		}
		up, err := net.Dial("tcp", *gate.Load()) //nolint:noctx // a test's relay
		if err != nil {
			t.Error(err)
			return
		}
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = io.Copy(up, c); _ = up.Close() })
		_, _ = io.Copy(c, up)
		_ = c.Close()
		wg.Wait()
	}))
	gate.Store(&w.gate.addr)
	w.upstream("a.example.com", hello)
	drop.Store(3)
	if a := w.get("https://a.example.com/"); a.status != 200 || drop.Load() >= 0 {
		t.Errorf("closed before the answer: %+v, %d", a, drop.Load())
	}
	w.stop()
}

// A pipelock that goes away once it has answered, or has been sent a request, is not asked a
// second time: what was sent may have arrived.
func TestNothingIsSentTwice(t *testing.T) {
	for _, tc := range []struct {
		name, url, layer string
		reads            bool // it takes what is sent before it goes
	}{
		{"at once, intercepted", "https://a.example.com/", "upstream", false},
		{"at once, passed through", "https://pass.example.com/", "", false},
		{"with a ClientHello, intercepted", "https://a.example.com/", "upstream", true},
		{"with a ClientHello, passed through", "https://pass.example.com/", "", true},
		{"at once, plain", "http://a.example.com/", "pipelock", false},
		{"with a request, plain", "http://a.example.com/", "pipelock", true},
	} {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			t.Run(tc.name+", "+method, func(t *testing.T) {
				var asked atomic.Int32
				w := newWorld(t, []bottle.Route{whole("a.example.com"), {Host: "pass.example.com", TLS: bottle.Passthrough}}, hopWith(t, func(c net.Conn) {
					asked.Add(1)
					br := bufio.NewReader(c)
					if strings.HasPrefix(tc.url, "https") {
						if _, err := http.ReadRequest(br); err != nil {
							t.Error(err)
						}
						_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
					}
					if tc.reads {
						_, _ = br.ReadByte()
						_, _ = br.Discard(br.Buffered())
					}
				}))
				req, err := http.NewRequestWithContext(t.Context(), method, tc.url, strings.NewReader(strings.Repeat("x", len(method)-3)))
				if err != nil {
					t.Fatal(err)
				}
				res, err := w.agent().Do(req)
				if tc.layer == "" { // no TLS of ours to say it in
					if err == nil {
						_ = res.Body.Close()
						t.Error(res.Status)
					}
				} else if err != nil {
					t.Error(err)
				} else {
					b, err := io.ReadAll(res.Body)
					_ = res.Body.Close()
					if err != nil || res.StatusCode != http.StatusBadGateway || res.Header.Get("X-Bottle-Layer") != tc.layer {
						t.Errorf("%s %s %q %v", res.Status, res.Header.Get("X-Bottle-Layer"), b, err)
					}
				}
				if n := asked.Load(); n != 1 {
					t.Errorf("pipelock was asked %d times", n)
				}
			})
		}
	}
}

// Nor does a request reach the upstream twice whose connection breaks after it was sent, be
// the connection new or kept. (A GET on a kept one may: RFC 9110 section 9.2.2.)
func TestNoRequestArrivesTwice(t *testing.T) {
	w := newWorld(t, []bottle.Route{whole("a.example.com")})
	var arrived atomic.Int32
	h := func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/keep" {
			flushed(rw, r)
			return
		}
		arrived.Add(1)
		_, _ = io.Copy(io.Discard, r.Body)
		panic(http.ErrAbortHandler)
	}
	w.upstream("a.example.com", h)
	w.plainUpstream("a.example.com", h)
	for _, scheme := range []string{"https", "http"} {
		for _, kept := range []bool{false, true} {
			for _, method := range []string{http.MethodGet, http.MethodPost} {
				if kept && method == http.MethodGet {
					continue
				}
				w.stop()
				w.start() // without kept connections
				if kept {
					w.get(scheme + "://a.example.com/keep")
				}
				arrived.Store(0)
				if a := w.do(w.agent(), method, scheme+"://a.example.com/", nil); a.status != 502 || arrived.Load() != 1 {
					t.Errorf("%s %s, kept %t: %d, and it arrived %d times", method, scheme, kept, a.status, arrived.Load())
				}
			}
		}
	}
}

// flushed answers in chunks. The end of such a body reaches the agent after egress has put
// the upstream's connection aside for the next request.
func flushed(rw http.ResponseWriter, r *http.Request) {
	hello(rw, r)
	_ = http.NewResponseController(rw).Flush()
}

// Without a pipelock nothing goes out, not even to a place that egress could reach itself.
func TestPipelockThatStaysDown(t *testing.T) {
	upstream, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // a test's listener
	if err != nil {
		t.Fatal(err)
	}
	port := upstream.Addr().(*net.TCPAddr).Port //nolint:errcheck // it is one
	var reached atomic.Int32
	var accepts, requests sync.WaitGroup
	accepts.Go(func() {
		for {
			c, err := upstream.Accept()
			if err != nil {
				return
			}
			reached.Add(1)
			_ = c.Close()
		}
	})
	for _, mode := range []bottle.TLSMode{bottle.Intercept, bottle.Passthrough} {
		w := newWorld(t, []bottle.Route{{Host: "localhost", Ports: []int{port}, TLS: mode}}, func(c *egress.Config) { writeHop(t, c.HopFile, "127.0.0.1:1") })
		schemes := []string{"https", "http"}
		if mode == bottle.Passthrough {
			schemes = schemes[:1]
		}
		for _, scheme := range schemes {
			requests.Go(func() {
				start := time.Now()
				a := w.do(w.agent(), http.MethodGet, scheme+"://localhost:"+strconv.Itoa(port)+"/", nil)
				if a.status != 502 || a.header.Get("X-Bottle-Layer") != "pipelock" || !strings.Contains(a.body, "refused") || strings.Contains(a.body, "127.0.0.1") {
					t.Errorf("%s, %s: %+v", mode, scheme, a)
				}
				if took := time.Since(start); took > 4*time.Second {
					t.Errorf("%s, %s: it took %s", mode, scheme, took)
				}
			})
		}
	}
	requests.Wait()
	_ = upstream.Close()
	accepts.Wait()
	if n := reached.Load(); n != 0 {
		t.Errorf("%d connections went around pipelock", n)
	}
}
