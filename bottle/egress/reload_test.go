package egress_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bottle/bottle"
)

// stream answers with a line, and then one more for each value of more, until the client goes.
func stream(gone chan<- struct{}) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "data: first\n\n")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		gone <- struct{}{}
	}
}

// open starts a GET and returns after the first bytes of its body.
func (w *world) open(u string) io.ReadCloser {
	w.t.Helper()
	return w.openBy(w.agent(), u)
}

func (w *world) openBy(agent *http.Client, u string) io.ReadCloser {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, u, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	res, err := agent.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = res.Body.Close() })
	if _, err := io.ReadFull(res.Body, make([]byte, len("data: first\n\n"))); err != nil || res.StatusCode != 200 {
		w.t.Fatalf("%s: %s %v", u, res.Status, err)
	}
	return res.Body
}

// A revocation cuts the streams that it forbids, on intercepted, plain and spliced ways,
// within a second, and leaves everything else whole: a long download, a stream on another
// path of the same host, an idle connection.
func TestRevocationCutsWhatItForbidsAndNothingElse(t *testing.T) {
	defer noLeak(t)
	kept := []bottle.Route{whole("big.example.com"), below("api.example.com", "/keep"), {Host: "keeppass.example.com", TLS: bottle.Passthrough}}
	w := newWorld(t, append([]bottle.Route{below("api.example.com", "/sse"), below("plain.example.com", "/sse"), {Host: "pass.example.com", TLS: bottle.Passthrough}}, kept...))
	defer w.stop()
	w.roots.AddCert(w.ca.cert)
	gone := make(chan struct{}, 8)
	for _, h := range []string{"api.example.com", "pass.example.com", "keeppass.example.com"} {
		w.upstream(h, stream(gone))
	}
	w.plainUpstream("plain.example.com", stream(gone))
	const size = 8 << 20
	half := make(chan struct{})
	w.upstream("big.example.com", func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Length", fmt.Sprint(size))
		for i := range size / 1024 {
			if i == size/2048 {
				<-half
			}
			_, _ = rw.Write([]byte(strings.Repeat(string(rune('a'+i%26)), 1024)))
		}
	})

	type download struct {
		sum [32]byte
		n   int64
		err error
	}
	done := make(chan download, 1)
	big := w.agent()
	go func() {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://big.example.com/", nil)
		res, err := big.Do(req)
		if err != nil {
			done <- download{err: err}
			return
		}
		defer res.Body.Close()
		h := sha256.New()
		n, err := io.Copy(h, res.Body)
		done <- download{sum: [32]byte(h.Sum(nil)), n: n, err: err}
	}()
	cut, stay := map[string]io.ReadCloser{}, map[string]io.ReadCloser{}
	for _, u := range []string{"https://api.example.com/sse/1", "http://plain.example.com/sse/1", "https://pass.example.com/"} {
		cut[u] = w.open(u)
	}
	for _, u := range []string{"https://api.example.com/keep/1", "https://keeppass.example.com/"} {
		stay[u] = w.open(u)
	}
	idle, status := w.tunnel("api.example.com:443")
	if status != 200 {
		t.Fatal(status)
	}
	idleTLS := tls.Client(idle, &tls.Config{RootCAs: w.roots, ServerName: "api.example.com"})
	if err := idleTLS.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}

	start := time.Now()
	w.setRoutes(kept)
	for u, body := range cut {
		if n, err := io.Copy(io.Discard, body); err == nil || n > 0 {
			t.Errorf("%s: %d bytes more, and a clean end", u, n)
		}
	}
	for range cut {
		<-gone // the upstream's side is closed too
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("the cut took %s", took)
	}
	close(half)
	if d := <-done; d.err != nil || d.n != size {
		t.Errorf("the unrelated download: %d bytes, %v", d.n, d.err)
	}
	for u, body := range stay {
		got := make(chan error, 1)
		go func() {
			_, err := body.Read(make([]byte, 1))
			got <- err
		}()
		select {
		case err := <-got:
			t.Errorf("%s: cut, though it is allowed: %v", u, err)
		case <-time.After(50 * time.Millisecond):
		}
		_ = body.Close()
	}
	// The idle connection lives, and what is asked on it is judged by the new routes.
	for path, want := range map[string]string{"/sse/1": "403", "/nothing": "403"} {
		_, _ = fmt.Fprintf(idleTLS, "GET %s HTTP/1.1\r\nHost: api.example.com\r\n\r\n", path)
		res, err := http.ReadResponse(bufio.NewReader(idleTLS), nil)
		if err != nil || !strings.HasPrefix(res.Status, want) {
			t.Fatalf("on the idle connection: %v %v", res, err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
	}
	if st := w.waitStatus(func(bottle.DaemonStatus) bool { return true }); st.Counters["cut"] != 3 {
		t.Errorf("counters %v", st.Counters)
	}
}

func TestReloadRefusesWhatIsTornOrWrong(t *testing.T) {
	w := newWorld(t, []bottle.Route{whole("a.example.com")})
	w.upstream("a.example.com", hello)
	before := w.waitStatus(func(bottle.DaemonStatus) bool { return true }).Revision
	sealed := func(s string) []byte { b, _ := bottle.Seal([]byte(s)); return b }
	for name, b := range map[string][]byte{
		"empty":              nil,
		"no revision":        []byte("routes: []\n"),
		"torn":               sealed("routes: []\n")[3:],
		"unknown key":        sealed("routes: []\nrouts: []\n"),
		"unknown credential": sealed("routes:\n  - host: a.example.com\n    credential: nobody\n"),
	} {
		if err := os.WriteFile(w.cfg.Routes, b, 0o600); err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(-time.Millisecond)
		w.reload <- struct{}{}
		st := w.waitStatus(func(st bottle.DaemonStatus) bool { return st.Refused != nil && st.Refused.At.After(at) })
		if st.Revision != before || st.Refused.Error == "" {
			t.Errorf("%s: %+v", name, st)
		}
		if a := w.get("https://a.example.com/"); a.status != 200 {
			t.Errorf("%s: the old routes are not in force: %+v", name, a)
		}
	}
	w.setRoutes(nil)
	if st := w.waitStatus(func(st bottle.DaemonStatus) bool { return st.Refused == nil }); st.Revision == before {
		t.Error("not recovered")
	}
	if a := w.get("https://a.example.com/"); a.status != 403 {
		t.Errorf("%+v", a)
	}
}

// No stream that a reload forbids may slip in beside it: after a confirmed revocation
// nothing of the forbidden path flows, whatever raced with it.
func TestRequestsThatRaceWithReloads(t *testing.T) {
	open, closed := []bottle.Route{below("plain.example.com", "/s"), whole("other.example.com")}, []bottle.Route{whole("other.example.com")}
	w := newWorld(t, closed)
	var flowing atomic.Int64
	w.plainUpstream("plain.example.com", func(rw http.ResponseWriter, r *http.Request) {
		flowing.Add(1)
		defer flowing.Add(-1)
		_, _ = io.WriteString(rw, "x")
		_ = http.NewResponseController(rw).Flush()
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			c := w.agent()
			for ctx.Err() == nil {
				req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://plain.example.com/s/1", nil)
				res, err := c.Do(req)
				if err != nil {
					continue
				}
				_, _ = io.Copy(io.Discard, res.Body)
				_ = res.Body.Close()
			}
		})
	}
	for range 20 {
		w.setRoutes(open)
		eventually(t, "a stream", func() bool { return flowing.Load() > 0 })
		w.setRoutes(closed)
		eventually(t, "the end of all streams", func() bool { return flowing.Load() == 0 })
	}
	cancel()
	wg.Wait()
}

