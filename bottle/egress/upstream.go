package egress

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"syscall"
	"time"

	"bottle/bottle"
)

const (
	upstreamTLSTimeout = 15 * time.Second
	// responseTimeout is how long an upstream may think between the request and the head of
	// its response. Models do think for minutes.
	responseTimeout  = 15 * time.Minute
	maxResponseHead  = 256 << 10   // bytes
	trustAfter       = time.Second // from the start, when nothing else waits
	idleTimeout      = 90 * time.Second
	maxIdlePerHost   = 64
	maxIdleUpstreams = 512
)

// upstreams carries requests out, by way of pipelock. A connection is kept for the host and
// port that it was made for and serves no other.
type upstreams struct {
	https, http *http.Transport
	// The same without connections to reuse: net/http sends a request again if a kept one
	// turns out dead, and what a grant for one use lets through must be sent once.
	httpsOnce, httpOnce *http.Transport
	// trust loads the roots that upstreams are verified against, once. It takes tens of
	// milliseconds, which the start of a bundle need not wait for.
	trust func() error
}

// newUpstreams takes the operator's own roots, in PEM form.
func newUpstreams(h *hop, extra []byte) (*upstreams, error) {
	if len(extra) > 0 && !x509.NewCertPool().AppendCertsFromPEM(extra) {
		return nil, fmt.Errorf("upstream_ca: no certificate in PEM form: %w", bottle.ErrInvalid)
	}
	base := func() *http.Transport {
		protocols := new(http.Protocols)
		protocols.SetHTTP1(true)
		return &http.Transport{
			Protocols: protocols, DisableCompression: true,
			TLSHandshakeTimeout: upstreamTLSTimeout, ResponseHeaderTimeout: responseTimeout, ExpectContinueTimeout: time.Second,
			MaxResponseHeaderBytes: maxResponseHead, IdleConnTimeout: idleTimeout,
			MaxIdleConns: maxIdleUpstreams, MaxIdleConnsPerHost: maxIdlePerHost,
			WriteBufferSize: 16 << 10, ReadBufferSize: 16 << 10,
		}
	}
	u := &upstreams{https: base(), http: base()}
	// The transport sets the server name to the URL's host, which is the canonical one.
	u.https.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: x509.NewCertPool()} // none, before trust
	u.https.DialContext = func(ctx context.Context, _, addr string) (net.Conn, error) {
		to, err := parseAuthority(addr, 0)
		if err != nil {
			return nil, err
		}
		return h.connect(ctx, to)
	}
	u.http.Proxy = func(r *http.Request) (*url.URL, error) {
		// The transport keeps connections to a plain proxy by the proxy's URL alone. The
		// fragment, which goes nowhere, makes that one for each host.
		return &url.URL{Scheme: "http", User: bottle.ProxyUserinfo(h.secret), Host: h.addr, Fragment: r.URL.Host}, nil
	}
	u.http.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return h.dial(ctx) }
	u.httpsOnce, u.httpOnce = u.https.Clone(), u.http.Clone()
	u.httpsOnce.DisableKeepAlives, u.httpOnce.DisableKeepAlives = true, true
	u.trust = sync.OnceValue(func() error {
		roots, err := rootPool(extra)
		if err != nil {
			return err
		}
		u.https.TLSClientConfig.RootCAs, u.httpsOnce.TLSClientConfig.RootCAs = roots, roots
		return nil
	})
	return u, nil
}

// RoundTrip implements [http.RoundTripper].
func (u *upstreams) RoundTrip(r *http.Request) (*http.Response, error) {
	ex, ok := r.Context().Value(exchangeKey{}).(*exchange)
	if !ok {
		return nil, errors.New("a request that nobody judged")
	}
	if ex.query.TLS {
		if err := u.trust(); err != nil {
			return nil, err
		}
	}
	switch {
	case ex.query.TLS && ex.single:
		return u.httpsOnce.RoundTrip(r)
	case ex.query.TLS:
		return u.https.RoundTrip(r)
	case ex.single:
		return u.httpOnce.RoundTrip(r)
	}
	return u.http.RoundTrip(r)
}

// closeIdle closes the connections that no request uses.
func (u *upstreams) closeIdle() {
	for _, t := range []*http.Transport{u.https, u.http, u.httpsOnce, u.httpOnce} {
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

// failed says why an exchange came to nothing, and whose fault it is.
func (ex *exchange) failed(err error) *refusal {
	n := ex.refusal(http.StatusBadGateway, "")
	n.failure, n.layer = true, layerUpstream
	var (
		hop     *hopError
		cert    *tls.CertificateVerificationError
		timeout interface{ Timeout() bool }
	)
	switch {
	case errors.As(err, &hop) && hop.status == http.StatusProxyAuthRequired:
		n.layer = layerPipelock
		n.reason = "pipelock does not know this egress: they were started with different secrets; stop and start the bottle"
	case errors.As(err, &hop) && hop.status >= 500:
		n.reason = "pipelock could not reach " + ex.to().String() + ": " + hop.reason
	case errors.As(err, &hop):
		n.status, n.layer, n.failure = http.StatusForbidden, layerPipelock, false
		n.reason = hop.reason
		n.ask = suggest(ex.query)
	case errors.Is(err, errHopDown):
		n.layer = layerPipelock
		n.reason = "pipelock, by which everything goes out, can't be reached: " + cause(err) + "; it is started anew by itself, so try again"
	case errors.As(err, &cert):
		n.reason = fmt.Sprintf("the certificate of %s is not trusted: %s; a private CA belongs in upstream_ca of the manifest", ex.query.Host, printable(cert.Err.Error(), 300))
	case errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		n.status = http.StatusGatewayTimeout
		n.reason = ex.to().String() + " did not answer in time"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		n.reason = ex.to().String() + " closed the connection without an answer"
	default:
		n.reason = ex.to().String() + ": " + cause(err)
	}
	return n
}

// cause is an error's text without the address of pipelock, which is no business of the agent's.
func cause(err error) string {
	var (
		errno syscall.Errno
		op    *net.OpError
	)
	switch {
	case errors.As(err, &errno):
		return errno.Error()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the connection was closed"
	case errors.As(err, &op):
		return printable(op.Err.Error(), 300)
	}
	return printable(err.Error(), 300)
}
