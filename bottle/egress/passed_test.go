package egress_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"bottle/bottle"
	"bottle/bottle/egress"
	"bottle/bottle/fdpass"
)

// What the gate takes away, and what it was the gate of when it dies, is cut, and never looks as if it had
// ended; what is unrelated goes on.
func TestGateCutsWhatFlows(t *testing.T) {
	for _, mode := range []bottle.TLSMode{bottle.Intercept, bottle.Passthrough} {
		t.Run(string(mode), func(t *testing.T) {
			eachGate(t, func(t *testing.T, w *world, l net.Listener, passing *net.UnixConn) {
				stop := make(chan struct{})
				defer close(stop)
				// Without a length or chunks, so that a clean end of the connection would be one of the body.
				untilClosed := func(rw http.ResponseWriter, _ *http.Request) {
					c, _, err := http.NewResponseController(rw).Hijack()
					if err != nil {
						t.Error(err)
						return
					}
					defer c.Close()
					_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nfirst\n")
					<-stop
				}
				chatter := func(rw http.ResponseWriter, r *http.Request) {
					_ = http.NewResponseController(rw).EnableFullDuplex()
					_ = http.NewResponseController(rw).Flush()
					for lines := bufio.NewScanner(r.Body); lines.Scan(); {
						_, _ = io.WriteString(rw, lines.Text()+"\n")
						_ = http.NewResponseController(rw).Flush()
					}
				}
				hosts := []bottle.Host{"a.example.com", "b.example.com", "other.example.com"}
				var routes []bottle.Route
				var list []bottle.AllowEntry
				resolve := map[string]string{}
				for _, h := range hosts {
					handler := untilClosed
					if h == "other.example.com" {
						handler = chatter
					}
					ports := []int{w.serveTLS(string(h), handler)}
					routes = append(routes, bottle.Route{Host: h, Ports: ports, TLS: mode})
					list = append(list, bottle.AllowEntry{Host: h, Ports: ports})
					resolve[string(h)] = "127.0.0.1"
				}
				w.roots.AddCert(w.ca.cert)
				w.setRoutes(routes)
				g := startGate(t, l, passing, resolve, list...)

				open := func(i int, body io.Reader) *bufio.Reader {
					req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+string(hosts[i])+":"+strconv.Itoa(list[i].Ports[0])+"/", body)
					if err != nil {
						t.Fatal(err)
					}
					res, err := w.agent().Do(req)
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { _ = res.Body.Close() })
					return bufio.NewReader(res.Body)
				}
				reads := func(r *bufio.Reader, want string) {
					t.Helper()
					if s, err := r.ReadString('\n'); err != nil || s != want {
						t.Fatalf("%q, %v", s, err)
					}
				}
				cut := func(what string, r *bufio.Reader) {
					t.Helper()
					if rest, err := io.ReadAll(r); len(rest) != 0 || err == nil {
						t.Errorf("%s: read %q, %v", what, rest, err)
					}
				}
				say, words := net.Pipe()
				defer say.Close()
				a, b, other := open(0, nil), open(1, nil), open(2, words)
				reads(a, "first\n")
				reads(b, "first\n")
				ping := func() {
					t.Helper()
					if _, err := io.WriteString(say, "ping\n"); err != nil {
						t.Fatal(err)
					}
					reads(other, "ping\n")
				}
				ping()
				if n := g.allow(list[1:]...)["passed"]; (n >= 3) != (passing != nil) {
					t.Errorf("%d connections were passed", n)
				}
				cut("what became forbidden", a)
				ping()
				g.stop()
				cut("whose gate is gone", b)
			})
		})
	}
}

// What is passed must be a connection that was asked for; all else is closed, and no reason to stop.
func TestPassedIsStrict(t *testing.T) {
	var pass *net.UnixConn
	asked := make(chan string)
	w := newWorld(t, []bottle.Route{whole("a.example.com")}, hopWith(t, func(c net.Conn) {
		req, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		name := req.Header.Get(fdpass.Header)
		asked <- name
		<-asked // it was sent, whatever it was
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n"+fdpass.Header+": "+name+"\r\n\r\n")
		_, _ = io.Copy(io.Discard, c)
	}), func(c *egress.Config) { pass, c.Passed = passingPair(t) })
	defer pass.Close()

	stranger, peer := net.Conn(nil), net.Conn(nil)
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // a test's listener
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if stranger, err = (&net.Dialer{}).DialContext(context.Background(), "tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if peer, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	if err := fdpass.Send(pass, []byte("nobody asked"), stranger.(*net.TCPConn)); err != nil { //nolint:errcheck // it is TCP
		t.Fatal(err)
	}
	_ = stranger.Close()
	if _, err := peer.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("what nobody asked for is still open: %v", err)
	}

	answered := make(chan answer)
	go func() { answered <- w.get("https://a.example.com/") }()
	name := <-asked
	if err := fdpass.Send(pass, []byte(name)); err != nil { // bears no connection
		t.Fatal(err)
	}
	asked <- ""
	if a := <-answered; a.status != http.StatusBadGateway || a.header.Get("X-Bottle-Layer") != "pipelock" || !strings.Contains(a.body, "0 descriptors") {
		t.Errorf("%d %q", a.status, a.body)
	}
	if name == "" {
		t.Errorf("asked by %q", name)
	}
}
