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
	"testing"

	"bottle/bottle"
	"bottle/bottle/egress"
	"bottle/bottle/pipelock"
)

// Both layers as a bundle runs them: what egress allows and the gate does not is refused in
// the gate's name, and a public name that resolves to a private address is not dialled.
func TestWithTheBuiltInGate(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // a test's listener
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, nil, func(c *egress.Config) {
		writeHop(t, c.HopFile, l.Addr().String())
		c.GateSecret = gateSecret
	})
	serve := func(host string) int {
		s := httptest.NewUnstartedServer(http.HandlerFunc(hello))
		s.TLS = &tls.Config{Certificates: []tls.Certificate{w.ca.leaf(t, host)}}
		s.StartTLS()
		t.Cleanup(s.Close)
		return s.Listener.Addr().(*net.TCPAddr).Port //nolint:errcheck // a TCP listener
	}
	good, plain := serve("good.example.com"), httptest.NewServer(http.HandlerFunc(hello))
	t.Cleanup(plain.Close)
	plainPort := plain.Listener.Addr().(*net.TCPAddr).Port //nolint:errcheck // a TCP listener

	doc, err := pipelock.New([]bottle.AllowEntry{
		{Host: "good.example.com", Ports: []int{good, plainPort}},
		{Host: "rebound.example.com", Ports: []int{80, 443}},
	})
	if err != nil {
		t.Fatal(err)
	}
	b, _, err := doc.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "pipelock.yaml")
	if err := bottle.WriteFile(config, b, 0o600); err != nil {
		t.Fatal(err)
	}
	g, err := pipelock.NewGate(pipelock.GateConfig{
		Config: config, Listener: l, Secret: gateSecret, Logger: slog.New(slog.DiscardHandler),
		Resolve:    map[string]string{"good.example.com": "127.0.0.1", "rebound.example.com": "10.0.0.1"},
		AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	defer func() {
		w.stop()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()

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
}
