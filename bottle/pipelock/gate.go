package pipelock

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"bottle/bottle"
	"bottle/bottle/throttle"
)

// A Resolver finds the addresses of a name; [net.Resolver] is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// GateConfig configures the built-in gate.
type GateConfig struct {
	Config   string       // required: path of the live, sealed pipelock.yaml
	Listener net.Listener // required: TCP of loopback to serve on, inherited from init; Run closes it
	Secret   string       // what egress must know, see bottle.ProxyUserinfo; empty: nothing is asked for
	// Report is told what is in force: at the start, after each reload, and at the end. Its
	// error is logged, and the gate goes on. nil: nobody.
	Report     func(bottle.DaemonStatus) error
	Resolve    map[string]string // host -> IP address, before any resolver; still classified
	AllowCIDRs []netip.Prefix    // address classes that the operator opened; see allow.Classify
	Resolver   Resolver          // nil: the system's
	Reload     <-chan struct{}   // each receive reloads Config; nil: never
	// Drain says that another gate took over: what follows is one more reload, and that each
	// tunnel goes to the other gate, those included that are made from then on. Run goes on
	// until its context ends, and reports when clients have nothing open any more, and when
	// they have again (the counter "open"). nil: never.
	Drain <-chan struct{}
	// Handover and Adopt are the two ends of one SOCK_SEQPACKET pair that all gates of the
	// bundle share. Run closes both. nil: nothing is handed over.
	Handover, Adopt *net.UnixConn
	// Pass is the end of a SOCK_SEQPACKET pair of egress', shared by all gates of the bundle, by
	// which it gets the connections that it asks for; see [fdpass.Header]. Run closes it. nil: all
	// that flows, flows through the gate.
	Pass   *net.UnixConn
	Logger *slog.Logger // required
}

// A Gate is the built-in second layer: a forward proxy for CONNECT and plain http that
// enforces host, port and address class.
type Gate struct {
	cfg      GateConfig
	log      *slog.Logger
	chatter  *slog.Logger // what a client causes, at a bounded rate
	listener net.Listener
	resolve  map[bottle.Host]netip.Addr
	instance string
	forward  *httputil.ReverseProxy
	plain    *http.Transport

	// mu makes one step of "is it allowed" and "it is under way": a reload that forbids a
	// host finds every flow to it, or the flow finds the new table.
	mu       sync.Mutex
	table    *table
	flows    map[*flow]struct{}
	most     int // flows at once
	stopping bool
	running  sync.WaitGroup // one for each flow

	handing context.Context // ends once tunnels are to be handed over
	hand    context.CancelFunc
	sending chan struct{} // holds a value while one is
	held    atomic.Int64  // connections of clients that are open here
	ended   atomic.Uint64 // those that were
	stirred chan struct{} // has a value when held changed

	status   bottle.DaemonStatus // Run's goroutine alone
	counters struct{ allowed, refused, failed, cut, passed, handedOver, adopted atomic.Uint64 }
}

// A table is one revision of the allowlist; it is never changed.
type table struct {
	revision bottle.Hash
	ports    map[bottle.Host][]int
	kept     []string // keys that are not enforced
	rawHash  string
}

// A flow is a tunnel or a plain request under way.
type flow struct {
	host   bottle.Host
	port   int
	cancel context.CancelCauseFunc
	cut    bool // by a reload, and about to end
}

// The causes for which flows are cut.
var (
	errForbidden = errors.New("no longer in the allowlist")
	errStopping  = errors.New("the gate is stopping")
)

