package egress_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"bottle/bottle"
)

// An attempt is one run of a case.
type attempt struct {
	*hostileCase
	t              *testing.T
	w              *corpusWorld
	mode           string
	vars           []string
	target, server string // of the CONNECT and the TLS in it
	conn           net.Conn
	br             *bufio.Reader
	offer          []string // of protocols, in TLS
	sessions       tls.ClientSessionCache
	method         string // of the requests, on which it depends whether an answer has a body
	over, whatever bool   // the connection has said that it ends
}

func (w *corpusWorld) run(t *testing.T, c *hostileCase, mode string) {
	a := &attempt{hostileCase: c, t: t, w: w, mode: mode}
	tunnel := mode == "intercept" || mode == "passthrough"
	a.setVars(tunnel)
	w.rec.begin(c.dns, func(request []byte) []byte {
		if c.reply == "" {
			return []byte(plainReply)
		}
		return []byte(a.expand(c.reply, append([]string{"{echo}", strings.ReplaceAll(string(request), `\`, `\\`), "{accept}", acceptKey(request)}, a.vars...)...))
	})
	a.dial()
	if tunnel {
		a.tunnel()
	}
	for _, s := range c.steps {
		if s.mode != "" && s.mode != mode {
			continue
		}
		switch s.kind {
		case stepSend:
			b := []byte(a.expand(s.send, a.vars...))
			a.send(b)
		case stepTLS:
			a.handshake(a.expand(*s.tls, a.vars...))
		case stepHello:
			_, _ = a.conn.Write(helloFor(t, a.expand(*s.hello, a.vars...)))
		case stepWant:
			a.want(s)
		}
	}
	a.hangUpCleanly()
	a.compare(w.rec.finish(t))
}

const plainReply = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

// setVars fills in the variables of a case.
func (a *attempt) setVars(tunnel bool) {
	host := a.expand(a.host)
	port, tlsPort, colonPort, base := "80", "443", "", "http://"+host
	if tunnel {
		port = "443"
	}
	if a.w.gateAddr != "" {
		port = strconv.Itoa(a.w.rec.port)
		tlsPort, colonPort = port, ":"+port
		base += colonPort
	}
	scheme := "http"
	if tunnel {
		base, scheme = "", "https"
	}
	target, sni := a.connect, a.sni
	if target == "" {
		target = host + ":" + port
	}
	if sni == "" {
		sni = host
	}
	a.vars = []string{
		"{host}", host, "{port}", port, "{:port}", colonPort, "{tls}", tlsPort, "{:tls}", colonPort, "{base}", base, "{authority}", host + colonPort, "{scheme}", scheme,
		"{token}", corpusTokens()["example"], "{key}", corpusTokens()["keyed"],
	}
	a.target, a.server = a.expand(target, a.vars...), a.expand(sni, a.vars...)
}

// tunnel makes a CONNECT and TLS in it.
func (a *attempt) tunnel() {
	a.send([]byte("CONNECT " + a.target + " HTTP/1.1\r\nHost: " + a.target + "\r\n\r\n"))
	a.want(corpusStep{status: 200})
	a.handshake(a.server)
}

func (a *attempt) dial() {
	addr := a.w.addr
	if a.mode == "gate" {
		addr = a.w.gateAddr
	}
	var d net.Dialer
	c, err := d.DialContext(a.t.Context(), "tcp", addr)
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		a.t.Fatal(err)
	}
	a.conn, a.br = c, bufio.NewReader(c)
}

// send writes. An error is not one: what was refused at its beginning is not read to its end.
func (a *attempt) send(b []byte) {
	a.method = http.MethodGet
	for _, m := range []string{http.MethodConnect, http.MethodHead} {
		if bytes.HasPrefix(b, []byte(m+" ")) {
			a.method = m
		}
	}
	_, _ = a.conn.Write(b)
}

func (a *attempt) handshake(sni string) {
	a.t.Helper()
	c := tls.Client(&readConn{a.conn, a.br}, &tls.Config{ServerName: sni, NextProtos: a.offer, ClientSessionCache: a.sessions, InsecureSkipVerify: true})
	if err := c.Handshake(); err != nil { //nolint:noctx // it has a deadline
		a.t.Fatalf("TLS for %q: %v", sni, err)
	}
	a.conn, a.br = c, bufio.NewReader(c)
}

// want awaits an answer, or the end of the connection.
func (a *attempt) want(s corpusStep) {
	a.t.Helper()
	if s.variable != "" {
		s.status, _ = strconv.Atoi(a.expand(s.variable))
	}
	if s.whatever {
		a.over, a.whatever = true, true
		return
	}
	if s.bytes {
		if _, err := a.br.ReadByte(); err != nil {
			a.t.Errorf("nothing came: %v", err)
		}
		return
	}
	if s.status == 0 {
		if b, err := io.ReadAll(a.br); len(b) > 0 && !a.whatever || errors.Is(err, os.ErrDeadlineExceeded) {
			a.t.Fatalf("instead of the end came %q, %v", b, err)
		}
		a.over = true
		return
	}
	res, err := http.ReadResponse(a.br, &http.Request{Method: a.method})
	if err != nil {
		a.t.Fatalf("instead of %d: %v", s.status, err)
	}
	_, _ = fmt.Fprintln(&a.w.told, res.Header)
	var body []byte
	if res.StatusCode != http.StatusSwitchingProtocols && (a.method != http.MethodConnect || res.StatusCode != http.StatusOK) {
		if body, err = io.ReadAll(res.Body); err != nil {
			a.t.Errorf("the body of %d ends in %v", res.StatusCode, err)
		}
	}
	_ = res.Body.Close()
	_, _ = a.w.told.Write(body)
	a.over = res.Close
	layer := res.Header.Get("X-Bottle-Layer")
	status := res.StatusCode
	if s.any {
		status = status / 100 * 100
	}
	if s.refused && status >= 400 || s.or != 0 && status == s.or {
		status, layer = s.status, s.layer
	}
	text, none := strings.CutPrefix(a.expand(s.text, a.vars...), "!")
	if status != s.status || layer != s.layer || strings.Contains(fmt.Sprint(string(body), res.Header, " close:", res.Close), text) == none {
		a.t.Errorf("came back: %d %q %v %.600q\nwanted: %d %q %s", res.StatusCode, layer, res.Header, body, s.status, s.layer, s.text)
	}
}

// hangUpCleanly ends the connection once everything sent before has been dealt with: that
// is when one more request is answered, or the end came of itself.
func (a *attempt) hangUpCleanly() {
	a.t.Helper()
	if a.hangUp {
		_ = a.conn.Close()
		return
	}
	if !a.over {
		last := "GET /sentinel HTTP/1.1\r\nHost: sentinel.invalid\r\nConnection: close\r\n\r\n"
		if a.mode == "plain" {
			last = "GET http://" + bottle.EgressHost + "/healthz HTTP/1.1\r\nHost: " + bottle.EgressHost + "\r\nConnection: close\r\n\r\n"
		}
		if _, ok := a.conn.(*tls.Conn); ok && a.mode == "plain" {
			last = "GET /sentinel HTTP/1.1\r\nHost: sentinel.invalid\r\nConnection: close\r\n\r\n"
		}
		a.send([]byte(last))
		res, err := http.ReadResponse(a.br, nil)
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				a.t.Error("no end, and no answer to a last request")
			}
			return // it had ended
		}
		body, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if res.StatusCode != http.StatusMisdirectedRequest && res.StatusCode != http.StatusBadRequest && !strings.Contains(string(body), `"ok":true`) {
			a.t.Errorf("one answer too many: %d %v %q", res.StatusCode, res.Header, body)
		}
	}
	if b, err := io.ReadAll(a.br); len(b) > 0 && !a.whatever || errors.Is(err, os.ErrDeadlineExceeded) {
		a.t.Errorf("after the last answer came %q, %v", b, err)
	}
	_ = a.conn.Close()
}

// compare holds what upstreams saw against what they may see.
func (a *attempt) compare(conns []*recorded) {
	a.t.Helper()
	var got []string
	raw := ""
	for _, c := range conns {
		lines, bytes := c.lines(corpusTokens())
		got, raw = append(got, lines...), raw+bytes
	}
	lines, ok := a.seen[a.mode]
	if !ok {
		lines = a.seen[""]
	}
	var want []string
	for _, l := range lines {
		if l != "nothing" {
			want = append(want, strings.TrimRight(a.expand(l, a.vars...), " "))
		}
	}
	for _, l := range want {
		if f := strings.Fields(strings.TrimPrefix(strings.TrimPrefix(l, "at most "), "perhaps ")); len(f) > 1 {
			a.w.reached[f[1]] = true
		}
		most, begun := strings.CutPrefix(l, "at most ")
		if whole, ok := strings.CutPrefix(l, "perhaps "); ok {
			most, begun = headOf(whole)
		}
		if begun && !slices.Contains(a.w.begun, most) {
			a.w.begun = append(a.w.begun, most)
		}
	}
	got = slices.DeleteFunc(got, func(l string) bool {
		if host, ok := strings.CutPrefix(l, "dial "); ok && a.w.reached[host] && !slices.Contains(want, l) {
			return true
		}
		return slices.ContainsFunc(a.w.begun, func(most string) bool { return begunAtMost(l, most) })
	})
	agrees := asMayBe
	if a.inFrames() {
		agrees = mayBeInAnyOrder
		got = slices.DeleteFunc(got, func(l string) bool { return strings.Contains(l, " POST "+besidePath) })
	}
	if !agrees(got, want) {
		a.t.Errorf("upstreams saw:\n  %s\nmay see:\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
	for _, s := range a.absent {
		if s = a.expand(s, a.vars...); strings.Contains(strings.ToLower(raw), strings.ToLower(s)) {
			a.t.Errorf("an upstream saw %q in %q", s, raw)
		}
	}
	for _, s := range a.present {
		s = a.expand(s, a.vars...)
		if a.inFrames() { // whose names are in lower case in one mode
			s, raw = strings.ToLower(s), strings.ToLower(raw)
		}
		if !strings.Contains(raw, s) {
			a.t.Errorf("no upstream saw %q, but %q", s, raw)
		}
	}
}

// headOf is a request as "seen" has it, without its body. What else may be seen there, a stream
// say, is none.
func headOf(seen string) (request string, ok bool) {
	words := strings.Fields(seen)
	if len(words) < 4 {
		return "", false
	}
	request = strings.Join(words[:4], " ") // scheme, host, method, target
	if i := strings.LastIndex(seen, " +"); i >= 0 && !strings.HasSuffix(seen, `"`) {
		request += seen[i:]
	}
	return request, true
}

// begunAtMost reports whether what an upstream saw is a beginning of that request, with no token but
// one that the request may have.
func begunAtMost(saw, most string) bool {
	most, may, _ := strings.Cut(most, " +")
	if saw, token, ok := strings.Cut(saw, " unfinished +"); ok {
		return token == may && strings.HasPrefix(saw+" ", most+" ")
	}
	return strings.HasSuffix(saw, " unfinished") && strings.HasPrefix(saw, most+" ")
}

// asMayBe compares line by line. "at most" before a request means that it may have been
// begun, which the caller has taken out, or its upstream dialled, but that it never became
// whole; "perhaps" that it may have become whole too.
func asMayBe(got, want []string) bool {
	for _, w := range want {
		begun := strings.HasPrefix(w, "at most ")
		whole, may := strings.CutPrefix(w, "perhaps ")
		switch {
		case !begun && !may && (len(got) == 0 || got[0] != w):
			return false
		case !begun && !may,
			may && len(got) > 0 && strings.HasPrefix(got[0], whole):
			got = got[1:]
		}
	}
	return len(got) == 0
}

// mayBeInAnyOrder is [asMayBe] for requests that are made at once.
func mayBeInAnyOrder(got, want []string) bool {
	got = slices.Clone(got)
	for _, w := range want {
		whole, may := strings.CutPrefix(w, "perhaps ")
		i := slices.IndexFunc(got, func(l string) bool { return l == whole || may && strings.HasPrefix(l, whole) })
		switch {
		case i >= 0:
			got = slices.Delete(got, i, i+1)
		case !may && !strings.HasPrefix(w, "at most "):
			return false
		}
	}
	return len(got) == 0
}

// helloFor is the first message of a TLS client with those bytes as the server name,
// whatever they are.
func helloFor(t *testing.T, name string) []byte {
	t.Helper()
	place := strings.Repeat("a", max(len(name), 1))
	ours, theirs := net.Pipe()
	defer theirs.Close()
	var hello []byte
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 16<<10)
		n, _ := theirs.Read(buf)
		hello = buf[:n]
		_ = theirs.Close()
	}()
	_ = tls.Client(ours, &tls.Config{ServerName: place, InsecureSkipVerify: true}).Handshake() //nolint:noctx // it is never finished
	<-done
	_ = ours.Close()
	if !bytes.Contains(hello, []byte(place)) {
		t.Fatalf("no server name in %q", hello)
	}
	return bytes.Replace(hello, []byte(place), []byte(name), 1)
}