func TestOnce(t *testing.T) {
	once := below("api.example.com", "/v1")
	once.Grant = &bottle.Grant{Request: "r1", By: "0 op", At: time.Now(), Duration: bottle.Duration{Kind: bottle.Once}}
	pass := bottle.Route{Host: "pass.example.com", TLS: bottle.Passthrough, Grant: &bottle.Grant{Request: "r2", By: "0 op", At: time.Now(), Duration: bottle.Duration{Kind: bottle.Once}}}
	w := newWorld(t, []bottle.Route{once, pass})
	w.roots.AddCert(w.ca.cert)
	var reached atomic.Int32
	w.upstream("pass.example.com", hello)
	w.upstream("api.example.com", func(rw http.ResponseWriter, r *http.Request) {
		reached.Add(1)
		var spent bottle.Spent
		if err := bottle.ReadJSON(w.cfg.SpentPath, 0, &spent); err != nil || spent.Spent["r1"].IsZero() {
			t.Errorf("not recorded as spent before it was sent: %v %v", spent, err)
		}
		hello(rw, r)
	})
	var ok, refused atomic.Int32
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			switch a := w.get("https://api.example.com/v1/x"); a.status {
			case 200:
				ok.Add(1)
			case 403:
				refused.Add(1)
			}
		})
	}
	wg.Wait()
	if ok.Load() != 1 || reached.Load() != 1 || refused.Load() != 15 {
		t.Errorf("%d passed, %d reached the upstream, %d were refused", ok.Load(), reached.Load(), refused.Load())
	}
	if a := w.get("https://pass.example.com/"); a.status != 200 {
		t.Errorf("%+v", a)
	}
	if a := w.get("https://pass.example.com/"); a.status != 403 {
		t.Errorf("the second tunnel: %+v", a)
	}
	w.stop()
	w.start() // spent is spent, after a restart too
	if a := w.get("https://api.example.com/v1/x"); a.status != 403 {
		t.Errorf("after a restart: %+v", a)
	}
}

