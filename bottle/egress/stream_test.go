package egress_test

import (
	"bufio"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"bottle/bottle"
)

// What an upstream sends arrives before it sends more, in both directions.
func TestStreamsAreNotBuffered(t *testing.T) {
	w := newWorld(t, []bottle.Route{whole("api.example.com"), whole("plain.example.com")})
	echo := func(rw http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(rw)
		_ = rc.EnableFullDuplex()
		_ = rc.Flush()
		br := bufio.NewReader(r.Body)
		for {
			line, err := br.ReadString('\n')
			if err != nil {
				return
			}
			_, _ = io.WriteString(rw, strings.ToUpper(line))
			_ = rc.Flush()
		}
	}
	w.upstream("api.example.com", echo)
	pr, pw := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://api.example.com/", pr)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.WriteString(pw, "one\n") }()
	res, err := w.agent().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	br := bufio.NewReader(res.Body)
	for i, want := range []string{"ONE\n", "TWO\n"} {
		if i > 0 {
			_, _ = io.WriteString(pw, strings.ToLower(want))
		}
		if line, err := br.ReadString('\n'); err != nil || line != want {
			t.Fatalf("%q %v", line, err)
		}
	}
	_ = pw.Close()
	if _, err := io.ReadAll(br); err != nil {
		t.Error(err)
	}
}

// ws opens a websocket by hand, through a tunnel. The reader stands behind the response, the
// body of which was read unless it is the stream.
func ws(t *testing.T, w *world, path, upgrade string) (c *tls.Conn, br *bufio.Reader, status int) {
	t.Helper()
	const host = "ws.example.com"
	conn, _ := w.tunnel(host + ":443")
	c = tls.Client(conn, &tls.Config{RootCAs: w.roots, ServerName: host})
	_, _ = fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\n%s\r\n", path, host, strings.Replace(websocketHead, "websocket", upgrade, 1))
	br = bufio.NewReader(c)
	res, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
	}
	return c, br, res.StatusCode
}

const websocketHead = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"

func websocketAccept(r *http.Request) string {
	sum := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// acceptWebsocket switches protocols, with the header that rw has, says hello and hangs up.
func acceptWebsocket(rw http.ResponseWriter, r *http.Request) {
	h := rw.Header()
	h.Set("Connection", "Upgrade")
	h.Set("Upgrade", "websocket")
	h.Set("Sec-WebSocket-Accept", websocketAccept(r))
	rw.WriteHeader(http.StatusSwitchingProtocols)
	c, _, err := http.NewResponseController(rw).Hijack()
	if err != nil {
		return
	}
	_, _ = io.WriteString(c, "hello")
	_ = c.Close()
}

func TestUpgrade(t *testing.T) {
	w := newWorld(t, []bottle.Route{below("ws.example.com", "/ws"), whole("other.example.com")})
	w.upstream("ws.example.com", func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			_, _ = io.WriteString(rw, "no upgrade asked")
			return
		}
		accept := websocketAccept(r)
		if r.URL.Path == "/ws/wrong" {
			accept = "wrong"
		}
		c, brw, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\nSec-WebSocket-Accept: %s\r\n\r\n", r.Header.Get("Upgrade"), accept)
		_, _ = io.Copy(c, brw)
	})
	c, br, status := ws(t, w, "/ws/1", "websocket")
	if status != http.StatusSwitchingProtocols {
		t.Fatal(status)
	}
	_, _ = io.WriteString(c, "ping")
	b := make([]byte, 4)
	if _, err := io.ReadFull(br, b); err != nil || string(b) != "ping" {
		t.Fatalf("%q %v", b, err)
	}
	if _, _, status := ws(t, w, "/else", "websocket"); status != 403 {
		t.Error(status)
	}
	if _, _, status := ws(t, w, "/ws/wrong", "websocket"); status != 502 {
		t.Error(status)
	}
	// h2c would carry requests that nobody judges: the offer is not passed on.
	h2c, br2, status := ws(t, w, "/ws/1", "h2c")
	if status != 200 {
		t.Error(status)
	}
	_, _ = io.WriteString(h2c, "GET /else HTTP/1.1\r\nHost: other.example.com\r\n\r\n")
	if rest, _ := io.ReadAll(br2); len(rest) != 0 {
		t.Errorf("a second request was read: %q", rest)
	}
	w.setRoutes([]bottle.Route{whole("other.example.com")})
	if n, err := br.Read(b); err == nil {
		t.Errorf("the websocket was not cut: %d", n)
	}
}

// A client that never ends its head, or never says hello, loses its connection.
func TestSlowHeads(t *testing.T) {
	t.Parallel()
	w := newWorld(t, []bottle.Route{whole("a.example.com")})
	plain := w.dial()
	_, _ = io.WriteString(plain, "GET http://a.example.com/ HTTP/1.1\r\nHo")
	silent, _ := w.tunnel("a.example.com:443")
	inside, _ := w.tunnel("a.example.com:443")
	tc := tls.Client(inside, &tls.Config{RootCAs: w.roots, ServerName: "a.example.com"})
	_, _ = io.WriteString(tc, "GET / HTTP/1.1\r\nHo")
	speechless, _ := w.tunnel("b.example.com:443")
	tc2 := tls.Client(speechless, &tls.Config{RootCAs: w.roots, ServerName: "b.example.com", NextProtos: []string{"h2"}})
	if err := tc2.HandshakeContext(t.Context()); err != nil {
		t.Error(err)
	}
	start := time.Now()
	for name, c := range map[string]net.Conn{"plain": plain, "silent": silent, "inside": tc, "HTTP/2 without its preface": tc2} {
		if _, err := io.Copy(io.Discard, c); err != nil && strings.Contains(err.Error(), "i/o timeout") {
			t.Errorf("%s: still open after %s", name, time.Since(start))
		}
	}
}
