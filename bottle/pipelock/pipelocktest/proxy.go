package pipelocktest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const version = "2.3.0-standin"

// maxFetched bounds the body that /fetch returns.
const maxFetched = 1 << 20

// A proxy judges each request by the settings of that moment, and an open tunnel never again.
type proxy struct {
	settings atomic.Pointer[settings]
	killed   atomic.Bool // the kill switch, which SIGUSR1 turns
	tunnels  sync.WaitGroup
	resolve  map[string]string
	started  time.Time
	mux      *http.ServeMux
	upstream *http.Transport
	forward  *httputil.ReverseProxy
}

func newProxy(s *settings, k knobs) *proxy {
	p := &proxy{resolve: k.resolve, started: time.Now(), mux: http.NewServeMux()}
	p.settings.Store(s)
	p.mux.HandleFunc("/health", p.health)
	p.mux.HandleFunc("/fetch", p.fetch)
	p.upstream = &http.Transport{DisableCompression: true, DialContext: p.dial}
	p.forward = &httputil.ReverseProxy{
		Transport: p.upstream, FlushInterval: -1,
		Rewrite: func(*httputil.ProxyRequest) {},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) {
			http.Error(w, "forward proxy fetch failed", http.StatusBadGateway)
		},
	}
	return p
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	on := p.settings.Load().ForwardProxy.Enabled
	switch {
	case p.killed.Load() && r.URL.Path != "/health":
		answer(w, http.StatusServiceUnavailable, map[string]any{"error": "kill_switch_active", "message": "Emergency deny-all active"})
	case r.Method == http.MethodConnect && !on:
		http.Error(w, "CONNECT not supported", http.StatusMethodNotAllowed)
	case r.Method == http.MethodConnect:
		p.connect(w, r)
	case !r.URL.IsAbs():
		p.mux.ServeHTTP(w, r)
	case !on:
		http.Error(w, "forward proxy not enabled", http.StatusMethodNotAllowed)
	default:
		if why := p.scan(r.Context(), r.URL.Hostname()); why != "" {
			blocked(r, r.URL.Host, why)
			http.Error(w, "blocked: "+why, http.StatusForbidden)
			return
		}
		p.forward.ServeHTTP(w, r)
	}
}

func (p *proxy) connect(w http.ResponseWriter, r *http.Request) {
	target := r.Host
	if _, _, err := net.SplitHostPort(target); err != nil {
		target = net.JoinHostPort(strings.Trim(target, "[]"), "443")
	}
	host, _, _ := net.SplitHostPort(target)
	if why := p.scan(r.Context(), host); why != "" {
		blocked(r, target, why)
		http.Error(w, "CONNECT blocked: "+why, http.StatusForbidden)
		return
	}
	up, err := p.dial(r.Context(), "tcp", target)
	if err != nil {
		http.Error(w, "tunnel dial failed", http.StatusBadGateway)
		return
	}
	defer up.Close()
	p.tunnels.Add(1) // before the server forgets the connection, which it waits for too
	defer p.tunnels.Done()
	client, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, "hijack not supported", http.StatusInternalServerError)
		return
	}
	defer client.Close()
	emit(line{Level: "info", Event: "tunnel_open", Target: target, Message: "tunnel opened"})
	_, _ = io.WriteString(client, "HTTP/1.1 200 Connection Established\r\n\r\n")
	var both sync.WaitGroup
	both.Go(func() { pump(up, buf.Reader) }) // what came with the request's header is in buf
	both.Go(func() { pump(client, up) })
	both.Wait()
}

// pump copies until the source ends, and passes that on.
func pump(dst net.Conn, src io.Reader) {
	_, _ = io.Copy(dst, src)
	if c, ok := dst.(*net.TCPConn); ok {
		_ = c.CloseWrite()
	}
}

func blocked(r *http.Request, target, why string) {
	emit(line{Level: "warn", Event: "blocked", Method: r.Method, Target: target, Reason: why, Message: "request blocked"})
}

// scan says why a host is not to be reached, or "".
func (p *proxy) scan(ctx context.Context, host string) string {
	s := p.settings.Load()
	host = strings.ToLower(host)
	if s.Mode == strict && !matchesAny(host, s.Allowlist) {
		return "domain not in allowlist: " + host
	}
	addrs, err := p.lookup(ctx, host)
	if err != nil {
		return fmt.Sprintf("SSRF check failed: DNS resolution error for %s: %v", host, err)
	}
	if matchesAny(host, s.Trusted) {
		return ""
	}
	for _, a := range addrs {
		if internal(a) && !slices.ContainsFunc(s.open, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return fmt.Sprintf("SSRF blocked: %s resolves to internal IP %s", host, a)
		}
	}
	return ""
}

func internal(a netip.Addr) bool {
	return a.IsLoopback() || a.IsPrivate() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified() ||
		netip.MustParsePrefix("100.64.0.0/10").Contains(a)
}

func (p *proxy) lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	if a, ok := p.resolve[host]; ok {
		host = a
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	return addrs, err
}

func (p *proxy) dial(ctx context.Context, network, target string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(target)
	if err != nil {
		return nil, err
	}
	addrs, err := p.lookup(ctx, strings.ToLower(host))
	if err != nil {
		return nil, err
	}
	return (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, network, net.JoinHostPort(addrs[0].String(), port))
}

func (p *proxy) health(w http.ResponseWriter, _ *http.Request) {
	s := p.settings.Load()
	answer(w, http.StatusOK, map[string]any{
		"status": "healthy", "version": version, "mode": s.Mode, "uptime_seconds": time.Since(p.started).Seconds(),
		"forward_proxy_enabled": s.ForwardProxy.Enabled, "tls_interception_enabled": s.TLS.Enabled, "kill_switch_active": p.killed.Load(),
	})
}

// fetch is the real one's other way out, open even where forward_proxy is off.
func (p *proxy) fetch(w http.ResponseWriter, r *http.Request) {
	target := r.URL.Query().Get("url")
	refuse := func(why string) {
		answer(w, http.StatusForbidden, map[string]any{"url": target, "blocked": true, "block_reason": why})
	}
	u, err := url.Parse(target)
	if err != nil {
		refuse("invalid URL")
		return
	}
	if why := p.scan(r.Context(), u.Hostname()); why != "" {
		refuse(why)
		return
	}
	req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, target, nil) //nolint:gosec // G704: a proxy's job; scan has judged the host
	if err != nil {
		refuse("invalid URL")
		return
	}
	res, err := p.upstream.RoundTrip(req)
	if err != nil {
		answer(w, http.StatusBadGateway, map[string]any{"url": target, "blocked": false, "error": "fetch failed"})
		return
	}
	defer res.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(res.Body, maxFetched))
	answer(w, http.StatusOK, map[string]any{"url": target, "status_code": res.StatusCode, "content": string(body), "blocked": false})
}

func answer(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v)
}
