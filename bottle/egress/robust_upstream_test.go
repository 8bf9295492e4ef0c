package egress_test

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"bottle/bottle"
	"bottle/bottle/egress"
)

// badUpstream hands each request that comes by HTTP/1.1 to act, which is alone with the connection
// and has it closed when it returns.
func (w *world) badUpstream(host string, act func(c net.Conn)) (port int) {
	w.t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		w.t.Fatal(err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{w.ca.leaf(w.t, host)}}
	w.gate.route(host+":443", l.Addr().String())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			raw, err := l.AcceptTCP()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer raw.Close()
				br := bufio.NewReader(raw)
				c := net.Conn(raw)
				if b, err := br.Peek(1); err == nil && b[0] == 0x16 { // TLS
					c = tls.Server(&bufferedConn{raw, br}, config)
					br = bufio.NewReader(c)
				}
				if _, err := http.ReadRequest(br); err == nil {
					act(&withRaw{c, raw})
				}
			})
		}
	})
	w.t.Cleanup(func() {
		_ = l.Close()
		w.stop()
		wg.Wait()
	})
	return l.Addr().(*net.TCPAddr).Port //nolint:errcheck // it is one
}

type bufferedConn struct {
	net.Conn
	r *bufio.Reader
}

func (c *bufferedConn) Read(p []byte) (int, error) { return c.r.Read(p) }

type withRaw struct {
	net.Conn
	raw *net.TCPConn
}

func say(text string) func(net.Conn) {
	return func(c net.Conn) { _, _ = io.WriteString(c, text) }
}

// reset sends text, and then a reset once the peer has taken that: it is told by what it sends.
func reset(text string) func(net.Conn) {
	return func(c net.Conn) {
		_, _ = io.WriteString(c, text)
		_ = c.(*withRaw).raw.SetLinger(0) //nolint:errcheck // it is one
	}
}

// drip sends text over and over, piece by piece, until nobody wants it any more.
func drip(text string) func(net.Conn) {
	return func(c net.Conn) {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for range tick.C {
			if _, err := io.WriteString(c, text); err != nil {
				return
			}
		}
	}
}

// hold sends text and waits until nobody wants more.
func hold(text string) func(net.Conn) {
	return func(c net.Conn) {
		_, _ = io.WriteString(c, text)
		_, _ = io.Copy(io.Discard, c)
	}
}

// fetch returns what the agent gets, and whether it is cut: its body does not come to an end.
func fetch(t *testing.T, c *http.Client, url string) (a answer, cut bool) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatalf("%s: %v", url, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return answer{res.StatusCode, res.Header, string(b)}, err != nil
}

const ok200 = "HTTP/1.1 200 OK\r\n"

type badCase struct {
	name   string
	act    func(net.Conn)
	status int
	text   string // of the refusal, or the body
	cut    bool   // the agent is shown that it is not whole
}

