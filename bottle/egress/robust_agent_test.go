package egress_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"bottle/bottle"
	"bottle/bottle/egress"
)

// An agent that sends a byte now and then loses its connection as one that sends nothing does, by
// the time at which it should have been done.
func TestSlowAgents(t *testing.T) {
	const host = "a.example.com"
	routes := []bottle.Route{whole(host)}
	heads := newWorld(t, routes, func(c *egress.Config) { c.Limit(0, time.Second, 0, 0) })
	hellos := newWorld(t, routes, func(c *egress.Config) { c.Limit(0, 0, 200*time.Millisecond, 0) })
	opened := func(w *world) net.Conn {
		c, status := w.tunnel(host + ":443")
		if status != http.StatusOK {
			t.Fatal(status)
		}
		return c
	}
	inTLS := func(c net.Conn) *tls.Conn {
		return tls.Client(c, &tls.Config{RootCAs: heads.roots, ServerName: host})
	}
	for _, tc := range []struct {
		name string
		open func() net.Conn
		text string // sent byte by byte, the last one over and over
	}{
		{"a request's head", heads.dial, "GET http://a.example.com/ HTTP/1.1\r\nHost: a.example.com\r\nX: y"},
		{"a CONNECT", heads.dial, "CONNECT a.example.com:443 HTTP/1.1\r\nX: y"},
		{"a request line", heads.dial, "GET /a"},
		{"a head inside", func() net.Conn { return inTLS(opened(heads)) }, "GET / HTTP/1.1\r\nX: y"},
		{"a ClientHello", func() net.Conn { return opened(hellos) }, "\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03\x00"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c := tc.open()
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			var err error
			for i := 0; err == nil; i++ {
				_, err = io.WriteString(c, tc.text[min(i, len(tc.text)-1):][:1])
				<-tick.C
			}
			if timedOut(err) {
				t.Errorf("still open: %v", err)
			}
		})
	}
}

// A head that is too large or has too many fields is refused in words, by either door.
func TestFloodsOfFields(t *testing.T) {
	const host = "a.example.com"
	w := newWorld(t, []bottle.Route{whole(host)})
	w.upstream(host, hello)
	w.plainUpstream(host, hello)
	for _, tc := range []struct {
		name, fields string
		status       int
	}{
		{"many", strings.Repeat("x: y\r\n", 20_000), 431},
		{"large", "x: " + strings.Repeat("y", 1<<20) + "\r\n", 431},
		{"many lines without a colon", strings.Repeat("x\r\n", 20_000), 400},
		{"as many as may be", strings.Repeat("x: y\r\n", 10_000), 200},
	} {
		for _, door := range []string{"plain", "intercepted"} {
			t.Run(tc.name+"/"+door, func(t *testing.T) {
				c, target := w.dial(), "http://"+host+"/"
				if door == "intercepted" {
					conn, _ := w.tunnel(host + ":443")
					c, target = tls.Client(conn, &tls.Config{RootCAs: w.roots, ServerName: host}), "/"
				}
				sent := make(chan struct{})
				go func() { // egress need not read it all
					defer close(sent)
					_, _ = fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\n%s\r\n", target, host, tc.fields)
				}()
				res, err := http.ReadResponse(bufio.NewReader(c), nil)
				if err != nil {
					t.Fatal(err)
				}
				defer res.Body.Close()
				b, _ := io.ReadAll(res.Body)
				if tc.status == 200 && res.StatusCode == 200 {
					_ = c.Close()
					<-sent
					return
				}
				if res.StatusCode != tc.status || !strings.Contains(string(b), "layer: egress\nreason: ") {
					t.Errorf("%d %q", res.StatusCode, b)
				}
				_ = c.Close()
				<-sent
			})
		}
	}
}

// Who comes when there are too many connections is told so, also if it has spoken first; those
// that are there go on; and there is room again when some have gone.
func TestTooManyConnections(t *testing.T) {
	const most = 32
	w := newWorld(t, []bottle.Route{whole("a.example.com")}, func(c *egress.Config) { c.Limit(most, 0, 0, 0) })
	w.upstream("a.example.com", hello)
	agent := w.agent()
	if a := w.do(agent, "GET", "https://a.example.com/", nil); a.status != 200 { // and its connection stays
		t.Fatalf("%+v", a)
	}
	var open []net.Conn
	for range most - 1 {
		open = append(open, w.dial())
	}
	for range 200 { // more than may wait to be told
		c := w.dial()
		_, _ = io.WriteString(c, "CONNECT a.example.com:443 HTTP/1.1\r\nHost: a.example.com:443\r\n\r\n")
		b, err := io.ReadAll(c)
		if len(b) == 0 && err != nil {
			continue // a reset overtook it, which is not so of the first ones
		}
		if !strings.HasPrefix(string(b), "HTTP/1.1 503 ") || !strings.Contains(string(b), "X-Bottle-Layer: egress") ||
			!strings.Contains(string(b), "too many open connections") {
			t.Fatalf("%q %v", b, err)
		}
		_ = c.Close()
	}
	if a := w.do(agent, "GET", "https://a.example.com/", nil); a.status != 200 {
		t.Errorf("a connection that was there: %+v", a)
	}
	for _, c := range open[:10] {
		_ = c.Close()
	}
	eventually(t, "room again", func() bool {
		_, err := egress.Client{Proxy: w.addr}.Routes(t.Context())
		return err == nil
	})
}
