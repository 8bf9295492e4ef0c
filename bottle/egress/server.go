package egress

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"bottle/bottle"
	"bottle/bottle/fdpass"
	"bottle/bottle/throttle"
)

const (
	// endsTick is how often the clocks are looked at while grants of limited time are in
	// force. It is a tick and not a timer because clocks jump and machines sleep.
	endsTick = 250 * time.Millisecond
	// flushWithin is how long a part of a body of known length may wait for the next, so that a
	// small response goes out in one write with its head. What has no known length, as streams
	// have none, goes on at once: [httputil.ReverseProxy] sees to that.
	flushWithin = 2 * time.Millisecond
)

// A Server is an egress. It is made by [New] and serves once.
type Server struct {
	cfg      Config
	limits   limits
	log      *slog.Logger
	chatter  *slog.Logger // what the agent causes, at a bounded rate
	handover *slog.Logger // what comes by the key socket, likewise
	now      func() time.Time
	instance string
	counts   counts
	told     [counters]uint64 // by the newest report; steer's alone
	over     int              // timed grants of the snapshot that had ended when last swept; steer's alone

	snap    atomic.Pointer[snapshot]
	flows   *registry
	spent   *spentLog
	denials *denials
	access  *accessLog
	keys    *keyring
	leaves  *leaves
	hop     *hop
	up      *upstreams
	proxy   *httputil.ReverseProxy

	crowd     *crowd
	listener  *listener
	inside    *listener // by which a sandbox without a network comes; nil if there is none
	keySocket *net.UnixListener
	tunnels   *queue       // those that speak HTTP/1.1
	tunnels2  *queue       // those that speak HTTP/2
	handlers  roster       // connections and handlers
	streams   atomic.Int64 // of HTTP/2, open now
}

// New reads the CA, the hop, the routes and the spent grants. An error names what is wrong
// with which file; an egress without valid routes does not start. The listeners are the
// caller's until [Server.Run].
func New(cfg Config) (*Server, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	proxy, inside, keys, err := cfg.sockets()
	if err != nil {
		return nil, err
	}
	limits, err := cfg.limits.fill()
	if err != nil {
		return nil, fmt.Errorf("egress: how many descriptors there may be: %w", err)
	}
	crowd := newCrowd(limits.conns)
	hopAddr, err := readHop(cfg.HopFile)
	if err != nil {
		return nil, fmt.Errorf("egress: %w", err)
	}
	var from *passed
	if cfg.Passed != nil {
		if err := fdpass.CheckEnd(cfg.Passed); err != nil {
			return nil, fmt.Errorf("egress: Config.Passed: %w", err)
		}
		from = newPassed(cfg.Passed, cfg.Logger)
	}
	s := &Server{
		cfg: cfg, limits: limits, log: cfg.Logger, now: cfg.Now, instance: uuid.NewString(),
		chatter: slog.New(throttle.New(cfg.Logger.Handler())), handover: slog.New(throttle.New(cfg.Logger.Handler())),
		flows: newRegistry(), keys: newKeyring(cfg.Credentials), hop: newHop(hopAddr, cfg.GateSecret, from),
		crowd: crowd, listener: &listener{proxy, crowd}, keySocket: keys,
	}
	if inside != nil {
		s.inside = &listener{inside, crowd}
	}
	if s.now == nil {
		s.now = time.Now
	}
	authority, err := loadCA(cfg.CACert, cfg.CAKey)
	if err != nil {
		return nil, fmt.Errorf("egress: %w", err)
	}
	s.access = newAccessLog(cfg.AccessLog, s.now, s.keys.hide, &s.counts[countDropped])
	s.leaves, s.denials = newLeaves(authority, s.now), newDenials(s.now)
	if s.up, err = newUpstreams(s.hop, cfg.UpstreamCA, limits.response); err != nil {
		return nil, fmt.Errorf("egress: %w", err)
	}
	if s.spent, err = openSpent(cfg.SpentPath, s.now); err != nil {
		return nil, fmt.Errorf("egress: %w", err)
	}
	snap, _, err := loadSnapshot(cfg.Routes, cfg.Credentials, s.now())
	if err != nil {
		return nil, fmt.Errorf("egress: %w", err)
	}
	s.snap.Store(snap)
	s.over = s.ended(snap)
	s.proxy = &httputil.ReverseProxy{
		Rewrite: s.rewrite, Transport: s.up, ModifyResponse: s.modify, ErrorHandler: s.fail,
		FlushInterval: flushWithin,
		BufferPool:    new(buffers),
		ErrorLog:      slog.NewLogLogger(s.chatter.Handler(), slog.LevelDebug),
	}
	return s, nil
}

