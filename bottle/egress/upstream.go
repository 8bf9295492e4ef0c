package egress

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"bottle/bottle"
)

const (
	maxResponseHead  = 256 << 10   // bytes
	trustAfter       = time.Second // from the start, when nothing else waits
	maxIdlePerHost   = 64
	maxIdleUpstreams = 512
	maxSessions      = 512 // of TLS that are kept to be resumed, each by the name of its host
)

// upstreams carries requests out, by way of pipelock.
type upstreams struct {
	hop *hop
	// roots are those that upstreams are verified against, loaded once. It takes tens of
	// milliseconds, which the start of a bundle need not wait for.
	roots    func() (*x509.CertPool, error)
	response time.Duration // see [responseTimeout]
	current  atomic.Pointer[transports]
}

// newUpstreams takes the operator's own roots, in PEM form.
func newUpstreams(h *hop, extra []byte, response time.Duration) (*upstreams, error) {
	if len(extra) > 0 && !x509.NewCertPool().AppendCertsFromPEM(extra) {
		return nil, fmt.Errorf("upstream_ca: no certificate in PEM form: %w", bottle.ErrInvalid)
	}
	u := &upstreams{hop: h, response: response, roots: sync.OnceValues(func() (*x509.CertPool, error) { return rootPool(extra) })}
	u.current.Store(newTransports(h, u.roots, response))
	return u, nil
}

// use sends what comes from now on to the pipelock at addr, on connections of its own. What
// is under way by the old one goes on there; its connections are closed as they come free,
// so that it can drain. One caller at a time.
func (u *upstreams) use(addr string) {
	u.hop.addr.Store(&addr) // first: no new transport ever dials the old address
	u.current.Swap(newTransports(u.hop, u.roots, u.response)).retire()
}

// RoundTrip implements [http.RoundTripper].
func (u *upstreams) RoundTrip(r *http.Request) (*http.Response, error) {
	ex, ok := r.Context().Value(exchangeKey{}).(*exchange)
	if !ok {
		return nil, errors.New("a request that nobody judged")
	}
	return u.current.Load().roundTrip(ex, r)
}

// closeIdle closes the connections that no request uses.
func (u *upstreams) closeIdle() { u.current.Load().closeIdle() }

// close does the same at the end, and waits for what was begun.
func (u *upstreams) close() {
	t := u.current.Load()
	t.closeIdle()
	t.dials.Wait()
}

// transports are the connections that go through one pipelock. One is kept for the host and
// port that it was made for and serves no other.
type transports struct {
	hop *hop
	// h2 carries what came by HTTP/2, by that if the upstream can and else by HTTP/1.1; https
	// and http what came by HTTP/1.1, by that.
	h2, https, http *http.Transport
	// The same without connections to reuse: net/http sends a request again if a kept one
	// turns out dead, and what a grant for one use lets through must be sent once.
	httpsOnce, httpOnce *http.Transport
	tls                 *tls.Config // towards upstreams; its roots are there after trust
	trust               func() error
	spoken              spoken
	firsts              firsts
	dials               sync.WaitGroup // those of firsts
	retired             atomic.Bool
}

func newTransports(h *hop, roots func() (*x509.CertPool, error), response time.Duration) *transports {
	base := func() *http.Transport {
		protocols := new(http.Protocols)
		protocols.SetHTTP1(true)
		return &http.Transport{
			Protocols: protocols, DisableCompression: true,
			ResponseHeaderTimeout: response, ExpectContinueTimeout: time.Second,
			MaxResponseHeaderBytes: maxResponseHead, IdleConnTimeout: idleTimeout,
			MaxIdleConns: maxIdleUpstreams, MaxIdleConnsPerHost: maxIdlePerHost,
			WriteBufferSize: 16 << 10, ReadBufferSize: 16 << 10,
		}
	}
	t := &transports{hop: h, h2: base(), https: base(), http: base(), tls: &tls.Config{MinVersion: tls.VersionTLS12, ClientSessionCache: tls.NewLRUClientSessionCache(maxSessions)}}
	t.https.DialTLSContext = t.dialer(protoH1)
	t.h2.DialTLSContext = t.dialer(protoH2, protoH1)
	t.h2.Protocols.SetHTTP2(true)
	t.h2.HTTP2 = upstreamHTTP2()
	t.http.Proxy = func(r *http.Request) (*url.URL, error) {
		// The transport keeps connections to a plain proxy by the proxy's URL alone. The
		// fragment, which goes nowhere, makes that one for each host. The hop knows its address.
		return &url.URL{Scheme: "http", User: bottle.ProxyUserinfo(h.secret), Host: bottle.DaemonPipelock, Fragment: r.URL.Host}, nil
	}
	t.http.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return h.dial(ctx) }
	t.httpsOnce, t.httpOnce = t.https.Clone(), t.http.Clone()
	t.httpsOnce.DisableKeepAlives, t.httpOnce.DisableKeepAlives = true, true
	t.trust = sync.OnceValue(func() error {
		pool, err := roots()
		if err != nil {
			return err
		}
		t.tls.RootCAs = pool
		return nil
	})
	return t
}

// dialer connects for a transport: with the tunnel's own first connection if it still waits.
func (t *transports) dialer(protos ...string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, addr string) (net.Conn, error) {
		to, err := parseAuthority(addr, 0)
		if err != nil {
			return nil, err
		}
		if ex, ok := ctx.Value(exchangeKey{}).(*exchange); ok && ex.first != nil && ex.first.owner == t && ex.to() == to {
			switch conn, ok, err := ex.first.take(ctx, slices.Contains(protos, protoH2)); {
			case err != nil:
				return nil, err
			case ok:
				return conn, nil
			}
		}
		conn, err := t.dialTLS(ctx, to, protos...)
		if err != nil {
			return nil, err
		}
		return conn, nil
	}
}

func (t *transports) roundTrip(ex *exchange, r *http.Request) (*http.Response, error) {
	if ex.h2 && ex.query.TLS {
		return t.roundTripH2(ex, r)
	}
	res, err := t.of(ex).RoundTrip(r)
	if t.retired.Load() {
		// Whoever asks a [http.Transport] for a connection makes it keep idle ones again.
		// By now this request has got its own.
		t.closeIdle()
	}
	return res, err
}

func (t *transports) of(ex *exchange) *http.Transport {
	switch {
	case ex.query.TLS && ex.single:
		return t.httpsOnce
	case ex.query.TLS:
		return t.https
	case ex.single:
		return t.httpOnce
	}
	return t.http
}

// retire closes the connections that no request uses, and each other one after its request.
// A request that comes all the same is carried, and its connection closed.
func (t *transports) retire() {
	t.retired.Store(true) // first: a request that does not see it has its connection closed here
	t.closeIdle()
}

func (t *transports) closeIdle() {
	t.firsts.dropAll()
	for _, t := range []*http.Transport{t.h2, t.https, t.http, t.httpsOnce, t.httpOnce} {
		t.CloseIdleConnections()
	}
}

// rootPool is the system's roots and the operator's own.
func rootPool(extra []byte) (*x509.CertPool, error) {
	pool, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("system roots: %w", err)
	}
	pool.AppendCertsFromPEM(extra) // newUpstreams has checked them
	return pool, nil
}
