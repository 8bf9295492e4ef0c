package egress_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"maps"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"bottle/bottle"
	"bottle/bottle/egress"
)

// twin is another gate that knows what g knows.
func (g *gate) twin(t testing.TB) *gate {
	other := newGate(t)
	g.mu.Lock()
	defer g.mu.Unlock()
	other.to = maps.Clone(g.to)
	return other
}

// use has egress go over to g, and returns once it says that it has.
func (w *world) use(g *gate) {
	w.t.Helper()
	writeHop(w.t, w.cfg.HopFile, g.addr)
	w.reload <- struct{}{}
	w.waitStatus(func(st bottle.DaemonStatus) bool { return st.Hop == g.addr })
}

// A switch loses nothing. What is open stays with the old pipelock, which has no connection
// left once that has ended; all else goes by the new one.
func TestSwitch(t *testing.T) {
	defer noLeak(t)
	w := newWorld(t, []bottle.Route{whole("a.example.com"), {Host: "pass.example.com", TLS: bottle.Passthrough}})
	defer w.stop()
	w.roots.AddCert(w.ca.cert)
	more := make(chan struct{})
	h := func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/stream" {
			_, _ = io.Copy(rw, r.Body)
			flushed(rw, r)
			return
		}
		_, _ = io.WriteString(rw, "data: first\n\n")
		_ = http.NewResponseController(rw).Flush()
		select {
		case <-more:
			_, _ = io.WriteString(rw, "second")
		case <-r.Context().Done():
		}
	}
	w.upstream("a.example.com", h)
	w.upstream("pass.example.com", h)
	w.plainUpstream("a.example.com", h)
	old, next := w.gate, w.gate.twin(t)
	urls := []string{"https://a.example.com/", "http://a.example.com/", "https://pass.example.com/"}

	streamer := w.agent()
	var streams []io.ReadCloser
	for _, u := range urls {
		streams = append(streams, w.openBy(streamer, u+"stream"))
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var done atomic.Int64
	for i := range 6 {
		wg.Go(func() {
			c := w.agent()
			defer c.CloseIdleConnections()
			for ctx.Err() == nil {
				for _, method := range []string{http.MethodGet, http.MethodPost} {
					if a := w.do(c, method, urls[i%len(urls)], nil); a.status != 200 {
						t.Errorf("%s: %+v", urls[i%len(urls)], a)
					}
					done.Add(1)
				}
			}
		})
	}
	for i := range 10 { // under load
		n := done.Load()
		eventually(t, "some requests", func() bool { return done.Load() > n+20 })
		w.use([]*gate{next, old}[i%2])
	}
	w.use(next)
	cancel()
	wg.Wait()
	before, already := len(old.targets()), len(next.targets())
	for _, u := range urls {
		w.get(u)
	}
	if n := len(old.targets()) - before; n != 0 {
		t.Errorf("%d new requests by the old pipelock", n)
	}
	if n := len(next.targets()) - already; n != len(urls)-1 && n != len(urls) { // the tunnel for https may be a kept one
		t.Errorf("%d new requests by the new pipelock", n)
	}
	eventually(t, "the old pipelock has the streams alone", func() bool { return old.open.n.Load() == int64(len(streams)) })
	close(more)
	for i, s := range streams {
		if b, err := io.ReadAll(s); err != nil || string(b) != "second" {
			t.Errorf("the stream of %s: %q %v", urls[i], b, err)
		}
	}
	streamer.CloseIdleConnections() // the spliced tunnel is the agent's own connection
	eventually(t, "the old pipelock is drained", func() bool { return old.open.n.Load() == 0 })
}

// Neither connections nor goroutines nor descriptors are left of many switches.
func TestManySwitches(t *testing.T) {
	reports := make(chan bottle.DaemonStatus, 1)
	w := newWorld(t, []bottle.Route{whole("a.example.com")}, func(c *egress.Config) {
		report := c.Report
		c.Report = func(st bottle.DaemonStatus) error {
			select {
			case reports <- st:
			default:
			}
			return report(st)
		}
	})
	w.upstream("a.example.com", flushed)
	w.plainUpstream("a.example.com", flushed)
	gates := []*gate{w.gate.twin(t), w.gate}
	agent := w.agent()
	round := func(n int) {
		for i := range n {
			writeHop(t, w.cfg.HopFile, gates[i%2].addr)
			for len(reports) > 0 {
				<-reports
			}
			w.reload <- struct{}{}
			if st := <-reports; st.Hop != gates[i%2].addr {
				t.Fatalf("the hop is %s", st.Hop)
			}
			if i%50 == 0 {
				w.do(agent, http.MethodGet, "https://a.example.com/", nil)
			}
			if a := w.do(agent, http.MethodGet, "http://a.example.com/", nil); a.status != 200 {
				t.Fatalf("%+v", a)
			}
		}
		eventually(t, "the old pipelock is drained", func() bool { return gates[0].open.n.Load() == 0 })
	}
	round(52)
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	round(1000)
	eventually(t, "as few goroutines and files as before", func() bool {
		return runtime.NumGoroutine() <= goroutines+10 && openFiles(t) <= files+10
	})
}

