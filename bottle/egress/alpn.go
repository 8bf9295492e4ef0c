package egress

import (
	"context"
	"crypto/tls"
	"errors"
	"slices"
	"sync"
	"time"
)

// The protocols that are spoken, by their ALPN names (RFC 7301, RFC 9113 section 3.2).
const (
	protoH1 = "http/1.1"
	protoH2 = "h2"
)

const (
	// spokenLife is how long an upstream is taken to speak what it spoke last, and
	// maxSpoken of how many that is remembered.
	spokenLife = 5 * time.Minute
	maxSpoken  = 1024
)

// answerProtocol is what the agent is offered in return for its offer: what the upstream
// speaks, so that each side can do what the other can, or else what the agent prefers. An
// agent that does not offer what the upstream speaks is served all the same, by translation.
func answerProtocol(offer []string, upstream string) string {
	if upstream != "" && slices.Contains(offer, upstream) {
		return upstream
	}
	for _, p := range offer {
		if p == protoH1 || p == protoH2 {
			return p
		}
	}
	return protoH1
}

// learn returns what the upstream at to speaks, "" if that did not come out in time. For that
// it may have to connect; the connection is then the tunnel's own, for its first request. The
// tunnel's host is one that a live route names.
func (t *transports) learn(ctx context.Context, to authority) (proto string, made *first) {
	if proto := t.spoken.get(to); proto != "" {
		return proto, nil
	}
	made = t.dialFirst(ctx, to)
	late := time.NewTimer(learnTimeout)
	defer late.Stop()
	select {
	case <-made.done:
		if made.conn != nil {
			proto = made.conn.ConnectionState().NegotiatedProtocol
			if proto == "" {
				proto = protoH1
			}
		}
	case <-late.C:
	case <-ctx.Done():
	}
	return proto, made
}

// A first is a connection, perhaps still in the making, to a tunnel's upstream, made before
// the tunnel's first request.
type first struct {
	owner *transports
	done  chan struct{} // closed when conn or err is set
	conn  *tls.Conn
	err   error
	stop  func() // ends the dial

	mu   sync.Mutex
	gone bool // taken or dropped
}

// dialFirst begins to connect to the upstream. What nobody takes is closed after firstLife,
// or with the idle connections.
func (t *transports) dialFirst(ctx context.Context, to authority) *first {
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx)) // the tunnel's handshake may be over before
	f := &first{owner: t, done: make(chan struct{}), stop: stop}
	t.firsts.add(f)
	t.dials.Go(func() {
		f.conn, f.err = t.dialTLS(ctx, to, protoH2, protoH1)
		close(f.done)
		late := time.NewTimer(firstLife)
		defer late.Stop()
		select {
		case <-late.C:
		case <-ctx.Done():
		}
		f.drop()
	})
	return f
}

// take waits for the connection and hands it over, once: to a second caller, and after a
// drop, ok is false. Who can't speak h2 does not get a connection that does.
func (f *first) take(ctx context.Context, h2 bool) (conn *tls.Conn, ok bool, err error) {
	select {
	case <-f.done:
	case <-ctx.Done():
		return nil, true, context.Cause(ctx)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gone || f.conn != nil && !h2 && f.conn.ConnectionState().NegotiatedProtocol == protoH2 {
		return nil, false, nil
	}
	f.gone = true
	f.stop()
	return f.conn, true, f.err
}

// drop closes the connection unless it was taken.
func (f *first) drop() {
	f.stop()
	<-f.done // at once: stop has ended the dial
	f.owner.firsts.remove(f)
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.gone && f.conn != nil {
		_ = f.conn.NetConn().Close() // without a word, for which it might have to wait
	}
	f.gone = true
}

// firsts are those that wait.
type firsts struct {
	mu  sync.Mutex
	set map[*first]struct{}
}

func (s *firsts) add(f *first) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.set == nil {
		s.set = map[*first]struct{}{}
	}
	s.set[f] = struct{}{}
}

func (s *firsts) remove(f *first) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.set, f)
}

func (s *firsts) dropAll() {
	s.mu.Lock()
	all := make([]*first, 0, len(s.set))
	for f := range s.set {
		all = append(all, f)
	}
	s.mu.Unlock()
	for _, f := range all {
		f.drop()
	}
}

// spoken remembers what upstreams speak. To be wrong costs a translation.
type spoken struct {
	mu sync.Mutex
	by map[authority]speech
}

type speech struct {
	proto string
	at    time.Time
}

func (s *spoken) get(to authority) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if have, ok := s.by[to]; ok && time.Since(have.at) < spokenLife {
		return have.proto
	}
	return ""
}

func (s *spoken) set(to authority, proto string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.by == nil || len(s.by) >= maxSpoken {
		s.by = map[authority]speech{}
	}
	s.by[to] = speech{proto, time.Now()}
}

// dialTLS connects to the upstream by way of pipelock, offers protos, and verifies its
// certificate for the host that was judged.
func (t *transports) dialTLS(ctx context.Context, to authority, protos ...string) (*tls.Conn, error) {
	if err := t.trust(); err != nil {
		return nil, err
	}
	raw, err := t.hop.connect(ctx, to)
	if err != nil {
		return nil, err
	}
	config := t.tls.Clone()
	config.ServerName, config.NextProtos = string(to.host), protos
	conn := tls.Client(raw, config)
	ctx, cancel := context.WithTimeoutCause(ctx, upstreamTLSTimeout, errSlowTLS)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		if errors.Is(context.Cause(ctx), errSlowTLS) {
			err = errSlowTLS
		}
		return nil, err
	}
	if slices.Contains(protos, protoH2) {
		proto := conn.ConnectionState().NegotiatedProtocol
		if proto == "" {
			proto = protoH1
		}
		t.spoken.set(to, proto)
	}
	return conn, nil
}

// errSlowTLS is a handshake that took an upstream longer than upstreamTLSTimeout.
var errSlowTLS error = slowTLS{}

type slowTLS struct{}

func (slowTLS) Error() string { return "TLS handshake timeout" }
func (slowTLS) Timeout() bool { return true }