// What a once grant let through is not cut by the very fact that the grant is spent.
func TestOnceStreamSurvivesAnUnrelatedReload(t *testing.T) {
	once := below("api.example.com", "/v1")
	once.Grant = &bottle.Grant{Request: "r1", By: "0 op", At: time.Now(), Duration: bottle.Duration{Kind: bottle.Once}}
	w := newWorld(t, []bottle.Route{once})
	more := make(chan struct{})
	w.upstream("api.example.com", func(rw http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(rw, "data: first\n\n")
		_ = http.NewResponseController(rw).Flush()
		<-more
		_, _ = io.WriteString(rw, "second")
	})
	res := w.open("https://api.example.com/v1/x")
	if open := w.openOnce(); len(open) != 1 || open[0] != "r1" {
		t.Errorf("open while the stream runs: %v", open)
	}
	w.setRoutes([]bottle.Route{once, whole("other.example.com")})
	close(more)
	if b, err := io.ReadAll(res); err != nil || string(b) != "second" {
		t.Errorf("%q %v", b, err)
	}
	eventually(t, "the grant is not in use any more", func() bool { return len(w.openOnce()) == 0 })
}

// openOnce are the once grants that spent.json says are still in use.
func (w *world) openOnce() []string {
	w.t.Helper()
	var spent bottle.Spent
	if err := bottle.ReadJSON(w.cfg.SpentPath, 0, &spent); err != nil {
		w.t.Fatal(err)
	}
	return spent.Open
}

func TestOnceThatCannotBeRecordedIsNotUsed(t *testing.T) {
	once := whole("plain.example.com")
	once.Grant = &bottle.Grant{Request: "r1", By: "0 op", At: time.Now(), Duration: bottle.Duration{Kind: bottle.Once}}
	w := newWorld(t, []bottle.Route{once})
	w.plainUpstream("plain.example.com", hello)
	if err := os.Mkdir(w.cfg.SpentPath, 0o700); err != nil { // a rename onto it fails, as on a full disk
		t.Fatal(err)
	}
	if a := w.get("http://plain.example.com/"); a.status != 503 || len(w.gate.targets()) != 0 {
		t.Errorf("%+v", a)
	}
	if err := os.Remove(w.cfg.SpentPath); err != nil {
		t.Fatal(err)
	}
	if a := w.get("http://plain.example.com/"); a.status != 200 {
		t.Errorf("once it can be: %+v", a)
	}
}

func TestExpiryCutsAndRefuses(t *testing.T) {
	ends := time.Now().Add(1500 * time.Millisecond).UTC()
	timed := below("api.example.com", "/v1")
	timed.Grant = &bottle.Grant{Request: "r1", By: "0 op", At: time.Now(), Duration: bottle.Duration{Kind: bottle.TTL, TTL: time.Second}, ExpiresAt: &ends}
	w := newWorld(t, []bottle.Route{timed, below("api.example.com", "/v2")})
	gone := make(chan struct{}, 2)
	w.upstream("api.example.com", stream(gone))
	res := w.open("https://api.example.com/v1/x")
	keep := w.open("https://api.example.com/v2/x")
	if _, err := io.Copy(io.Discard, res); err == nil {
		t.Error("a clean end")
	}
	if late := time.Since(ends); late < 0 || late > time.Second {
		t.Errorf("cut %s after the end", late)
	}
	<-gone
	if a := w.get("https://api.example.com/v1/x"); a.status != 403 || !strings.Contains(a.body, "ended") {
		t.Errorf("%+v", a)
	}
	var in bottle.InForce
	if err := json.Unmarshal([]byte(w.get("http://egress.bottle.internal/routes").body), &in); err != nil || len(in.Routes) != 1 {
		t.Errorf("%+v %v", in, err)
	}
	_ = keep.Close()
	<-gone
}

// A wall clock that is set back does not lengthen a grant within the boot.
func TestExpiryByBootTime(t *testing.T) {
	id, boot, err := bottle.BootClock()
	if err != nil {
		t.Fatal(err)
	}
	far := time.Now().Add(time.Hour)
	timed := whole("plain.example.com")
	timed.Grant = &bottle.Grant{Request: "r1", By: "0 op", At: time.Now(), Duration: bottle.Duration{Kind: bottle.TTL, TTL: time.Hour}, ExpiresAt: &far, BootID: id, BootExpires: boot - 1}
	w := newWorld(t, []bottle.Route{timed})
	if a := w.get("http://plain.example.com/"); a.status != 403 {
		t.Errorf("%+v", a)
	}
}