func openFiles(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

func TestHopFile(t *testing.T) {
	w := newWorld(t, []bottle.Route{whole("a.example.com")})
	w.plainUpstream("a.example.com", hello)
	good, err := os.ReadFile(w.cfg.HopFile)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]string{
		"empty":       "",
		"no JSON":     `{"schema":1,`,
		"no schema":   `{"pipelock":"127.0.0.1:1"}`,
		"no address":  `{"schema":1}`,
		"a name":      `{"schema":1,"pipelock":"localhost:1"}`,
		"no port":     `{"schema":1,"pipelock":"127.0.0.1"}`,
		"port 0":      `{"schema":1,"pipelock":"127.0.0.1:0"}`,
		"no loopback": `{"schema":1,"pipelock":"192.0.2.1:8888"}`,
		"everywhere":  `{"schema":1,"pipelock":"0.0.0.0:8888"}`,
	} {
		if err := os.WriteFile(w.cfg.HopFile, []byte(b), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := egress.New(w.cfg); err == nil || !strings.Contains(err.Error(), "hop.json") {
			t.Errorf("%s: New: %v", name, err)
		}
		// The routes are taken all the same, and the hop stays.
		rev := w.writeRoutes([]bottle.Route{whole("a.example.com"), whole(strings.ReplaceAll(name, " ", "-") + ".example.com")})
		w.reload <- struct{}{}
		st := w.waitStatus(func(st bottle.DaemonStatus) bool { return st.Revision == rev })
		if !strings.Contains(st.Error, "hop.json") || st.Hop != w.gate.addr || st.Refused != nil {
			t.Errorf("%s: %+v", name, st)
		}
		if a := w.get("http://a.example.com/"); a.status != 200 {
			t.Errorf("%s: %+v", name, a)
		}
	}
	if err := os.WriteFile(w.cfg.HopFile, good, 0o600); err != nil {
		t.Fatal(err)
	}
	w.reload <- struct{}{}
	w.waitStatus(func(st bottle.DaemonStatus) bool { return st.Error == "" })
	if err := os.Remove(w.cfg.HopFile); err != nil {
		t.Fatal(err)
	}
	if _, err := egress.New(w.cfg); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// A reload is one report, of the new hop and the new routes together.
func TestReport(t *testing.T) {
	reports := make(chan bottle.DaemonStatus, 16)
	fail := errors.New("the pipe is broken")
	w := newWorld(t, []bottle.Route{whole("a.example.com")}, func(c *egress.Config) {
		report := c.Report
		c.Report = func(st bottle.DaemonStatus) error {
			reports <- st
			return errors.Join(fail, report(st))
		}
	})
	if st := <-reports; st.Hop != w.gate.addr || st.Listen != w.addr || st.Daemon != bottle.DaemonEgress {
		t.Errorf("%+v", st)
	}
	next := w.gate.twin(t)
	rev := w.writeRoutes(nil)
	writeHop(t, w.cfg.HopFile, next.addr)
	w.reload <- struct{}{}
	if st := <-reports; st.Hop != next.addr || st.Revision != rev {
		t.Errorf("%+v", st)
	}
	w.stop()
	if len(reports) > 0 {
		t.Errorf("one report too many: %+v", <-reports)
	}
	if !strings.Contains(w.log.String(), fail.Error()) {
		t.Error("a failed report is not logged")
	}
}

// The sockets of an egress that is gone stay open, and who comes meanwhile is served by the
// next one.
func TestInheritedSockets(t *testing.T) {
	defer noLeak(t)
	w := newWorld(t, []bottle.Route{whole("plain.example.com")}, withCredentials(map[string]bottle.Credential{
		"x": {Header: "Authorization", Hosts: []bottle.Host{"a.example.com"}},
	}))
	w.plainUpstream("plain.example.com", hello)
	if a := w.get("http://plain.example.com/"); a.status != 200 {
		t.Fatalf("%+v", a)
	}
	w.stop()
	noLeak(t)

	var wg sync.WaitGroup
	c := w.dial() // nobody accepts it now
	_, _ = io.WriteString(c, "GET http://plain.example.com/ HTTP/1.1\r\nHost: plain.example.com\r\nConnection: close\r\n\r\n")
	wg.Go(func() {
		if err := egress.HandKeys(t.Context(), w.init.socket, map[string]string{"x": "token"}); err != nil {
			t.Error(err)
		}
	})
	w.start()
	if b, err := io.ReadAll(c); err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 200") {
		t.Errorf("%q %v", b, err)
	}
	wg.Wait()
	w.waitStatus(func(st bottle.DaemonStatus) bool { return len(st.Needs) == 0 })
	w.stop()
	if _, err := os.Lstat(w.init.socket); err != nil {
		t.Errorf("the key socket's file: %v", err)
	}
}

// A reload closes the connections that wait for another request only if it takes a host away.
func TestKeptConnections(t *testing.T) {
	a, b := whole("a.example.com"), whole("b.example.com")
	w := newWorld(t, []bottle.Route{a})
	var made atomic.Int32
	s := w.upstream("a.example.com", flushed)
	s.TLS.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		made.Add(1)
		return nil, nil
	}
	for i, step := range []struct {
		routes []bottle.Route
		want   int32
	}{
		{[]bottle.Route{a}, 1},
		{[]bottle.Route{a, b}, 1},
		{[]bottle.Route{below("a.example.com", "/"), b}, 1},
		{[]bottle.Route{a}, 2},
		{[]bottle.Route{a}, 2},
	} {
		w.setRoutes(step.routes)
		if ans := w.get("https://a.example.com/"); ans.status != 200 {
			t.Fatalf("%+v", ans)
		}
		if n := made.Load(); n != step.want {
			t.Errorf("step %d: %d handshakes, not %d", i, n, step.want)
		}
	}
}