// Run serves until ctx ends, then closes the listeners and every connection, and waits for
// everything that it started. What the sockets have in their backlogs stays there, for whoever
// else holds them. It returns nil for an end by ctx.
func (s *Server) Run(ctx context.Context) error {
	s.keySocket.SetUnlinkOnClose(false) // the socket outlives this process, and so does the agent's
	s.tunnels, s.tunnels2 = newQueue(s.listener.Addr()), newQueue(s.listener.Addr())

	defer s.access.start()()
	group, ctx := errgroup.WithContext(ctx)
	took := make(chan struct{}, 1)
	outer := s.server(ctx, s.servePlain)
	inner := s.server(ctx, s.serveTunnelled)
	inner2 := s.server(ctx, s.serveTunnelled)
	inner2.Protocols, inner2.HTTP2 = new(http.Protocols), agentHTTP2()
	inner2.Protocols.SetHTTP2(true)
	group.Go(func() error { return served(outer.Serve(&watched{s.listener, s})) })
	if s.inside != nil {
		group.Go(func() error { return served(outer.Serve(&watched{s.inside, s})) })
	}
	group.Go(func() error { return served(inner.Serve(s.tunnels)) })
	group.Go(func() error { return served(inner2.Serve(s.tunnels2)) })
	group.Go(func() error {
		return s.serveKeys(ctx, s.keySocket, func() {
			select {
			case took <- struct{}{}:
			default:
			}
		})
	})
	group.Go(func() error { return s.steer(ctx, took) })
	if s.hop.passed != nil {
		group.Go(func() error { s.hop.passed.receive(); return nil })
	}
	group.Go(func() error {
		select {
		case <-ctx.Done():
		case <-time.After(trustAfter):
			if _, err := s.up.roots(); err != nil {
				s.log.Error("no upstream can be verified", "error", err)
			}
			if s.cfg.Settled != nil {
				s.cfg.Settled()
			}
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		_ = s.keySocket.Close()
		if s.cfg.Passed != nil {
			_ = s.cfg.Passed.Close()
		}
		_ = s.listener.Close()
		if s.inside != nil {
			_ = s.inside.Close()
		}
		s.crowd.closeAll()
		_ = s.tunnels.Close()
		_ = s.tunnels2.Close()
		_ = outer.Close()
		_ = inner.Close()
		_ = inner2.Close()
		return nil
	})
	err := group.Wait()
	s.handlers.wait()
	s.crowd.parted.Wait()
	s.up.close()
	if s.hop.passed != nil {
		s.hop.passed.tied.Wait()
	}
	if err != nil {
		return fmt.Errorf("egress: %w", err)
	}
	return nil
}

// served is what a server's end by our own hand comes to.
func served(err error) error {
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// server is one of the three: for the proxy's port, and for the insides of tunnels in
// HTTP/1.1 and HTTP/2.
func (s *Server) server(ctx context.Context, h http.HandlerFunc) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Server{
		Handler: h, Protocols: protocols, DisableGeneralOptionsHandler: true, // or OPTIONS * is not judged
		ReadHeaderTimeout: s.limits.head, IdleTimeout: keepTimeout, MaxHeaderBytes: maxHead,
		// A response may take for ever, and so may a request's body: no other timeouts.
		BaseContext: func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			switch c := c.(type) {
			case *tunnelConn:
				return context.WithValue(ctx, tunnelKey{}, c.tunnel)
			case *wireConn:
				return context.WithValue(ctx, connKey{}, c.Conn)
			case *tls.Conn:
				if base, ok := c.NetConn().(*tunnelBase); ok {
					return context.WithValue(ctx, tunnelKey{}, base.tunnel)
				}
			}
			return ctx
		},
		ConnState: func(c net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				s.handlers.enter()
			case http.StateHijacked, http.StateClosed: // whose handler has counted itself
				s.handlers.leave()
			case http.StateIdle:
				if c, ok := c.(interface{ idle() }); ok { // a [wireConn]
					c.idle()
				}
			case http.StateActive:
			}
		},
		ErrorLog: slog.NewLogLogger(s.chatter.Handler(), slog.LevelDebug),
	}
}

