package egress_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"bottle/bottle"
	"bottle/bottle/egress"
	"bottle/bottle/pipelock"
)

// TestCorpus runs testdata/corpus: what a hostile agent sends, what must come back, and what
// alone an upstream may see of it. Each case runs through egress with a next hop that lets
// everything through, so that nothing but egress can have stopped it, and again with the
// built-in gate behind; those of mode gate run through the gate alone.
func TestCorpus(t *testing.T) {
	all := readCorpus(t, "")
	counts := newCorpusCounts(t)
	for _, hop := range []string{"stand-in", "gate"} {
		t.Run(hop, func(t *testing.T) {
			t.Parallel()
			w := newCorpusWorld(t, hop)
			for _, c := range all {
				for _, mode := range c.modes {
					if !c.runs(mode, hop) {
						continue
					}
					counts.add(c)
					t.Run(c.class+"/"+c.name+"/"+mode, func(t *testing.T) { w.run(t, c, mode) })
				}
			}
			w.leaks(t)
		})
	}
}

// corpusCounts are logged at a test's end.
type corpusCounts struct {
	mu    sync.Mutex
	cases map[string]map[string]bool // by class
	runs  map[string]int
}

func newCorpusCounts(t *testing.T) *corpusCounts {
	n := &corpusCounts{cases: map[string]map[string]bool{}, runs: map[string]int{}}
	t.Cleanup(func() {
		total, ran := 0, 0
		for _, class := range slices.Sorted(mapKeys(n.cases)) {
			t.Logf("%-12s %4d cases %5d runs", class, len(n.cases[class]), n.runs[class])
			total, ran = total+len(n.cases[class]), ran+n.runs[class]
		}
		t.Logf("%-12s %4d cases %5d runs", "all", total, ran)
	})
	return n
}

func (n *corpusCounts) add(c *hostileCase) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cases[c.class] == nil {
		n.cases[c.class] = map[string]bool{}
	}
	n.cases[c.class][c.name] = true
	n.runs[c.class]++
}

func mapKeys[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func (c *hostileCase) runs(mode, hop string) bool {
	if mode == "gate" {
		return hop == "gate"
	}
	return c.hop == "" || c.hop == hop
}

// corpusTokens are the operator's, which the agent may never see, by credential.
func corpusTokens() map[string]string {
	return map[string]string{"example": "tok3n-of-the-operator-for-example", "keyed": "tok3n-of-the-operator-that-is-keyed"}
}

func corpusCredentials() map[string]bottle.Credential {
	return map[string]bottle.Credential{
		"example": {Header: "Authorization", Scheme: "Bearer", TokenEnv: "X", Hosts: []bottle.Host{"cred.example.com"}},
		"keyed":   {Header: "X-Api-Key", TokenEnv: "Y", Hosts: []bottle.Host{"keyed.example.com"}},
	}
}

// A corpusWorld is what the cases of one kind of next hop run in, one after another.
type corpusWorld struct {
	*world
	rec      *recorder
	gateAddr string // of the built-in gate; empty without one
	told     bytes.Buffer
	// What the cases so far were allowed can arrive late: requests that were cut off, and
	// connections that were dialled and then not needed, which net/http keeps.
	begun   []string
	reached map[string]bool // hosts
	// Of cases in frames.
	tags     int // given
	sessions tls.ClientSessionCache
}

func newCorpusWorld(t testing.TB, hop string) *corpusWorld {
	t.Helper()
	b, err := os.ReadFile("testdata/corpus/routes.yaml")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := bottle.ParseRoutes(b)
	if err != nil {
		t.Fatal(err)
	}
	routes := doc.Routes()
	c := &corpusWorld{reached: map[string]bool{}, sessions: tls.NewLRUClientSessionCache(32)}
	c.world = newWorld(t, nil, withCredentials(corpusCredentials()), func(cfg *egress.Config) {
		ca := newTestCA(t)
		cfg.UpstreamCA = ca.pem
		c.rec = newRecorder(t, ca)
		if hop == "stand-in" {
			writeHop(t, cfg.HopFile, c.rec.standIn())
			return
		}
		for i, r := range routes {
			if len(r.Ports) == 0 {
				routes[i].Ports = []int{80, 443, c.rec.port}
			}
		}
		var pass *net.UnixConn
		pass, cfg.Passed = passingPair(t)
		c.gateAddr = startCorpusGate(t, c.rec, routes, pass)
		writeHop(t, cfg.HopFile, c.gateAddr)
	})
	c.setRoutes(routes)
	if err := egress.HandKeys(t.Context(), c.init.socket, corpusTokens()); err != nil {
		t.Fatal(err)
	}
	return c
}

// startCorpusGate starts a built-in gate that lets the routes' hosts and ports through.
func startCorpusGate(t testing.TB, rec *recorder, routes []bottle.Route, pass *net.UnixConn) string {
	t.Helper()
	var list []bottle.AllowEntry
	for _, r := range routes {
		list = append(list, bottle.AllowEntry{Host: r.Host, Ports: r.Ports})
	}
	doc, err := pipelock.New(list)
	if err != nil {
		t.Fatal(err)
	}
	b, _, err := doc.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "pipelock.yaml")
	if err := bottle.WriteFile(config, b, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // a test's listener
	if err != nil {
		t.Fatal(err)
	}
	g, err := pipelock.NewGate(pipelock.GateConfig{
		Config: config, Listener: l, Logger: slog.New(slog.DiscardHandler), Resolver: rec, Pass: pass,
		AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/16")},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// passingPair is what init makes for pipelock and egress; both close their end.
func passingPair(t testing.TB) (pass, passed *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		if ends[i], err = unixConnAt(uintptr(fd)); err != nil {
			t.Fatal(err)
		}
	}
	return ends[0], ends[1]
}

// leaks looks for the operator's tokens in all that egress told and logged.
func (w *corpusWorld) leaks(t *testing.T) {
	t.Helper()
	all := w.told.String() + w.init.told(t) + w.log.String()
	for _, path := range []string{"routes", "denials", "check?url=https://cred.example.com/v1/x"} {
		all += w.get("http://" + bottle.EgressHost + "/" + path).body
	}
	for name, token := range corpusTokens() {
		if i := strings.Index(all, token); i >= 0 {
			t.Errorf("the token of %s shows: %q", name, all[max(0, i-200):i])
		}
	}
}
