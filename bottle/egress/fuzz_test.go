package egress_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// FuzzRequestPath sends raw bytes to egress' port, or into an intercepted tunnel, with a
// recording upstream behind a next hop that lets everything through. Whatever arrives there
// is one that a second opinion on testdata/corpus/routes.yaml allows ([mayArrive]), in the
// one form, and with no token but at its own host.
func FuzzRequestPath(f *testing.F) {
	w := newCorpusWorld(f, "stand-in")
	hosts := []string{"", "api.example.com", "open.example.com", "cred.example.com", "keyed.example.com", "header.example.com", "evil.test"}
	for _, c := range readCorpus(f, "") {
		for tunnel := range 2 {
			if b := c.seed(c.host, "80", tunnel); len(b) > 0 && len(b) < 4096 {
				f.Add(uint8(tunnel*max(1, slices.Index(hosts, c.host))), b)
			}
		}
	}
	f.Fuzz(func(t *testing.T, at uint8, b []byte) {
		host := hosts[int(at)%len(hosts)]
		w.rec.begin(nil, func([]byte) []byte { return []byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") })
		answer := fuzzOnce(t, w.addr, host, b)
		for _, token := range corpusTokens() {
			if strings.Contains(answer, token) {
				t.Errorf("the agent is shown a token: %q", answer)
			}
		}
		for _, c := range w.rec.finish(t) {
			lines, raw := c.lines(corpusTokens())
			for _, l := range lines {
				if strings.HasPrefix(l, "WRONG ") && !strings.HasPrefix(l, "WRONG unfinished head") {
					t.Errorf("%s in %q", l, raw)
				}
			}
			if c.host == "" && len(c.raw) == 0 {
				continue
			}
			reqs, _ := judge(c.raw)
			for _, q := range reqs {
				if !q.whole && q.head == nil {
					continue
				}
				if why := mayArrive(c.scheme, c.host, q); why != "" {
					t.Errorf("%s: %q", why, raw)
				}
			}
		}
	})
}

// FuzzGate does the same to the built-in gate: no host but the listed ones is dialled, and
// what is no tunnel comes out in the one form.
func FuzzGate(f *testing.F) {
	w := newCorpusWorld(f, "gate")
	for _, c := range readCorpus(f, "") {
		if b := c.seed(c.host, fmt.Sprint(w.rec.port), 0); len(b) > 0 && len(b) < 4096 {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		w.rec.begin(nil, func([]byte) []byte { return []byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") })
		fuzzOnce(t, w.gateAddr, "", b)
		for _, c := range w.rec.finish(t) {
			if !routed(c.host) {
				t.Errorf("%s was dialled and sent %q", c.host, c.raw)
			}
			if strings.Contains(string(b), "CONNECT") {
				continue // what is in a tunnel is the client's
			}
			lines, raw := c.lines(nil)
			for _, l := range lines {
				if strings.HasPrefix(l, "WRONG ") && !strings.HasPrefix(l, "WRONG unfinished head") {
					t.Errorf("%s in %q", l, raw)
				}
			}
		}
	})
}

// seed is all that a case sends, as for one port.
func (c *hostileCase) seed(host, port string, tunnel int) []byte {
	base := "http://" + host
	if tunnel == 1 {
		base = ""
	} else if port != "80" {
		base += ":" + port
	}
	var b strings.Builder
	for _, s := range c.steps {
		b.WriteString(c.expand(s.send, "{host}", host, "{base}", base, "{authority}", host, "{port}", port, "{:port}", "", "{tls}", port, "{:tls}", ""))
	}
	return []byte(b.String())
}

// fuzzOnce sends b, and one more request, and returns what came back until that was
// answered, the connection ended, or nothing came for a moment.
func fuzzOnce(t *testing.T, addr, host string, b []byte) string {
	t.Helper()
	c, err := net.Dial("tcp", addr) //nolint:noctx // it has a deadline
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	conn := c
	if host != "" {
		_, _ = io.WriteString(c, "CONNECT "+host+":443 HTTP/1.1\r\n\r\n")
		res, err := http.ReadResponse(bufio.NewReaderSize(c, 16), &http.Request{Method: http.MethodConnect})
		if err != nil || res.StatusCode != http.StatusOK {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		inner := tls.Client(c, &tls.Config{ServerName: host, InsecureSkipVerify: true})
		if err := inner.Handshake(); err != nil { //nolint:noctx // it has a deadline
			t.Fatal(err)
		}
		conn = inner
	}
	_, _ = conn.Write(b)
	_, _ = io.WriteString(conn, "GET http://sentinel.invalid/ HTTP/1.1\r\nHost: sentinel.invalid\r\nConnection: close\r\n\r\n")
	var answer strings.Builder
	buf := make([]byte, 8<<10)
	for {
		if err := c.SetReadDeadline(time.Now().Add(30 * time.Millisecond)); err != nil {
			return answer.String()
		}
		n, err := conn.Read(buf)
		answer.Write(buf[:n])
		if err != nil || strings.Contains(answer.String(), "sentinel.invalid") {
			return answer.String()
		}
	}
}

func routed(host string) bool {
	name, wild := strings.CutSuffix(host, ".wild.example.com")
	return slices.Contains([]string{
		"api.example.com", "exact.example.com", "regexp.example.com", "header.example.com", "open.example.com",
		"xn--bcher-kva.example", "port.example.com", "pass.example.com", "cred.example.com", "keyed.example.com", "rebind.example.com",
	}, host) || wild && name != "" && !strings.Contains(name, ".")
}

var (
	fieldEnv   = regexp.MustCompile(`(?im)^x[-_]env:[ \t]*(.*?)[ \t]*\r$`)
	repoIssues = regexp.MustCompile(`^/repos/[a-z]+/issues$`)
)

// mayArrive is a second opinion on the routes, written from routes.yaml and not from the
// code that is tested. It returns why a request may not have arrived, or "".
func mayArrive(scheme, host string, q seenRequest) string {
	target := q.target
	if rest, ok := strings.CutPrefix(target, "http://"); ok && host == "" {
		host, target, _ = strings.Cut(rest, "/")
		target = "/" + target
	}
	name, port, _ := strings.Cut(host, ":")
	if !routed(name) || (name == "port.example.com") != (port == "8443") || port != "" && port != "8443" {
		return "a host that no route names, " + host
	}
	if len(q.hosts) != 1 || q.hosts[0] != host {
		return fmt.Sprintf("Host is %q", q.hosts)
	}
	tokens := corpusTokens()
	has := map[string]bool{}
	for credential, token := range tokens {
		has[credential] = strings.Contains(string(q.head)+string(q.body), token)
	}
	if has["example"] != (name == "cred.example.com") || has["keyed"] != (name == "keyed.example.com") {
		return fmt.Sprintf("the wrong tokens, %v", has)
	}
	if (has["example"] || has["keyed"]) && scheme != "https" {
		return "a token in the clear"
	}
	if q.method == "TRACE" || q.method == "CONNECT" {
		return "a method that is never passed on"
	}
	under := func(p string) bool { return p == "/v1" || strings.HasPrefix(p, "/v1/") }
	var good func(string) bool
	methods := []string{q.method}
	switch name {
	case "api.example.com":
		good, methods = under, []string{"GET", "HEAD", "POST"}
	case "cred.example.com":
		good = under
	case "header.example.com":
		good = under
		if v := fieldEnv.FindAllStringSubmatch(string(q.head), -1); len(v) != 1 || v[0][1] != "dev" {
			return fmt.Sprintf("X-Env is %q", v)
		}
	case "exact.example.com":
		good, methods = func(p string) bool { return p == "/v1/only" }, []string{"GET"}
	case "regexp.example.com":
		good = repoIssues.MatchString
	default:
		return ""
	}
	if !slices.Contains(methods, q.method) {
		return "the method " + q.method
	}
	for p, last := beforeQuery(target), ""; p != last; {
		for _, r := range []string{p, strings.ReplaceAll(p, `\`, "/"), noParameters(p)} {
			if clean := path.Clean(r); !good(clean) && !good(r) || r != clean && r != clean+"/" {
				return fmt.Sprintf("a path that reads as %q", clean)
			}
		}
		last = p
		if next, err := url.PathUnescape(p); err == nil {
			p = next
		}
	}
	return ""
}

func beforeQuery(s string) string {
	s, _, _ = strings.Cut(s, "?")
	return s
}

func noParameters(p string) string {
	segments := strings.Split(p, "/")
	for i, s := range segments {
		segments[i], _, _ = strings.Cut(s, ";")
	}
	return strings.Join(segments, "/")
}