// NewGate reads the config and listens. It refuses to start on a config that [Parse]
// refuses or whose seal is missing or wrong, since the alternative would be a guess at
// what may be reached. Close the gate by ending [Gate.Run]'s context.
func NewGate(cfg GateConfig) (*Gate, error) {
	switch {
	case cfg.Config == "":
		return nil, errors.New("pipelock gate: Config is required: the path of pipelock.yaml")
	case cfg.Logger == nil:
		return nil, errors.New("pipelock gate: Logger is required")
	case cfg.Listener == nil:
		return nil, errors.New("pipelock gate: Listener is required")
	}
	// Whoever reaches the gate is taken for egress.
	if a, ok := cfg.Listener.Addr().(*net.TCPAddr); !ok || !a.IP.IsLoopback() {
		return nil, fmt.Errorf("pipelock gate: serve on %s: give a TCP listener of a loopback address", cfg.Listener.Addr())
	}
	if err := checkPairs(cfg); err != nil {
		return nil, err
	}
	if cfg.Resolver == nil {
		cfg.Resolver = net.DefaultResolver
	}
	var nofile unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &nofile); err != nil {
		return nil, fmt.Errorf("pipelock gate: how many descriptors there may be: %w", err)
	}
	g := &Gate{
		cfg:      cfg,
		most:     flowsFor(nofile.Cur),
		log:      cfg.Logger,
		chatter:  slog.New(throttle.New(cfg.Logger.Handler())),
		instance: rand.Text(),
		resolve:  make(map[bottle.Host]netip.Addr, len(cfg.Resolve)),
		flows:    map[*flow]struct{}{},
		sending:  make(chan struct{}, 1),
		stirred:  make(chan struct{}, 1),
	}
	g.handing, g.hand = context.WithCancel(context.Background())
	for name, s := range cfg.Resolve {
		h, err := bottle.ParseHost(name)
		if err != nil {
			return nil, fmt.Errorf("pipelock gate: resolve: %w", err)
		}
		addr, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("pipelock gate: resolve: %s: %q is not an IP address", h, s)
		}
		g.resolve[h] = addr
	}
	t, _, err := load(cfg.Config)
	if err != nil {
		return nil, fmt.Errorf("pipelock gate: not started: %w", err)
	}
	g.table, g.listener = t, cfg.Listener
	g.newForward()
	g.status = bottle.DaemonStatus{
		Schema: bottle.Schema, Daemon: bottle.DaemonPipelock, PID: os.Getpid(), Instance: g.instance,
		Listen: g.listener.Addr().String(), Revision: t.revision, LoadedAt: time.Now().UTC(),
	}
	return g, nil
}

// Addr returns the address that the gate listens on.
func (g *Gate) Addr() net.Addr { return g.listener.Addr() }

// load reads, checks and compiles the live file. claimed is the revision that the file
// bears, as far as it has one.
func load(path string) (t *table, claimed bottle.Hash, err error) {
	b, err := bottle.ReadFile(path, MaxBytes)
	if err != nil {
		return nil, "", err
	}
	claimed, err = bottle.CheckSeal(b)
	doc, parseErr := Parse(b)
	switch {
	case parseErr != nil: // says more than that the seal is missing
		return nil, claimed, parseErr
	case err != nil:
		return nil, "", fmt.Errorf("pipelock.yaml: %w", err)
	}
	raw := sha256.Sum256(b)
	t = &table{revision: claimed, ports: map[bottle.Host][]int{}, kept: doc.Keys(), rawHash: hex.EncodeToString(raw[:])}
	for _, e := range doc.Allowlist() {
		t.ports[e.Host] = e.Ports
	}
	return t, claimed, nil
}

// Run serves until ctx ends, then lets what is under way finish for 0.8 s, cuts the rest,
// and returns within a second: nil after ctx ended, else why it can't serve. Run is called
// once. When it returns, no goroutine and no connection of the gate is left.
func (g *Gate) Run(ctx context.Context) error {
	defer g.plain.CloseIdleConnections()
	defer g.hand() // for its resources
	g.log.Info("pipelock gate started", "listen", g.status.Listen, "config_hash", g.table.rawHash, "revision", g.table.revision, "hosts", len(g.table.ports))
	if len(g.table.kept) > 0 {
		g.log.Warn("keys of pipelock.yaml that the built-in gate keeps but does not enforce", "keys", g.table.kept)
	}
	srv := &http.Server{
		Handler:           http.HandlerFunc(g.serve),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		// Or net/http answers OPTIONS * as if it were a server.
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(g.chatter.Handler(), slog.LevelDebug),
		ConnState: func(_ net.Conn, s http.ConnState) {
			switch s {
			case http.StateNew:
				g.hold()
			case http.StateClosed: // of one that was hijacked, connect says
				g.release()
			}
		},
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(g.listener) }()
	stopAdopting := g.adopt()
	defer g.closePairs()
	g.report()

	tidy := time.NewTicker(tidyEvery)
	defer tidy.Stop()
	var tidied tidier
	var handing bool
	var stirred <-chan struct{} // nil until it matters
	for {
		select {
		case <-ctx.Done():
			stopAdopting()
			g.stop(srv)
			if err := <-served; !errors.Is(err, http.ErrServerClosed) {
				g.log.Warn("serving ended otherwise than by the stop", "error", err.Error())
			}
			g.report()
			g.log.Info("pipelock gate stopped")
			return nil
		case err := <-served:
			stopAdopting()
			g.stop(srv)
			return fmt.Errorf("pipelock gate: serve: %w", err)
		case _, ok := <-g.cfg.Reload:
			if !ok {
				g.cfg.Reload = nil
				continue
			}
			g.reload()
		case _, ok := <-g.cfg.Drain:
			if !ok {
				g.cfg.Drain = nil
				continue
			}
			g.reload()
			stirred = g.stirred
			if g.cfg.Handover != nil && !handing {
				handing = true
				stopAdopting() // or this gate would get what it sends
				g.log.Info("another gate took over: tunnels are handed to it", "open", g.held.Load())
				g.hand()
			}
		case <-tidy.C:
			tidied.tidy(g.ended.Load())
		case <-stirred:
			if (g.held.Load() == 0) != (g.status.Counters["open"] == 0) {
				g.report()
			}
		}
	}
}

