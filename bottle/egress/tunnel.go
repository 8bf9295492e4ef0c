package egress

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"bottle/bottle"
	"bottle/bottle/allow"
)

// A tunnel is an accepted CONNECT whose TLS egress ended.
type tunnel struct {
	to   authority
	conn *clientConn
	// refused, if not nil, is the answer to every request in the tunnel: it was fronting, or
	// what it was to be spliced to did not come about.
	refused *refusal
	offer   []string // the agent's, of protocols (ALPN)
	first   *first   // connection to the upstream, for the first request; may be nil
}

// A tunnelConn is the inside of a tunnel that speaks HTTP/1.1, on its way to the server that
// reads it.
type tunnelConn struct {
	*wireConn
	tunnel *tunnel
}

// A tunnelBase is what a tunnel's TLS runs on, by which the server of those that speak
// HTTP/2 finds the tunnel: net/http wants the [tls.Conn] itself.
type tunnelBase struct {
	*prefixed
	tunnel *tunnel
}

// serveConnect answers a CONNECT. It is accepted for any well-formed target; what may be
// done in it is judged inside, where a client shows the answer. Nothing is resolved or
// dialled for it here.
func (s *Server) serveConnect(w http.ResponseWriter, r *http.Request) {
	refuse := func(status int, reason string) {
		n := &refusal{status: status, layer: layerEgress, host: r.RequestURI, method: r.Method, reason: reason, close: true}
		s.note(n)
		n.write(w, r.Header["Accept"])
	}
	to, err := parseAuthority(r.RequestURI, 0)
	if err != nil {
		refuse(http.StatusForbidden, "CONNECT: "+err.Error())
		return
	}
	client, ok := r.Context().Value(connKey{}).(*clientConn)
	if !ok {
		refuse(http.StatusInternalServerError, "CONNECT inside another connection")
		return
	}
	_, brw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		refuse(http.StatusInternalServerError, "the connection can't be taken over")
		return
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	early, err := buffered(brw.Reader)
	if err == nil {
		err = client.SetDeadline(time.Now().Add(s.limits.hello))
	}
	if err == nil {
		_, err = io.WriteString(client, "HTTP/1.1 200 Connection established\r\n\r\n")
	}
	if err != nil {
		_ = client.Close()
		return
	}
	s.count(countTunnels)
	s.openTunnel(ctx, cancel, &prefixed{halfCloser: client, early: early}, &tunnel{to: to, conn: client})
}

// openTunnel reads the ClientHello and goes on as host, port and server name allow. It owns
// the connection.
func (s *Server) openTunnel(ctx context.Context, cancel context.CancelCauseFunc, conn *prefixed, t *tunnel) {
	name, offer, early, err := peekHello(ctx, conn)
	conn.early = early // to be read again
	t.offer = offer
	n := &refusal{status: http.StatusForbidden, layer: layerEgress, host: string(t.to.host), port: t.to.port, tls: true, method: http.MethodConnect}
	if err != nil {
		if len(early) > 0 {
			n.reason = "not TLS: a tunnel to " + t.to.String() + " must carry TLS that names it"
			s.note(n)
			sayBye(t.conn, n.wire())
		}
		_ = conn.Close()
		return
	}
	if host, err := bottle.ParseHost(name); err != nil || host != t.to.host {
		n.reason = fmt.Sprintf("fronting: CONNECT names %s, but the TLS server name is %q", t.to.host, printable(name, maxShownHost))
		if name == "" {
			n.reason = fmt.Sprintf("fronting: CONNECT names %s, but the TLS names no server (no SNI)", t.to.host)
		}
		t.refused = n
		s.terminate(ctx, conn, t)
		return
	}
	v := s.snap.Load().table.Connect(t.to.host, t.to.port, s.live(""))
	if v.Known && v.Mode == bottle.Passthrough {
		s.splice(ctx, cancel, conn, t)
		return
	}
	speaks := ""
	if v.Known && slices.Contains(offer, protoH2) {
		speaks, t.first = s.up.current.Load().learn(ctx, t.to)
	}
	s.terminateAs(ctx, conn, t, answerProtocol(offer, speaks))
}

// splice relays a passthrough tunnel, unless it is refused after all; then that is said in
// a TLS of our own.
func (s *Server) splice(ctx context.Context, cancel context.CancelCauseFunc, conn *prefixed, t *tunnel) {
	e := &entry{host: string(t.to.host), port: t.to.port, method: http.MethodConnect, protocol: protocolTunnel, began: s.now()}
	f := &flow{cancel: cancel, conn: t.conn, entry: e}
	s.flows.add(f)
	defer s.forget(f)
	if t.refused = s.admitTunnel(f, t.to); t.refused != nil {
		s.terminate(ctx, conn, t)
		return
	}
	upstream, err := s.hop.connect(ctx, t.to)
	if err != nil {
		if context.Cause(ctx) != nil {
			_ = conn.Close()
			return
		}
		ex := &exchange{query: allow.Query{Host: t.to.host, Port: t.to.port, Method: http.MethodConnect, TLS: true}}
		t.refused = ex.failed(err)
		s.terminate(ctx, conn, t)
		return
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		_ = conn.Close()
		_ = upstream.Close()
		return
	}
	e.status.Store(http.StatusOK)
	up, down, whole := relay(ctx, conn, upstream)
	e.up.Store(up)
	e.down.Store(down)
	s.finish(ctx, e, whole)
}

