package egress_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"bottle/bottle"
	"bottle/bottle/egress"
)

// lines are those of an access log, once egress has stopped.
func (w *world) lines(log *syncBuffer) []bottle.AccessLine {
	w.t.Helper()
	w.stop()
	var out []bottle.AccessLine
	for line := range strings.Lines(log.String()) {
		var l bottle.AccessLine
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			w.t.Fatalf("%s: %v", line, err)
		}
		if since := time.Since(l.Time); since < 0 || since > time.Minute || l.Millis < 0 || l.Millis > 20_000 {
			w.t.Errorf("time and duration of %s", line)
		}
		l.Time, l.Millis = time.Time{}, 0
		out = append(out, l)
	}
	return out
}

func withAccessLog(to io.Writer) option { return func(c *egress.Config) { c.AccessLog = to } }

// Each request has its line, with what it was and what came of it, and nothing of its query,
// headers or body.
func TestAccessLog(t *testing.T) {
	log := &syncBuffer{}
	granted := whole("granted.example.com")
	granted.Grant = &bottle.Grant{Request: "r7", By: "1000 op", At: time.Now().UTC(), Duration: bottle.Duration{Kind: bottle.Session}}
	w := newWorld(t, []bottle.Route{
		below("api.example.com", "/v1"), whole("two.example.com"), whole("down.example.com"), whole("no.example.com"), granted,
	}, withAccessLog(log))
	w.upstream("api.example.com", hello)
	w.upstream2("two.example.com", func(rw http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		rw.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(rw, "12345")
	})
	w.plainUpstream("granted.example.com", hello)
	w.gate.deny("no.example.com:443", http.StatusForbidden)

	greeting := int64(len(w.get("https://api.example.com/v1/x?token=hush&x").body))
	h := http.Header{"X-Request-Id": {"abc-1.2_3"}, "Authorization": {"Bearer hush"}}
	w.do(w.agent(), "GET", "https://api.example.com/v1/y", h)
	w.do(w.agent(), "GET", "https://api.example.com/v1/y", http.Header{"X-Request-Id": {"hush hush"}})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://two.example.com/up", strings.NewReader("hush hush"))
	if err != nil {
		t.Fatal(err)
	}
	res, err := w.agent2().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	w.get("https://api.example.com/v2?hush")
	w.get("https://else.example.com/%1b")
	w.get("https://down.example.com/")
	w.get("https://no.example.com/")
	plain := int64(len(w.get("http://granted.example.com/p").body))
	w.raw("api.example.com", "GET / HTTP/1.1\r\nHost: other.example.com\r\n\r\n")

	got := w.lines(log)
	if strings.Contains(log.String(), "hush") {
		t.Errorf("it says too much: %s", log.String())
	}
	api := bottle.AccessLine{
		Verdict: "allowed", Host: "api.example.com", Port: 443, Method: "GET", Path: "/v1/y", Protocol: "h1",
		Route: "api.example.com  GET /v1/*", Status: 200, BytesDown: greeting,
	}
	first, second, third := api, api, api
	first.Path, first.Query = "/v1/x", 2
	second.RequestID = "abc-1.2_3"
	want := []bottle.AccessLine{
		first, second, third,
		{Verdict: "allowed", Host: "two.example.com", Port: 443, Method: "POST", Path: "/up", Protocol: "h2", Status: 418, BytesUp: 9, BytesDown: 5, Route: "two.example.com  every method and path"},
		{Verdict: "refused", Layer: "egress", Host: "api.example.com", Port: 443, Method: "GET", Path: "/v2", Query: 1, Protocol: "h1", Status: 403},
		{Verdict: "refused", Layer: "egress", Host: "else.example.com", Port: 443, Method: "GET", Path: "/%1b", Protocol: "h1", Status: 403},
		{Verdict: "failed", Layer: "upstream", Host: "down.example.com", Port: 443, Method: "GET", Path: "/", Protocol: "h1", Status: 502, Route: "down.example.com  every method and path"},
		{Verdict: "refused", Layer: "pipelock", Host: "no.example.com", Port: 443, Method: "GET", Path: "/", Protocol: "h1", Status: 403, Route: "no.example.com  every method and path"},
		{Verdict: "allowed", Host: "granted.example.com", Port: 80, Method: "GET", Path: "/p", Protocol: "h1", Status: 200, BytesDown: plain, Grant: "r7", Route: "granted.example.com  every method and path  until the bottle stops (r7)"},
		{Verdict: "refused", Layer: "egress", Host: "api.example.com", Port: 443, Method: "GET", Path: "/", Protocol: "h1", Status: 421},
	}
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) {
			t.Fatalf("%d lines, want %d:\n%s", len(got), len(want), log.String())
		}
		if (got[i].Reason == "") != (got[i].Verdict == "allowed") {
			t.Errorf("line %d: reason %q", i, got[i].Reason)
		}
		got[i].Reason = ""
		if want[i].Verdict == "refused" || want[i].Verdict == "failed" {
			got[i].BytesUp, got[i].BytesDown = 0, 0 // of the answer to the agent
		}
		if got[i] != want[i] {
			t.Errorf("line %d:\n got %+v\nwant %+v", i, got[i], want[i])
		}
	}
}

