package egress_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"bottle/bottle"
	"bottle/bottle/egress"
)

// number is that of the environment, or else one that takes no time.
func number(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return otherwise
}

// memory returns what the child has resident, and the most that it ever had, in KiB.
func (c *child) memory(t *testing.T) (now, peak int) {
	t.Helper()
	b, err := os.ReadFile("/proc/" + strconv.Itoa(c.pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	of := func(name string) int {
		_, rest, _ := bytes.Cut(b, []byte(name+":"))
		n, err := strconv.Atoi(string(bytes.Fields(rest)[0]))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return of("VmRSS"), of("VmHWM")
}

// Idle connections are held, BOTTLE_CONNECTIONS of them (10000 for the numbers in reports), and
// the next is served.
func TestManyConnections(t *testing.T) {
	count := number("BOTTLE_CONNECTIONS", 50)
	w := newWorld(t, []bottle.Route{whole("a.example.com")})
	w.upstream("a.example.com", hello)
	for _, kind := range []struct {
		name  string
		speak func(c net.Conn)
	}{
		{"silent", func(net.Conn) {}},
		{"kept", func(c net.Conn) {
			_, _ = io.WriteString(c, "GET http://no.example.com/ HTTP/1.1\r\nHost: no.example.com\r\n\r\n")
			if _, err := io.ReadFull(c, make([]byte, 12)); err != nil {
				t.Fatal(err)
			}
		}},
		{"tunnels", func(c net.Conn) {
			_, _ = io.WriteString(c, "CONNECT no.example.com:443 HTTP/1.1\r\nHost: no.example.com:443\r\n\r\n")
			if _, err := io.ReadFull(c, make([]byte, len("HTTP/1.1 200 Connection established\r\n\r\n"))); err != nil {
				t.Fatal(err)
			}
			if err := tls.Client(c, &tls.Config{RootCAs: w.roots, ServerName: "no.example.com"}).HandshakeContext(t.Context()); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(kind.name, func(t *testing.T) {
			child := w.apart(0, 0)
			before, _ := child.memory(t)
			open := make([]net.Conn, 0, count-1)
			defer func() {
				for _, c := range open {
					_ = c.Close()
				}
			}()
			for range cap(open) {
				c, err := new(net.Dialer).DialContext(t.Context(), "tcp", w.addr)
				if err != nil {
					t.Fatal(err)
				}
				open = append(open, c)
				kind.speak(c)
			}
			if _, err := (egress.Client{Proxy: w.addr}).Routes(t.Context()); err != nil {
				t.Error(err)
			}
			after, peak := child.memory(t)
			t.Logf("%d connections: %d KiB, %d before, %.1f KiB each; peak %d KiB", count, after, before, float64(after-before)/float64(count), peak)
			if grew := after - before; grew > 32<<10+count*150 { // of a connection, with the race detector
				t.Errorf("%d KiB more", grew)
			}
		})
	}
}

// An agent that does not read what it asked for costs little, whatever there is to read:
// BOTTLE_READERS requests, 1000 for the numbers in reports.
func TestSlowReaders(t *testing.T) {
	count := number("BOTTLE_READERS", 6)
	for _, proto := range []string{"HTTP/1.1", "HTTP/2"} {
		t.Run(proto, func(t *testing.T) {
			w := newWorld(t, []bottle.Route{whole("big.example.com"), whole("small.example.com")})
			endless := func(rw http.ResponseWriter, r *http.Request) {
				for b := make([]byte, 64<<10); r.Context().Err() == nil; {
					if _, err := rw.Write(b); err != nil {
						return
					}
				}
			}
			serve, agent := func(host string, h http.HandlerFunc) { w.upstream(host, h) }, w.agent
			if proto == "HTTP/2" {
				serve, agent = w.upstream2, w.agent2
			}
			serve("big.example.com", endless)
			serve("small.example.com", hello)
			child := w.apart(0, 0)
			c := agent()
			if proto == "HTTP/2" {
				c.Transport.(*http.Transport).HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: 64 << 10} //nolint:errcheck // it is one
			}
			before, _ := child.memory(t)
			for range count {
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://big.example.com/", nil)
				if err != nil {
					t.Fatal(err)
				}
				res, err := c.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				defer res.Body.Close()
			}
			settled, since := 0, time.Now()
			eventually(t, "its memory to stay as it is", func() bool {
				if now, _ := child.memory(t); now > settled+256 {
					settled, since = now, time.Now()
				}
				return time.Since(since) > 100*time.Millisecond
			})
			if a := w.do(agent(), "GET", "https://small.example.com/", nil); a.status != 200 {
				t.Errorf("another: %+v", a)
			}
			after, peak := child.memory(t)
			t.Logf("%d responses of %s: %d KiB, %d before, %.1f KiB each; peak %d KiB", count, proto, after, before, float64(after-before)/float64(count), peak)
			if grew := peak - before; grew > 192<<10+count*512 {
				t.Errorf("%d KiB more", grew)
			}
		})
	}
}

// What TestLargeBodies and TestIdleWebsockets do, with egress and the built-in gate in processes of
// their own. It is for the numbers in reports: BOTTLE_LARGE in MiB, BOTTLE_WEBSOCKETS.
func TestMemoryOfBothLayers(t *testing.T)      { memoryOfBothLayers(t, "HTTP/1.1") }
func TestMemoryOfBothLayersHTTP2(t *testing.T) { memoryOfBothLayers(t, "HTTP/2") }

func memoryOfBothLayers(t *testing.T, proto string) {
	t.Helper()
	size, sockets := int64(number("BOTTLE_LARGE", 4))<<20, number("BOTTLE_WEBSOCKETS", 8)
	w := newWorld(t, nil, func(c *egress.Config) { c.GateSecret = gateSecret })
	const host = "ws.example.com"
	handler := func(rw http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("Upgrade") != "":
			c, brw, err := http.NewResponseController(rw).Hijack()
			if err != nil {
				return
			}
			defer c.Close()
			_, _ = fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %s\r\n\r\n", websocketAccept(r))
			_, _ = io.Copy(c, brw)
		case r.Method == http.MethodPost:
			n, err := io.Copy(io.Discard, r.Body)
			_, _ = fmt.Fprint(rw, n, err)
		default:
			_, _ = io.CopyN(rw, zeros{}, size)
		}
	}
	agent := w.agent
	if proto == "HTTP/2" {
		w.upstream2(host, handler)
		agent = w.agent2
	} else {
		w.upstream(host, handler)
	}
	w.gate.mu.Lock()
	addr, err := net.ResolveTCPAddr("tcp", w.gate.to[host+":443"])
	w.gate.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	gate := w.builtIn(0, bottle.AllowEntry{Host: host, Ports: []int{addr.Port}})
	w.setRoutes([]bottle.Route{{Host: host, Ports: []int{addr.Port}}})
	child := w.apart(0, 0)
	url := fmt.Sprintf("https://%s:%d/", host, addr.Port)
	tell := func(what string) {
		_, e := child.memory(t)
		_, g := gate.memory(t)
		t.Logf("%s: peak of egress %d MiB, of the gate %d MiB", what, e>>10, g>>10)
		if e > 256<<10 || g > 256<<10 {
			t.Error("too much")
		}
	}
	tell("start")
	c := agent()
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		spoke, took := transfer(t, c, method, url, size)
		tell(fmt.Sprintf("%s %s of %d MiB, %.0f MiB/s", spoke, method, size>>20, float64(size>>20)/took.Seconds()))
	}
	if proto == "HTTP/2" {
		return // which has no websockets here
	}
	for range sockets {
		conn, status := w.tunnel(strings.TrimSuffix(strings.TrimPrefix(url, "https://"), "/"))
		if status != http.StatusOK {
			t.Fatal(status)
		}
		c := tls.Client(conn, &tls.Config{RootCAs: w.roots, ServerName: host})
		_, _ = fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s:%d\r\n%s\r\n", host, addr.Port, websocketHead)
		b := make([]byte, 12)
		if _, err := io.ReadFull(c, b); err != nil || string(b) != "HTTP/1.1 101" {
			t.Fatalf("%q %v", b, err)
		}
	}
	tell(fmt.Sprint(sockets, " idle websockets"))
}
