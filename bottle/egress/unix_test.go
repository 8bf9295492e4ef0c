package egress_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"bottle/bottle"
	"bottle/bottle/egress"
	"bottle/bottle/proxysock"
)

// withUnix gives the egress a second socket, as init does. Its path is told by the result.
func withUnix(t *testing.T) (option, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "p.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return func(c *egress.Config) { c.UnixListener = l }, path
}

func dialUnix(ctx context.Context, path string) (*proxysock.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.New("not a unix socket")
	}
	return proxysock.New(u), nil
}

// By the unix socket the proxy is the same one: same rules, same secret.
func TestUnixSocket(t *testing.T) {
	unix, path := withUnix(t)
	w := newWorld(t, []bottle.Route{whole("a.example.com")}, unix, func(c *egress.Config) { c.Secret = "s3cret" })
	w.upstream("a.example.com", func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, "hello") })
	client := w.agent()
	transport, ok := client.Transport.(*http.Transport)
	if !ok {
		t.Fatal("transport")
	}
	transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return dialUnix(ctx, path) }
	for target, want := range map[string]int{"https://a.example.com/": 200, "https://b.example.com/": 403} {
		if got := w.do(client, http.MethodGet, target, nil); got.status != want {
			t.Errorf("%s: %d %s; want %d", target, got.status, got.body, want)
		}
	}
	transport.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: w.addr})
	if got := w.do(client, http.MethodGet, "http://a.example.com/", nil); got.status != http.StatusProxyAuthRequired {
		t.Errorf("without the secret: %d", got.status)
	}
}

// A stream that ends is whole; one that a revocation cuts is not, and shows it.
func TestUnixSocketTellsACutFromAnEnd(t *testing.T) {
	unix, path := withUnix(t)
	w := newWorld(t, []bottle.Route{whole("a.example.com")}, unix)
	flushed := make(chan struct{}, 1)
	w.plainUpstream("a.example.com", func(rw http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(rw, "start")
		_ = http.NewResponseController(rw).Flush()
		if r.URL.Path == "/endless" {
			flushed <- struct{}{}
			<-r.Context().Done()
		}
	})
	get := func(path string, c net.Conn) *bufio.Reader {
		t.Helper()
		// Of HTTP/1.0 the end of the connection is the end of the body.
		if _, err := io.WriteString(c, "GET http://a.example.com"+path+" HTTP/1.0\r\nHost: a.example.com\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		return bufio.NewReader(c)
	}
	for _, tt := range []struct {
		path string
		want error
	}{{"/", nil}, {"/endless", io.ErrUnexpectedEOF}} {
		c, err := dialUnix(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		br := get(tt.path, c)
		if tt.path == "/endless" {
			<-flushed
			for line := ""; line != "\r\n"; {
				if line, err = br.ReadString('\n'); err != nil {
					t.Fatal(err)
				}
			}
			w.setRoutes([]bottle.Route{whole("b.example.com")})
		}
		b, err := io.ReadAll(br)
		if !strings.HasSuffix(string(b), "start") || !errors.Is(err, tt.want) {
			t.Errorf("%s: %q, %v; want %v", tt.path, b, err, tt.want)
		}
	}
}

// A spliced tunnel passes on that one side is done, both ways.
func TestUnixSocketSplices(t *testing.T) {
	unix, path := withUnix(t)
	w := newWorld(t, []bottle.Route{{Host: "pass.example.com", TLS: bottle.Passthrough}}, unix)
	roots := x509.NewCertPool()
	roots.AddCert(w.ca.cert)
	w.upstream("pass.example.com", func(rw http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		_, _ = rw.Write(b)
	})
	client := &http.Client{Transport: &http.Transport{
		Proxy:           http.ProxyURL(w.proxy()),
		TLSClientConfig: &tls.Config{RootCAs: roots},
		DialContext:     func(ctx context.Context, _, _ string) (net.Conn, error) { return dialUnix(ctx, path) },
	}}
	defer client.CloseIdleConnections()
	body := strings.Repeat("0123456789abcdef", 64<<10)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://pass.example.com/", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); err != nil || string(b) != body {
		t.Errorf("%d bytes back, %v", len(b), err)
	}
}