// A tunnel and a websocket have one line each, at their end, with the bytes of both directions; what a
// reload cuts says so.
func TestAccessLogOfStreams(t *testing.T) {
	log := &syncBuffer{}
	passed := bottle.Route{Host: "pass.example.com", TLS: bottle.Passthrough}
	w := newWorld(t, []bottle.Route{passed, whole("ws.example.com"), whole("api.example.com")}, withAccessLog(log))
	w.upstream("pass.example.com", hello)
	w.upstream("ws.example.com", acceptWebsocket)
	gone := make(chan struct{}, 1)
	w.upstream("api.example.com", stream(gone))

	w.roots.AddCert(w.ca.cert)
	client := w.agent()
	w.do(client, "GET", "https://pass.example.com/", nil)
	client.CloseIdleConnections()
	eventually(t, "the tunnel's line", func() bool { return strings.Contains(log.String(), `"tunnel"`) })

	c, _, status := ws(t, w, "/", "websocket")
	if status != http.StatusSwitchingProtocols {
		t.Fatal(status)
	}
	_ = c.Close()
	eventually(t, "the websocket's line", func() bool { return strings.Contains(log.String(), `"websocket"`) })

	body := w.open("https://api.example.com/")
	w.setRoutes([]bottle.Route{passed})
	_, _ = io.Copy(io.Discard, body)
	<-gone
	got := w.lines(log)
	if len(got) != 3 {
		t.Fatalf("%d lines:\n%s", len(got), log.String())
	}
	if l := got[0]; l.Protocol != "tunnel" || l.Method != "CONNECT" || l.Path != "" || l.Status != 200 || l.BytesUp < 200 || l.BytesDown < 500 || l.Verdict != "allowed" || l.Route == "" {
		t.Errorf("tunnel: %+v", l)
	}
	if l := got[1]; l.Status != 101 || l.Verdict != "allowed" {
		t.Errorf("websocket: %+v", l)
	}
	if l := got[2]; l.End != bottle.EndCut || l.Verdict != "allowed" || l.BytesDown == 0 {
		t.Errorf("cut: %+v", l)
	}
}

// Whoever does not read the log holds nobody up, neither the agent nor a stop.
func TestAccessLogThatNobodyReads(t *testing.T) {
	r, pipe, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer pipe.Close()
	w := newWorld(t, []bottle.Route{whole("api.example.com")}, withAccessLog(pipe))
	w.upstream("api.example.com", hello)
	if _, err := pipe.Write(make([]byte, 64<<10)); err != nil { // all that it holds
		t.Fatal(err)
	}
	client := w.agent()
	for n := range 50 {
		if a := w.do(client, "GET", fmt.Sprintf("https://api.example.com/%d", n), nil); a.status != 200 {
			t.Fatal(a)
		}
	}
	began := time.Now()
	w.stop()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the stop took %v", took)
	}
}

func TestCounters(t *testing.T) {
	w := newWorld(t, []bottle.Route{whole("api.example.com"), whole("down.example.com"), whole("no.example.com")})
	w.upstream("api.example.com", hello)
	w.gate.deny("no.example.com:443", http.StatusForbidden)
	greeting := uint64(len(w.get("https://api.example.com/").body))
	for _, host := range []string{"down", "no", "else"} {
		w.get("https://" + host + ".example.com/")
	}
	w.reload <- struct{}{}
	st := w.waitStatus(func(st bottle.DaemonStatus) bool { return st.Counters["requests"] == 4 })
	for name, want := range map[string]uint64{
		"allowed": 1, "refused": 2, "refused_egress": 1, "refused_pipelock": 1, "failed": 1, "upstream_failures": 1, "tunnels": 4,
		"access_log_dropped": 0, "open": 0,
	} {
		if got, ok := st.Counters[name]; !ok || got != want {
			t.Errorf("%s is %d, want %d", name, got, want)
		}
	}
	if got := st.Counters["bytes_down"]; got < greeting {
		t.Errorf("bytes_down is %d, and the greeting alone has %d", got, greeting)
	}
}
