package egress_test

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"bottle/bottle"
	"bottle/bottle/egress"
	"bottle/bottle/pipelock"
)

// A liveGate is a running built-in gate.
type liveGate struct {
	t        *testing.T
	config   string
	reload   chan struct{}
	counters chan map[string]uint64 // of the last report
	stop     func()
}

// startGate starts one on l; pass may be nil.
func startGate(t *testing.T, l net.Listener, pass *net.UnixConn, resolve map[string]string, list ...bottle.AllowEntry) *liveGate {
	t.Helper()
	h := &liveGate{t: t, config: filepath.Join(t.TempDir(), "pipelock.yaml"), reload: make(chan struct{}), counters: make(chan map[string]uint64, 1)}
	h.write(list...)
	g, err := pipelock.NewGate(pipelock.GateConfig{
		Config: h.config, Listener: l, Secret: gateSecret, Logger: slog.New(slog.DiscardHandler), Reload: h.reload, Pass: pass,
		Resolve: resolve, AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")},
		Report: func(st bottle.DaemonStatus) error {
			select {
			case <-h.counters:
			default:
			}
			h.counters <- st.Counters
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	h.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(h.stop)
	return h
}

func (h *liveGate) write(list ...bottle.AllowEntry) {
	h.t.Helper()
	doc, err := pipelock.New(list)
	if err != nil {
		h.t.Fatal(err)
	}
	b, _, err := doc.Bytes()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := bottle.WriteFile(h.config, b, 0o600); err != nil {
		h.t.Fatal(err)
	}
}

// allow changes the list, and returns when it is in force.
func (h *liveGate) allow(list ...bottle.AllowEntry) map[string]uint64 {
	h.t.Helper()
	h.write(list...)
	h.reload <- struct{}{}
	h.reload <- struct{}{} // taken after the first one was dealt with
	return <-h.counters
}

// eachGate runs the test with a gate through which all flows, and one that passes connections.
func eachGate(t *testing.T, test func(t *testing.T, w *world, l net.Listener, pass *net.UnixConn)) {
	for _, how := range []string{"relayed", "passed"} {
		t.Run(how, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // a test's listener
			if err != nil {
				t.Fatal(err)
			}
			var pass *net.UnixConn
			w := newWorld(t, nil, func(c *egress.Config) {
				writeHop(t, c.HopFile, l.Addr().String())
				c.GateSecret = gateSecret
				if how == "passed" {
					pass, c.Passed = passingPair(t)
				}
			})
			test(t, w, l, pass)
		})
	}
}

// serveTLS serves for host at the port that it returns.
func (w *world) serveTLS(host string, h http.HandlerFunc) (port int) {
	s := httptest.NewUnstartedServer(h)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{w.ca.leaf(w.t, host)}}
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	w.t.Cleanup(s.Close)
	return s.Listener.Addr().(*net.TCPAddr).Port //nolint:errcheck // a TCP listener
}

// Both layers as a bundle runs them: what egress allows and the gate does not is refused in
// the gate's name, and a public name that resolves to a private address is not dialled.
func TestWithTheBuiltInGate(t *testing.T) {
	eachGate(t, func(t *testing.T, w *world, l net.Listener, passing *net.UnixConn) {
		good, plain := w.serveTLS("good.example.com", hello), httptest.NewServer(http.HandlerFunc(hello))
		t.Cleanup(plain.Close)
		plainPort := plain.Listener.Addr().(*net.TCPAddr).Port //nolint:errcheck // a TCP listener
		list := []bottle.AllowEntry{
			{Host: "good.example.com", Ports: []int{good, plainPort}},
			{Host: "rebound.example.com", Ports: []int{80, 443}},
		}
		g := startGate(t, l, passing, map[string]string{"good.example.com": "127.0.0.1", "rebound.example.com": "10.0.0.1"}, list...)

		pass := bottle.Route{Host: "good.example.com", Ports: []int{good}, TLS: bottle.Passthrough}
		w.setRoutes([]bottle.Route{
			{Host: "good.example.com", Ports: []int{good, plainPort}},
			whole("rebound.example.com"), whole("unlisted.example.com"),
		})
		for _, tc := range []struct {
			url, layer, text string
			status           int
		}{
			{"https://good.example.com:" + strconv.Itoa(good) + "/", "", "hello from", 200},
			{"http://good.example.com:" + strconv.Itoa(plainPort) + "/", "", "hello from", 200},
			{"https://unlisted.example.com/", "pipelock", "unlisted.example.com", 403},
			{"http://unlisted.example.com/", "pipelock", "unlisted.example.com", 403},
			{"https://rebound.example.com/", "pipelock", "private", 403},
			{"http://rebound.example.com/", "pipelock", "private", 403},
		} {
			a := w.get(tc.url)
			if a.status != tc.status || a.header.Get("X-Bottle-Layer") != tc.layer || !strings.Contains(a.body, tc.text) {
				t.Errorf("%s: %d %q %s", tc.url, a.status, a.header.Get("X-Bottle-Layer"), a.body)
			}
		}
		w.setRoutes([]bottle.Route{pass, {Host: "unlisted.example.com", TLS: bottle.Passthrough}})
		w.roots.AddCert(w.ca.cert)
		if a := w.get("https://good.example.com:" + strconv.Itoa(good) + "/"); a.status != 200 {
			t.Errorf("passthrough: %+v", a)
		}
		if a := w.get("https://unlisted.example.com/"); a.status != 403 || a.header.Get("X-Bottle-Layer") != "pipelock" {
			t.Errorf("passthrough, unlisted: %+v", a)
		}
		// Of both kinds of tunnel, and only if it could.
		if passed := g.allow(list...)["passed"]; (passed >= 2) != (passing != nil) {
			t.Errorf("%d connections were passed", passed)
		}
	})
}