// A tidier gives back the pipes through which tunnels were spliced. The Go runtime keeps them
// in a sync.Pool and closes them when they are collected, which takes two collections; and
// with the little garbage of a gate one comes every two minutes, by when a burst of
// tunnels may have left thousands of descriptors.
type tidier struct {
	seen  uint64 // flows that had ended
	again bool
}

func (t *tidier) tidy(ended uint64) {
	if ended != t.seen || t.again {
		runtime.GC()
	}
	t.seen, t.again = ended, ended != t.seen
}

func (g *Gate) closePairs() {
	if g.cfg.Handover != nil {
		_ = g.cfg.Handover.Close()
		_ = g.cfg.Adopt.Close()
	}
	if g.cfg.Pass != nil {
		_ = g.cfg.Pass.Close()
	}
}

// reload puts the live file in force, or keeps what is and says why in the status. A flow
// that the new table forbids is cut before the status says that the table is in force.
func (g *Gate) reload() {
	t, claimed, err := load(g.cfg.Config)
	if err != nil {
		g.status.Refused = &bottle.Refusal{Revision: claimed, Error: err.Error(), At: time.Now().UTC()}
		g.log.Error("config_reload", "status", "refused", "error", err.Error(), "in_force", g.status.Revision)
		g.report()
		return
	}
	g.mu.Lock()
	g.table = t
	cut := 0
	for f := range g.flows {
		if !f.cut && t.refuses(f.host, f.port) != "" {
			f.cancel(errForbidden)
			f.cut = true
			cut++
		}
	}
	g.mu.Unlock()
	g.counters.cut.Add(uint64(cut))
	// A kept connection may lead to a host that is forbidden now; requests are judged one by
	// one, so this is thrift rather than safety.
	g.plain.CloseIdleConnections()
	g.status.Revision, g.status.LoadedAt, g.status.Refused = t.revision, time.Now().UTC(), nil
	g.log.Info("config_reload", "status", "success", "config_hash", t.rawHash, "revision", t.revision, "hosts", len(t.ports), "cut", cut)
	g.report()
}

func (g *Gate) report() {
	if g.cfg.Report == nil {
		return
	}
	g.status.Counters = map[string]uint64{
		"allowed": g.counters.allowed.Load(), "refused": g.counters.refused.Load(),
		"failed": g.counters.failed.Load(), "cut": g.counters.cut.Load(),
		"passed": g.counters.passed.Load(), "handed_over": g.counters.handedOver.Load(), "adopted": g.counters.adopted.Load(),
		"open": uint64(max(g.held.Load(), 0)),
	}
	if err := g.cfg.Report(g.status); err != nil {
		g.log.Error("can't say what is in force", "error", err.Error())
	}
}

// stop takes no more, waits for what is under way, cuts it when its time is up, and
// returns when nothing is left.
func (g *Gate) stop(srv *http.Server) {
	g.mu.Lock()
	g.stopping = true
	g.mu.Unlock()
	done := make(chan struct{})
	go func() { g.running.Wait(); close(done) }()
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	_ = srv.Shutdown(ctx) // its error says that time was up; the rest is cut below
	select {
	case <-done:
	case <-ctx.Done():
	}
	g.mu.Lock()
	for f := range g.flows {
		f.cancel(errStopping)
	}
	g.mu.Unlock()
	_ = srv.Close()
	<-done
}

// admit registers a flow if the table in force allows it. The caller calls end when it is
// over. ctx ends when the flow is to be cut; its cause says why.
func (g *Gate) admit(parent context.Context, host bottle.Host, port int) (ctx context.Context, end func(), why *refusal) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.stopping:
		return nil, nil, &refusal{Host: string(host), Port: port, Reason: errStopping.Error(), code: http.StatusServiceUnavailable}
	case len(g.flows) >= g.most:
		reason := fmt.Sprintf("%d connections are open, the most that the gate takes", g.most)
		return nil, nil, &refusal{Host: string(host), Port: port, Reason: reason, code: http.StatusServiceUnavailable}
	}
	if why := g.table.refuses(host, port); why != "" {
		return nil, nil, &refusal{Host: string(host), Port: port, Reason: why, code: http.StatusForbidden}
	}
	ctx, cancel := context.WithCancelCause(parent)
	f := &flow{host: host, port: port, cancel: cancel}
	g.flows[f] = struct{}{}
	g.running.Add(1)
	return ctx, func() {
		g.mu.Lock()
		delete(g.flows, f)
		g.mu.Unlock()
		cancel(nil)
		g.running.Done()
	}, nil
}