func badCases() []badCase {
	return []badCase{
		{"closes", say(""), 502, "closed the connection without an answer", false},
		{"resets", reset(""), 502, "connection", false},
		{"closes in the head", say(ok200 + "X-A: b\r\n"), 502, "closed the connection without an answer", false},
		{"garbage", say("\x00\xff garbage\r\n\r\n"), 502, "malformed HTTP", false},
		{"another protocol", say("SSH-2.0-OpenSSH_9.9\r\n\r\n"), 502, "malformed HTTP", false},
		{"a status that is none", say("HTTP/1.1 xyz OK\r\n\r\n"), 502, "malformed HTTP", false},
		{"a status line without end", say("HTTP/1.1 200 " + strings.Repeat("a", 1<<20)), 502, "", false},
		{"a large field", say(ok200 + "X-A: " + strings.Repeat("a", 1<<20) + "\r\n\r\n"), 502, "", false},
		{"many fields", say(ok200 + strings.Repeat("X-A: b\r\n", 1<<17) + "\r\n"), 502, "", false},
		{"lengths that differ", say(ok200 + "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"), 502, "", false},
		{"a negative length", say(ok200 + "Content-Length: -3\r\n\r\n"), 502, "", false},
		{"two encodings", say(ok200 + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"), 502, "", false},
		{"says nothing", hold(""), 504, "did not answer in time", false},
		{"drips its head", drip("H"), 504, "did not answer in time", false},
		{"drips fields", func(c net.Conn) { say(ok200)(c); drip("X-A: b\r\n")(c) }, 504, "did not answer in time", false},
		{"informs for ever", drip("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"), 504, "did not answer in time", false},
		{"a body shorter than its length", say(ok200 + "Content-Length: 10\r\n\r\nabcd"), 200, "abcd", true},
		{"a body longer than its length", say(ok200 + "Content-Length: 4\r\n\r\nabcdHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"), 200, "abcd", false},
		{"a reset in the body", reset(ok200 + "Content-Length: 10\r\n\r\nabcd"), 200, "", true},
		{"a chunk without its end", say(ok200 + "Transfer-Encoding: chunked\r\n\r\n5\r\nabc"), 200, "abc", true},
		{"chunks without their end", say(ok200 + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"), 200, "abc", true},
		{"a chunk's size that is none", say(ok200 + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n"), 200, "abc", true},
		{"a large trailer", say(ok200 + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-A: " + strings.Repeat("a", 1<<20) + "\r\n\r\n"), 200, "abc", true},
	}
}

// badHost is the upstream of the i-th case.
func badHost(i int) string { return fmt.Sprintf("b%d.example.com", i) }

// hurried leaves upstreams no time to speak of. It is for those that would take for ever.
func hurried(cfg *egress.Config) { cfg.Limit(0, 0, 0, 200*time.Millisecond) }

// badWorlds makes a world for the cases that time out and one for the others, and returns that of each case.
func badWorlds(t *testing.T, opts ...option) func(status int) *world {
	routes := []bottle.Route{whole("*.example.com")}
	late, others := newWorld(t, routes, append(opts, hurried)...), newWorld(t, routes, opts...)
	return func(status int) *world {
		if status == http.StatusGatewayTimeout {
			return late
		}
		return others
	}
}

// What an upstream does wrong, the agent hears as such, in the upstream's name; what is not whole
// never looks whole.
func TestBadUpstreams(t *testing.T) {
	of := badWorlds(t)
	for i, tc := range badCases() {
		of(tc.status).badUpstream(badHost(i), tc.act)
	}
	for _, proto := range []struct {
		name  string
		agent func(*world) *http.Client
	}{{"HTTP/1.1", (*world).agent}, {"HTTP/2", (*world).agent2}} {
		t.Run(proto.name, func(t *testing.T) {
			for i, tc := range badCases() {
				t.Run(tc.name, func(t *testing.T) {
					t.Parallel()
					a, cut := fetch(t, proto.agent(of(tc.status)), "https://"+badHost(i)+"/")
					tc.check(t, a, cut)
				})
			}
		})
	}
}

func (tc badCase) check(t *testing.T, a answer, cut bool) {
	t.Helper()
	layer := ""
	if tc.status != 200 {
		layer = "upstream"
	}
	if a.status != tc.status || cut != tc.cut || a.header.Get("X-Bottle-Layer") != layer || !strings.Contains(a.body, tc.text) ||
		layer != "" && !strings.Contains(a.body, "layer: "+layer+"\nreason: ") || strings.Contains(a.body, "127.0.0.1") || len(a.body) > 2000 {
		t.Errorf("%d, cut %t, layer %q: %q", a.status, cut, a.header.Get("X-Bottle-Layer"), a.body)
	}
}

// The same without TLS, by way of the built-in gate, which reads and writes those itself.
func TestBadUpstreamsOfPlainRequests(t *testing.T) {
	of := badWorlds(t, func(c *egress.Config) { c.GateSecret = gateSecret })
	var entries []bottle.AllowEntry
	var routes []bottle.Route
	for i, tc := range badCases() {
		port := of(tc.status).badUpstream(badHost(i), tc.act)
		entries = append(entries, bottle.AllowEntry{Host: bottle.Host(badHost(i)), Ports: []int{port}})
		routes = append(routes, bottle.Route{Host: bottle.Host(badHost(i)), Ports: []int{port}})
	}
	for _, status := range []int{502, 504} {
		w := of(status)
		w.builtIn(0, entries...)
		w.setRoutes(routes)
	}
	t.Run("all", func(t *testing.T) {
		for i, tc := range badCases() {
			t.Run(tc.name, func(t *testing.T) {
				t.Parallel()
				a, cut := fetch(t, of(tc.status).agent(), fmt.Sprintf("http://%s:%d/", badHost(i), entries[i].Ports[0]))
				if tc.status == 502 {
					tc.text = "" // the gate's words
				}
				tc.check(t, a, cut)
			})
		}
	})
}

// The same of those that speak HTTP/2.
func TestBadUpstreamsOfHTTP2(t *testing.T) {
	of := badWorlds(t)
	head := func(fr *http2.Framer, id uint32, fields ...string) {
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: headBlock(append([]string{":status", "200"}, fields...)...), EndHeaders: true})
	}
	cases := []struct {
		name   string
		answer func(fr *http2.Framer, id uint32)
		status int
		text   string
		cut    bool
	}{
		{"resets", func(fr *http2.Framer, id uint32) { _ = fr.WriteRSTStream(id, http2.ErrCodeInternal) }, 502, "", false},
		{"goes away", func(fr *http2.Framer, id uint32) {
			_ = fr.WriteGoAway(id-1, http2.ErrCodeInternal, []byte("127.0.0.1"))
		}, 502, "", false},
		{"garbage", func(fr *http2.Framer, _ uint32) { _ = fr.WriteRawFrame(0, 0, 0, slices.Repeat([]byte{0xff}, 64)) }, 502, "", false},
		{"a frame over its bound", func(fr *http2.Framer, id uint32) {
			_ = fr.WriteRawFrame(http2.FrameHeaders, 4, id, make([]byte, 2<<20))
		}, 502, "", false},
		{"a head that is none", func(fr *http2.Framer, id uint32) {
			_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, EndHeaders: true})
		}, 502, "", false},
		{"no status", func(fr *http2.Framer, id uint32) {
			_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: headBlock("a", "b"), EndHeaders: true, EndStream: true})
		}, 502, "", false},
		{"many fields", func(fr *http2.Framer, id uint32) {
			_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: headBlock(":status", "200")})
			for i := range 200 {
				if fr.WriteContinuation(id, i == 199, headBlock(strings.Split(strings.Repeat("x-a,"+strings.Repeat("b", 100)+",", 100)+"x-a,b", ",")...)) != nil {
					return
				}
			}
		}, 502, "", false},
		{"says nothing", func(*http2.Framer, uint32) {}, 504, "did not answer in time", false},
		{"a head without its end", func(fr *http2.Framer, id uint32) {
			_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: headBlock(":status", "200")})
		}, 504, "did not answer in time", false},
		{"a body shorter than its length", func(fr *http2.Framer, id uint32) {
			head(fr, id, "content-length", "10")
			_ = fr.WriteData(id, true, []byte("abcd"))
		}, 200, "abcd", true},
		{"a body longer than its length", func(fr *http2.Framer, id uint32) {
			head(fr, id, "content-length", "2")
			_ = fr.WriteData(id, true, []byte("abcd"))
		}, 200, "", true},
		{"a reset in the body", func(fr *http2.Framer, id uint32) {
			head(fr, id)
			_ = fr.WriteData(id, false, []byte("abcd"))
			_ = fr.WriteRSTStream(id, http2.ErrCodeInternal)
		}, 200, "", true},
		{"an end in the body", func(fr *http2.Framer, id uint32) {
			head(fr, id)
			_ = fr.WriteData(id, false, []byte("abcd"))
			_ = fr.WriteRawFrame(http2.FrameSettings, 0, id, nil) // SETTINGS of a stream: the connection ends
		}, 200, "", true},
	}
	for i, tc := range cases {
		of(tc.status).rawUpstream(badHost(i), tc.answer)
	}
	t.Run("all", func(t *testing.T) {
		for i, tc := range cases {
			t.Run(tc.name, func(t *testing.T) {
				t.Parallel()
				a, cut := fetch(t, of(tc.status).agent2(), "https://"+badHost(i)+"/")
				badCase{status: tc.status, text: tc.text, cut: tc.cut}.check(t, a, cut)
			})
		}
	})
}

// A pipelock that takes connections and says nothing does not hold a request for ever.
func TestSilentPipelock(t *testing.T) {
	w := newWorld(t, []bottle.Route{whole("a.example.com")}, hurried)
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	writeHop(t, w.cfg.HopFile, l.Addr().String())
	w.reload <- struct{}{}
	w.waitStatus(func(st bottle.DaemonStatus) bool { return st.Hop == l.Addr().String() })
	a, _ := fetch(t, w.agent(), "http://a.example.com/")
	if a.status != http.StatusGatewayTimeout {
		t.Errorf("%+v", a)
	}
}

// timedOut tells a deadline of the test's own from what the peer did.
func timedOut(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
