package egress_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"

	"bottle/bottle"
	"bottle/bottle/egress"
)

const (
	proxySecret = "PROXYSECRETPROXYSECRET"
	gateSecret  = "GATESECRETGATESECRET"
)

func withSecret(c *egress.Config) { c.Name, c.Secret, c.GateSecret = "mine", proxySecret, gateSecret }

// The ports of 127.0.0.1 are everyone's on a machine; the bottle's routes and credentials
// are not.
func TestStrangersAreTurnedAway(t *testing.T) {
	w := newWorld(t, []bottle.Route{whole("api.example.com"), whole("plain.example.com")}, withSecret)
	var reached atomic.Int32
	var seen atomic.Pointer[http.Header]
	h := func(rw http.ResponseWriter, r *http.Request) {
		reached.Add(1)
		head := r.Header.Clone()
		seen.Store(&head)
		hello(rw, r)
	}
	w.upstream("api.example.com", h)
	w.plainUpstream("plain.example.com", h)
	ask := func(request string) answer {
		t.Helper()
		c := w.dial()
		_, _ = io.WriteString(c, request)
		br := bufio.NewReader(c)
		res, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatalf("%q: %v", request, err)
		}
		b, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if _, err := br.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%q: the connection goes on (%v)", request, err)
		}
		return answer{res.StatusCode, res.Header, string(b)}
	}
	wrong := "Proxy-Authorization: " + bottle.ProxyAuthorization("PROXYSECRETPROXYSECREX") + "\r\n"
	right := "Proxy-Authorization: " + bottle.ProxyAuthorization(proxySecret) + "\r\n"
	for _, line := range []string{
		"GET http://plain.example.com/ HTTP/1.1\r\nHost: plain.example.com\r\n",
		"CONNECT api.example.com:443 HTTP/1.1\r\nHost: api.example.com:443\r\n",
		"CONNECT 127.0.0.1:443 HTTP/1.1\r\nHost: 127.0.0.1:443\r\n",
		"GET http://forbidden.example.com/tell-the-agent HTTP/1.1\r\nHost: forbidden.example.com\r\n",
		"GET http://egress.bottle.internal/routes HTTP/1.1\r\nHost: egress.bottle.internal\r\n",
		"GET http://egress.bottle.internal/healthz HTTP/1.1\r\nHost: egress.bottle.internal\r\n",
	} {
		for name, auth := range map[string]string{"none": "", "wrong": wrong, "two": right + right} {
			a := ask(line + auth + "\r\n")
			if a.status != 407 || a.header.Get("Proxy-Authenticate") != `Basic realm="bottle"` ||
				!strings.Contains(a.body, "this proxy belongs to the agent of bottle mine; use the HTTP_PROXY of its environment") {
				t.Errorf("%s, %.40q: %+v", name, line, a)
			}
		}
	}
	// What is malformed is not told to the agent as a denial of its own, unless it is.
	if a := ask("GET http://plain.example.com/tell-the-agent HTTP/1.1\r\nHost: other.example.com\r\n\r\n"); a.status != 421 {
		t.Errorf("%+v", a)
	}
	if n := reached.Load(); n != 0 || len(w.gate.targets()) != 0 || len(w.denials()) != 0 {
		t.Errorf("%d requests reached an upstream; %v; %v", n, w.gate.targets(), w.denials())
	}
	if a := ask("CONNECT 127.0.0.1:443 HTTP/1.1\r\nHost: 127.0.0.1:443\r\n" + right + "\r\n"); a.status != 403 || len(w.denials()) != 1 {
		t.Errorf("%+v %v", a, w.denials())
	}
	if a := ask("GET http://plain.example.com/ HTTP/1.1\r\nHost: other.example.com\r\n" + right + "\r\n"); a.status != 421 || len(w.denials()) != 2 {
		t.Errorf("%+v %v", a, w.denials())
	}

	for url, header := range map[string]http.Header{
		"https://api.example.com/":  {"Proxy-Authorization": {bottle.ProxyAuthorization(proxySecret)}}, // inside the tunnel too
		"http://plain.example.com/": {},
	} {
		if a := w.do(w.agent(), "GET", url, header); a.status != 200 {
			t.Errorf("%s with the secret: %+v", url, a)
		}
		if got := fmt.Sprint(*seen.Load()); strings.Contains(got, "Proxy") {
			t.Errorf("%s: the upstream saw %s", url, got)
		}
	}
	if auth := w.gate.authorizations(); len(auth) != 2 || auth[0] != bottle.ProxyAuthorization(gateSecret) || auth[1] != auth[0] {
		t.Errorf("pipelock saw %q", auth)
	}
	told := w.get("http://egress.bottle.internal/routes").body + w.get("http://egress.bottle.internal/denials").body +
		w.get("http://egress.bottle.internal/check?url=http://plain.example.com/").body
	status := w.init.told(t)
	for _, s := range []string{proxySecret, gateSecret, bottle.ProxyAuthorization(proxySecret), bottle.ProxyAuthorization(gateSecret)} {
		if strings.Contains(told+status+w.log.String(), s) {
			t.Errorf("%q is shown", s)
		}
	}
}

// A pipelock that doesn't take egress' secret is a fault of the bottle's, not a challenge
// for the agent.
func TestPipelockThatTurnsEgressAway(t *testing.T) {
	w := newWorld(t, []bottle.Route{whole("api.example.com"), whole("plain.example.com")})
	w.gate.deny("api.example.com:443", http.StatusProxyAuthRequired)
	w.gate.deny("plain.example.com:80", http.StatusProxyAuthRequired)
	for _, url := range []string{"https://api.example.com/", "http://plain.example.com/"} {
		a := w.get(url)
		if a.status != 502 || a.header.Get("X-Bottle-Layer") != "pipelock" || a.header["Proxy-Authenticate"] != nil || !strings.Contains(a.body, "stop and start the bottle") {
			t.Errorf("%s: %+v", url, a)
		}
	}
	if d := w.denials(); len(d) != 0 {
		t.Errorf("it counts as a denial: %v", d)
	}
}

// curl shows a stranger what is said.
func TestStrangerAsCurlShowsIt(t *testing.T) {
	w := newWorld(t, []bottle.Route{whole("plain.example.com")}, withSecret)
	out, err := exec.CommandContext(t.Context(), "curl", "-sS", "--proxy", "http://"+w.addr, "http://plain.example.com/").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "this proxy belongs to the agent of bottle mine") {
		t.Errorf("%v: %s", err, out)
	}
}