// admitTunnel judges a tunnel that is to be spliced, spends its grant if it is for one
// use, and leaves its question in f.
func (s *Server) admitTunnel(f *flow, to authority) *refusal {
	claimed := ""
	for {
		generation := s.flows.generation.Load()
		snap := s.snap.Load()
		v := snap.table.Connect(to.host, to.port, s.live(claimed))
		n := &refusal{
			status: http.StatusForbidden, layer: layerEgress, host: string(to.host), port: to.port, tls: true, method: http.MethodConnect,
			reason: v.Reason, nearest: v.Nearest,
		}
		switch {
		case !v.Known:
			n.ask = suggest(allow.Query{Host: to.host, Port: to.port, Method: http.MethodConnect, TLS: true})
			return n
		case v.Mode != bottle.Passthrough:
			n.reason = "the route for " + to.String() + " changed while the tunnel was opened; connect again"
			return n
		}
		if g := snap.routes[v.Route].Grant; g != nil && g.Duration.Kind == bottle.Once && g.Request != claimed {
			switch ok, err := s.spent.claim(g.Request); {
			case err != nil:
				n.status, n.failure, n.reason = http.StatusServiceUnavailable, true, "the grant "+g.Request+" is for one use, which could not be recorded: "+err.Error()
				return n
			case !ok:
				continue
			}
			claimed, f.claimed = g.Request, g.Request
		}
		f.entry.route = &snap.routes[v.Route]
		question := s.tunnelQuestion(to, claimed)
		f.question.Store(&question)
		if s.flows.generation.Load() == generation {
			return nil
		}
	}
}

// tunnelQuestion is what keeps a spliced tunnel open: its place is still to be passed
// through. If it is to be intercepted now, what flows unread has to end.
func (s *Server) tunnelQuestion(to authority, claimed string) func() bool {
	return func() bool {
		v := s.snap.Load().table.Connect(to.host, to.port, s.live(claimed))
		return v.Known && v.Mode == bottle.Passthrough
	}
}

// terminate ends the TLS of a tunnel whose upstream is not asked, to refuse what is in it.
func (s *Server) terminate(ctx context.Context, conn *prefixed, t *tunnel) {
	s.terminateAs(ctx, conn, t, answerProtocol(t.offer, ""))
}

// terminateAs ends the TLS with a certificate of the bottle's CA and hands the inside to the
// server that reads requests in that protocol.
func (s *Server) terminateAs(ctx context.Context, conn *prefixed, t *tunnel, proto string) {
	config, err := s.leaves.config(t.to.host, proto)
	if err != nil {
		s.log.Error("no certificate for a tunnel", "host", t.to.host, "error", err)
		_ = conn.Close()
		return
	}
	inside := tls.Server(&tunnelBase{conn, t}, config)
	if t.refused != nil {
		s.note(t.refused)
	}
	err = conn.SetDeadline(time.Now().Add(s.limits.hello))
	if err == nil {
		err = inside.HandshakeContext(ctx)
	}
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err != nil {
		s.chatter.Info("TLS of a tunnel failed; does the agent's program trust the bottle's CA?", "host", t.to.host, "error", err)
		_ = conn.Close()
		return
	}
	if inside.ConnectionState().NegotiatedProtocol == protoH2 {
		if !s.tunnels2.put(inside) {
			_ = inside.Close()
		}
		return
	}
	wire := &wireConn{Conn: inside, refuse: func(v *violation) []byte { return s.violated(v, t) }}
	if !s.tunnels.put(&tunnelConn{wireConn: wire, tunnel: t}) {
		_ = inside.Close()
	}
}

// sayBye sends last words. What the peer still sends is read for a moment: a close with
// unread bytes is a reset, which can overtake the words.
func sayBye(c *clientConn, words []byte) {
	_ = c.SetDeadline(time.Now().Add(partingTime))
	_, _ = c.Write(words)
	_ = c.CloseWrite()
	_, _ = io.CopyN(io.Discard, c, maxHead)
}

// errPeeked stops a handshake after the ClientHello.
var errPeeked = errors.New("peeked")

// peekHello reads the ClientHello and returns its server name, the protocols that it offers,
// and all bytes that it read, also with an error. An encrypted ClientHello shows its outer name, which is the one that
// is judged: what it hides from egress, it hides from nobody that egress would have stopped,
// since pipelock dials the host of the CONNECT.
func peekHello(ctx context.Context, conn *prefixed) (name string, offer []string, early []byte, err error) {
	rec := &recorder{prefixed: conn, read: make([]byte, 0, 2<<10)} // one with a post-quantum key share fits
	err = tls.Server(rec, &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			name, offer = h.ServerName, h.SupportedProtos
			return nil, errPeeked
		},
	}).HandshakeContext(ctx)
	if errors.Is(err, errPeeked) {
		err = nil
	} else if err == nil {
		err = errors.New("no ClientHello")
	}
	return name, offer, rec.read, err
}

// recorder keeps what is read and sends nothing: crypto/tls sends an alert for the aborted
// handshake.
type recorder struct {
	*prefixed
	read []byte
}

// Read implements [net.Conn].
func (r *recorder) Read(p []byte) (int, error) {
	n, err := r.prefixed.Read(p)
	r.read = append(r.read, p[:n]...)
	return n, err
}

// Write implements [net.Conn].
func (r *recorder) Write(p []byte) (int, error) { return len(p), nil }
