package bench

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/elazarl/goproxy"

	"bottle/bottle"
)

// others are proxies that people use for the like. Those that are not installed are skipped.
func others() []subject {
	return []subject{
		{"goproxy/passthrough", func(b *testing.B, w *world) *path { return goproxyPath(b, w, job{}) }},
		{"goproxy+gate/passthrough", goproxyGate},
		{"goproxy/intercept", func(b *testing.B, w *world) *path { return goproxyPath(b, w, job{Intercept: true}) }},
		{"goproxy/intercept-ecdsa-cached", func(b *testing.B, w *world) *path { return goproxyPath(b, w, job{Intercept: true, Cache: true}) }},
		{"mitmproxy/passthrough", func(b *testing.B, w *world) *path { return mitmproxy(b, w, false) }},
		{"mitmproxy/intercept", func(b *testing.B, w *world) *path { return mitmproxy(b, w, true) }},
		{"squid/passthrough", squid},
		{"tinyproxy/passthrough", tinyproxy},
	}
}

// through is the way to the upstream by an address that the proxy resolves itself.
func (w *world) through(proxy string, pid int) *path {
	return &path{proxy: proxy, host: localHost, port: w.port, roots: w.roots, pids: []int{pid}}
}

func goproxyPath(b *testing.B, w *world, j job) *path {
	j.Kind, j.Dir, j.UpstreamCA = "goproxy", b.TempDir(), w.caPEM
	addr, pid := j.start(b)
	p := w.through(addr, pid)
	if j.Intercept {
		p.roots = pool(b, filepath.Join(j.Dir, "ca.pem"))
	}
	return p
}

// goproxyGate is what egress+gate is, with goproxy in the place of egress.
func goproxyGate(b *testing.B, w *world) *path {
	gate, pid := job{Kind: "gate", Upstream: w.port}.start(b)
	p := goproxyPath(b, w, job{Hop: gate})
	p.host, p.pids = passedHost, append(p.pids, pid)
	return p
}

// goproxyJob is goproxy as its examples use it. With Cache it has what its documentation
// advises, an ECDSA CA and a cache of leaves, and more than net/http's two kept connections.
func goproxyJob(j job, l net.Listener) (func(context.Context) error, error) {
	p := goproxy.NewProxyHttpServer()
	p.Logger = quiet{}
	upstreamCA, err := os.ReadFile(j.UpstreamCA)
	if err != nil {
		return nil, err
	}
	p.Tr.TLSClientConfig = &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
	if !p.Tr.TLSClientConfig.RootCAs.AppendCertsFromPEM(upstreamCA) {
		return nil, errors.New("no certificate in " + j.UpstreamCA)
	}
	if j.Hop != "" {
		p.ConnectDial = p.NewConnectDialToProxyWithHandler("http://"+j.Hop, func(r *http.Request) {
			r.Header.Set("Proxy-Authorization", bottle.ProxyAuthorization(gateSecret))
		})
	}
	if j.Intercept {
		ca := goproxy.GoproxyCa
		if j.Cache {
			if ca, err = ecdsaCA(); err != nil {
				return nil, err
			}
			p.CertStore = new(leafStore)
			p.Tr.MaxIdleConnsPerHost = 64
		}
		block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Certificate[0]})
		if err := os.WriteFile(filepath.Join(j.Dir, "ca.pem"), block, 0o600); err != nil {
			return nil, err
		}
		mitm := &goproxy.ConnectAction{Action: goproxy.ConnectMitm, TLSConfig: goproxy.TLSConfigFromCA(&ca)}
		p.OnRequest().HandleConnect(goproxy.FuncHttpsHandler(func(host string, _ *goproxy.ProxyCtx) (*goproxy.ConnectAction, string) {
			return mitm, host
		}))
	}
	return func(ctx context.Context) error {
		s := &http.Server{Handler: p, ReadHeaderTimeout: stuck}
		stop := context.AfterFunc(ctx, func() { _ = s.Close() })
		defer stop()
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	}, nil
}

// quiet is a [goproxy.Logger].
type quiet struct{}

// Printf implements [goproxy.Logger].
func (quiet) Printf(string, ...any) {}

func ecdsaCA() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "goproxy"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, err
}

// A leafStore is the cache that goproxy's documentation asks for.
type leafStore struct{ leaves sync.Map }

// Fetch implements [goproxy.CertStorage].
func (s *leafStore) Fetch(host string, gen func() (*tls.Certificate, error)) (*tls.Certificate, error) {
	if c, ok := s.leaves.Load(host); ok {
		return c.(*tls.Certificate), nil //nolint:errcheck // it holds nothing else
	}
	c, err := gen()
	if err == nil {
		s.leaves.Store(host, c)
	}
	return c, err
}

// program finds one that is installed, in sbin too, or skips.
func program(b *testing.B, name string) string {
	for _, p := range []string{name, "/usr/sbin/" + name} {
		if found, err := exec.LookPath(p); err == nil {
			return found
		}
	}
	b.Skip(name + " is not installed")
	return ""
}

func mitmproxy(b *testing.B, w *world, intercept bool) *path {
	addr, port := freeAddr(b)
	conf := b.TempDir()
	args := []string{
		"--listen-host", "127.0.0.1", "--listen-port", port, "--quiet",
		"--set", "confdir=" + conf, "--set", "ssl_verify_upstream_trusted_ca=" + w.caPEM, "--set", "connection_strategy=lazy",
	}
	if !intercept {
		args = append(args, "--ignore-hosts", ".*")
	}
	cmd := exec.CommandContext(context.Background(), program(b, "mitmdump"), args...)
	cmd.Stderr = os.Stderr
	run(b, cmd)
	listening(b, addr)
	p := w.through(addr, cmd.Process.Pid)
	if intercept {
		p.roots = pool(b, filepath.Join(conf, "mitmproxy-ca-cert.pem"))
	}
	return p
}

func squid(b *testing.B, w *world) *path {
	addr, port := freeAddr(b)
	dir := b.TempDir()
	conf := filepath.Join(dir, "squid.conf")
	lines := []string{
		"http_port 127.0.0.1:" + port, "acl tunnel port " + strconv.Itoa(w.port), "http_access allow tunnel", "http_access deny all",
		"cache deny all", "access_log none", "cache_log /dev/null", "pid_filename none", "shutdown_lifetime 1 seconds", "pinger_enable off",
		"coredump_dir " + dir, "netdb_filename none", "max_filedescriptors 4096",
	}
	if err := os.WriteFile(conf, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		b.Fatal(err)
	}
	cmd := exec.CommandContext(context.Background(), program(b, "squid"), "-N", "-f", conf)
	run(b, cmd)
	listening(b, addr)
	return w.through(addr, cmd.Process.Pid)
}

func tinyproxy(b *testing.B, w *world) *path {
	addr, port := freeAddr(b)
	conf := filepath.Join(b.TempDir(), "tinyproxy.conf")
	text := fmt.Sprintf("Port %s\nListen 127.0.0.1\nTimeout 600\nMaxClients 200\nAllow 127.0.0.1\nLogLevel Critical\nLogFile \"/dev/null\"\nConnectPort %d\n", port, w.port)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	cmd := exec.CommandContext(context.Background(), program(b, "tinyproxy"), "-d", "-c", conf)
	run(b, cmd)
	listening(b, addr)
	return w.through(addr, cmd.Process.Pid)
}