// watched is the proxy's listener, with [wireConn] around each connection.
type watched struct {
	*listener
	s *Server
}

// Accept implements [net.Listener].
func (l *watched) Accept() (net.Conn, error) {
	c, err := l.listener.Accept()
	if err != nil {
		return nil, err
	}
	return &wireConn{Conn: c, refuse: func(v *violation) []byte { return l.s.violated(v, nil) }}, nil
}

// violated makes the answer to a request that [wireConn] stopped.
func (s *Server) violated(v *violation, t *tunnel) []byte {
	n := &refusal{status: v.status, layer: layerEgress, host: v.target, method: v.method, reason: v.reason, close: true}
	if t == nil && !bottle.ProxyAuthorized(v.authorization, s.cfg.Secret) {
		n = s.stranger(v.method)
		n.status, n.reason = v.status, v.reason
		s.chatter.Info("malformed request of a stranger", "reason", v.reason)
		return n.wire()
	}
	if t != nil {
		n.host, n.port, n.tls, n.path = string(t.to.host), t.to.port, true, pathOnly(v.target)
	} else if a, ok := cutScheme(v.target); ok {
		n.host, n.path = a.authority, pathOnly(a.path)
	}
	s.note(n)
	return n.wire()
}

// steer does what is done one at a time: reloads, the ends of grants, the status.
func (s *Server) steer(ctx context.Context, took <-chan struct{}) error {
	var last verdict
	s.report(last)
	tick := time.NewTicker(endsTick)
	defer tick.Stop()
	counted := time.NewTicker(statusEvery)
	defer counted.Stop()
	for {
		var ticks <-chan time.Time
		if s.snap.Load().timed {
			ticks = tick.C
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.cfg.Reload:
			last = s.reload()
			s.report(last)
		case <-took:
			s.report(last)
		case <-counted.C:
			if s.tally() != s.told {
				s.report(last)
			}
		case <-ticks:
			if n := s.ended(s.snap.Load()); n != s.over {
				s.over = n
				s.cutForbidden("a grant has ended")
				s.report(last)
			}
		}
	}
}

// reload goes over to the hop of now and puts the live routes in force. The hop is first: it
// is the one that is ready for them.
func (s *Server) reload() verdict {
	hop := s.follow()
	return verdict{hop: hop, refused: s.reroute()}
}

// reroute puts the live routes in force, or leaves those that are and says why.
func (s *Server) reroute() *bottle.Refusal {
	snap, claimed, err := loadSnapshot(s.cfg.Routes, s.cfg.Credentials, s.now())
	if err != nil {
		s.log.Error("routes refused; the old ones stay in force", "revision", claimed, "error", err)
		return &bottle.Refusal{Revision: claimed, Error: err.Error(), At: s.now().UTC()}
	}
	old := s.snap.Swap(snap)
	s.over = s.ended(snap) // before the sweep: what ends during it is the next tick's
	if !snap.reaches(old) {
		s.up.closeIdle() // a connection made for a host that is no longer allowed must not wait there
	}
	s.cutForbidden("routes reloaded")
	s.log.Info("routes in force", "revision", snap.revision, "routes", len(snap.routes))
	return nil
}

func (s *Server) cutForbidden(why string) {
	if n := s.flows.sweep(); n > 0 {
		s.counts[countCut].Add(uint64(n))
		s.log.Info("cut what is no longer allowed", "why", why, "flows", n)
	}
}

// buffers are those that bodies are copied through.
type buffers struct{ pool sync.Pool }

const bufferSize = 32 << 10

// Get implements [httputil.BufferPool].
func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, bufferSize)
}

// Put implements [httputil.BufferPool].
func (b *buffers) Put(p []byte) { b.pool.Put(&p) }
