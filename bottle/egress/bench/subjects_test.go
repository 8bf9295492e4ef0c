package bench

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"bottle/bottle"
	"bottle/bottle/egress"
	"bottle/bottle/pipelock"
)

const (
	proxySecret = "secret-of-the-proxy"
	gateSecret  = "secret-of-the-gate"
)

// otherRoutes are those that nobody asks for.
const otherRoutes = 998

// A subject is what is measured beside direct.
type subject struct {
	name string
	// start starts it and returns the way through it. It skips what is not installed.
	start func(*testing.B, *world) *path
}

func subjects() []subject {
	return append([]subject{
		{"egress/passthrough", func(b *testing.B, w *world) *path { return ours(b, w, passedHost, false) }},
		{"egress/intercept", func(b *testing.B, w *world) *path { return ours(b, w, interceptedHost, false) }},
		{"egress+gate/passthrough", func(b *testing.B, w *world) *path { return ours(b, w, passedHost, true) }},
		{"egress+gate/intercept", func(b *testing.B, w *world) *path { return ours(b, w, interceptedHost, true) }},
	}, others()...)
}

// jobs are what this program can be.
func jobs() map[string]func(job, net.Listener) (func(context.Context) error, error) {
	return map[string]func(job, net.Listener) (func(context.Context) error, error){
		"egress": egressJob, "gate": gateJob, "goproxy": goproxyJob,
	}
}

// ours is egress, alone or with the gate.
func ours(b *testing.B, w *world, host string, gate bool) *path {
	p := &path{host: host, port: w.port, auth: bottle.ProxyAuthorization(proxySecret)}
	hop := w.hop
	var ends [2]*os.File // as in a bundle
	if gate {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			b.Fatal(err)
		}
		for i, name := range []string{"pass", "passed"} {
			ends[i] = os.NewFile(uintptr(fds[i]), name)
			defer ends[i].Close() // the processes have it by then
		}
		addr, pid := job{Kind: "gate", Upstream: w.port, end: ends[0]}.start(b)
		hop, p.pids = addr, append(p.pids, pid)
	}
	dir := b.TempDir()
	addr, pid := job{Kind: "egress", Dir: dir, Hop: hop, Upstream: w.port, UpstreamCA: w.caPEM, end: ends[1]}.start(b)
	p.proxy, p.pids = addr, append(p.pids, pid)
	if p.roots = w.roots; host == interceptedHost {
		p.roots = pool(b, filepath.Join(dir, "ca.pem"))
	}
	return p
}

func pool(b *testing.B, file string) *x509.CertPool {
	pem, err := os.ReadFile(file)
	p := x509.NewCertPool()
	if err != nil || !p.AppendCertsFromPEM(pem) {
		b.Fatal("no certificate in ", file, ": ", err)
	}
	return p
}

func egressJob(j job, l net.Listener) (func(context.Context) error, error) {
	file := func(name string) string { return filepath.Join(j.Dir, name) }
	routes := []bottle.Route{
		{Host: interceptedHost, Ports: []int{j.Upstream}, Matches: []bottle.Match{{Path: &bottle.PathMatch{Type: bottle.PathPrefix, Value: "/v1"}}}},
		{Host: passedHost, Ports: []int{j.Upstream}, TLS: bottle.Passthrough},
	}
	for i := range otherRoutes {
		routes = append(routes, bottle.Route{Host: bottle.Host(fmt.Sprintf("host-%d.example.org", i))})
	}
	doc, err := bottle.NewRoutes(routes)
	if err != nil {
		return nil, err
	}
	text, _, err := doc.Bytes()
	if err != nil {
		return nil, err
	}
	if err := bottle.WriteFile(file("routes.yaml"), text, 0o600); err != nil {
		return nil, err
	}
	if err := bottle.WriteStatus(file("hop.json"), bottle.Hop{Schema: bottle.Schema, Pipelock: j.Hop}); err != nil {
		return nil, err
	}
	if err := egress.EnsureCA(file("ca.pem"), file("ca-key.pem"), "bench"); err != nil {
		return nil, err
	}
	upstreamCA, err := os.ReadFile(j.UpstreamCA)
	if err != nil {
		return nil, err
	}
	keys, err := net.ListenUnix("unix", &net.UnixAddr{Name: file("keys.sock"), Net: "unix"})
	if err != nil {
		return nil, err
	}
	access, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	passed, err := j.inherited()
	if err != nil {
		return nil, err
	}
	egress.CollectLess() // now, not after a second: the measurement begins
	s, err := egress.New(egress.Config{
		Routes: file("routes.yaml"), SpentPath: file("spent.json"), CACert: file("ca.pem"), CAKey: file("ca-key.pem"),
		Report: func(bottle.DaemonStatus) error { return nil }, Listener: l, KeyListener: keys, Name: "bench",
		Secret: proxySecret, HopFile: file("hop.json"), GateSecret: gateSecret, Passed: passed, UpstreamCA: upstreamCA, AccessLog: access,
		Logger: slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		return nil, err
	}
	return s.Run, nil
}

func gateJob(j job, l net.Listener) (func(context.Context) error, error) {
	doc, err := pipelock.New([]bottle.AllowEntry{
		{Host: interceptedHost, Ports: []int{j.Upstream}},
		{Host: passedHost, Ports: []int{j.Upstream}},
	})
	if err != nil {
		return nil, err
	}
	text, _, err := doc.Bytes()
	if err != nil {
		return nil, err
	}
	config := filepath.Join(j.Dir, "pipelock.yaml")
	if err := bottle.WriteFile(config, text, 0o600); err != nil {
		return nil, err
	}
	pass, err := j.inherited()
	if err != nil {
		return nil, err
	}
	g, err := pipelock.NewGate(pipelock.GateConfig{
		Config: config, Listener: l, Secret: gateSecret, Pass: pass,
		Resolve:    map[string]string{interceptedHost: "127.0.0.1", passedHost: "127.0.0.1"},
		AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		Logger:     slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		return nil, err
	}
	return g.Run, nil
}
