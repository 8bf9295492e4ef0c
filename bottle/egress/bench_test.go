package egress_test

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"testing"

	"bottle/bottle"
)

// BenchmarkKept is a request on a kept connection: straight to the upstream, and through
// egress and a gate, intercepted and passed through. Compare them within one run.
func BenchmarkKept(b *testing.B) {
	w := newWorld(b, []bottle.Route{whole("api.example.com"), {Host: "pass.example.com", TLS: bottle.Passthrough}})
	body := make([]byte, 1024)
	h := func(rw http.ResponseWriter, _ *http.Request) { _, _ = rw.Write(body) }
	s := w.upstream("api.example.com", h)
	w.upstream("pass.example.com", h)
	w.roots.AddCert(w.ca.cert)
	roots := x509.NewCertPool()
	roots.AddCert(w.ca.cert)
	direct := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "api.example.com"}, MaxIdleConnsPerHost: 64}
	b.Cleanup(direct.CloseIdleConnections)
	for _, tc := range []struct {
		name, url string
		client    *http.Client
	}{
		{"direct", s.URL, &http.Client{Transport: direct}},
		{"intercept", "https://api.example.com/", w.agent()},
		{"passthrough", "https://pass.example.com/", w.agent()},
	} {
		b.Run(tc.name, func(b *testing.B) {
			if t, ok := tc.client.Transport.(*http.Transport); ok {
				t.MaxIdleConnsPerHost = 64
			}
			b.SetParallelism(4) // 8 clients on two cores
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					fetch(b, tc.client, tc.url)
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "req/s")
		})
	}
}

// BenchmarkNew is a request on a new connection of the agent's, one client.
func BenchmarkNew(b *testing.B) {
	w := newWorld(b, []bottle.Route{whole("api.example.com"), {Host: "pass.example.com", TLS: bottle.Passthrough}})
	s := w.upstream("api.example.com", hello)
	w.upstream("pass.example.com", hello)
	w.roots.AddCert(w.ca.cert)
	direct := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: w.roots, ServerName: "api.example.com"}}
	for _, tc := range []struct {
		name, url string
		client    *http.Client
	}{
		{"direct", s.URL, &http.Client{Transport: direct}},
		{"intercept", "https://api.example.com/", w.agent()},
		{"passthrough", "https://pass.example.com/", w.agent()},
	} {
		b.Run(tc.name, func(b *testing.B) {
			if t, ok := tc.client.Transport.(*http.Transport); ok {
				t.DisableKeepAlives = true
			}
			for b.Loop() {
				fetch(b, tc.client, tc.url)
			}
		})
	}
}

func fetch(b *testing.B, c *http.Client, u string) {
	req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, u, nil)
	if err != nil {
		b.Error(err)
		return
	}
	res, err := c.Do(req)
	if err != nil {
		b.Error(err)
		return
	}
	_, _ = io.Copy(io.Discard, res.Body)
	_ = res.Body.Close()
	if res.StatusCode != http.StatusOK {
		b.Errorf("%s: %s", u, res.Status)
	}
}
