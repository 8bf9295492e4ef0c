package egress_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"bottle/bottle"
)

// A rawUpstream speaks HTTP/2 by hand.
type rawUpstream struct {
	requests atomic.Int32
	open     atomic.Int32 // connections
}

// rawUpstream answers each request's head by what answer does.
func (w *world) rawUpstream(host string, answer func(fr *http2.Framer, id uint32)) *rawUpstream {
	w.t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{w.ca.leaf(w.t, host)}, NextProtos: []string{"h2"}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.gate.route(host+":443", l.Addr().String())
	u := new(rawUpstream)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			u.open.Add(1)
			wg.Go(func() {
				defer u.open.Add(-1)
				defer c.Close()
				if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
					return
				}
				fr := http2.NewFramer(c, c)
				_ = fr.WriteSettings()
				for {
					f, err := fr.ReadFrame()
					if err != nil {
						return
					}
					switch f := f.(type) {
					case *http2.SettingsFrame:
						if !f.IsAck() {
							_ = fr.WriteSettingsAck()
						}
					case *http2.PingFrame:
						if !f.IsAck() {
							_ = fr.WritePing(true, f.Data)
						}
					case *http2.HeadersFrame:
						u.requests.Add(1)
						answer(fr, f.StreamID)
					}
				}
			})
		}
	})
	w.t.Cleanup(func() {
		_ = l.Close()
		w.stop()
		wg.Wait()
	})
	return u
}

// headBlock is the head of an answer.
func headBlock(fields ...string) []byte {
	var b strings.Builder
	enc := hpack.NewEncoder(&b)
	for f := range slices.Chunk(fields, 2) {
		_ = enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	return []byte(b.String())
}

// What a grant for one use lets through is sent once, whatever its upstream says of that;
// else HTTP/2 has requests sent again that were not looked at.
func TestOnceIsSentOnceByHTTP2(t *testing.T) {
	once := func(host, request string) bottle.Route {
		r := whole(host)
		r.Grant = &bottle.Grant{Request: request, By: "1000 op", At: time.Now(), Duration: bottle.Duration{Kind: bottle.Once}}
		return r
	}
	w := newWorld(t, []bottle.Route{
		once("refused.example.com", "r1"), once("away.example.com", "r2"), once("reset.example.com", "r3"), once("good.example.com", "r4"), whole("always.example.com"),
	})
	refuse := func(fr *http2.Framer, id uint32) { _ = fr.WriteRSTStream(id, http2.ErrCodeRefusedStream) }
	good := func(fr *http2.Framer, id uint32) {
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: headBlock(":status", "204"), EndHeaders: true, EndStream: true})
	}
	for _, tc := range []struct {
		host   string
		status string
		answer func(*http2.Framer, uint32)
	}{
		{"refused.example.com", "502", refuse},
		{"away.example.com", "502", func(fr *http2.Framer, _ uint32) { _ = fr.WriteGoAway(0, http2.ErrCodeNo, nil) }},
		{"reset.example.com", "502", func(fr *http2.Framer, id uint32) { _ = fr.WriteRSTStream(id, http2.ErrCodeInternal) }},
		{"good.example.com", "204", good},
	} {
		t.Run(tc.host, func(t *testing.T) {
			u := w.rawUpstream(tc.host, tc.answer)
			h := w.h2(tc.host)
			h.get(1, tc.host, "/")
			if a := h.answer(1); a.status != tc.status {
				t.Errorf("%+v", a)
			}
			h.get(3, tc.host, "/")
			if a := h.answer(3); a.status != "403" {
				t.Errorf("the second request: %+v", a)
			}
			if n := u.requests.Load(); n != 1 {
				t.Errorf("it was sent %d times", n)
			}
			eventually(t, "the end of its connection", func() bool { return u.open.Load() == 0 })
		})
	}
	// Without such a grant a request that was not looked at is sent again.
	var first atomic.Bool
	u := w.rawUpstream("always.example.com", func(fr *http2.Framer, id uint32) {
		if first.CompareAndSwap(false, true) {
			refuse(fr, id)
			return
		}
		good(fr, id)
	})
	h := w.h2("always.example.com")
	h.get(1, "always.example.com", "/")
	if a := h.answer(1); a.status != "204" || u.requests.Load() != 2 {
		t.Errorf("%+v after %d", a, u.requests.Load())
	}
}

// A connection that was made to learn what the upstream speaks goes with its host's route.
func TestUnusedFirstConnectionIsClosedByAReload(t *testing.T) {
	w := newWorld(t, []bottle.Route{whole("a.example.com"), whole("b.example.com")})
	u := w.rawUpstream("a.example.com", func(*http2.Framer, uint32) {})
	w.h2("a.example.com")
	if n := u.open.Load(); n != 1 {
		t.Fatalf("%d connections", n)
	}
	w.setRoutes([]bottle.Route{whole("b.example.com")})
	eventually(t, "its end", func() bool { return u.open.Load() == 0 })
}

// A connection through a pipelock that was replaced is closed when its last stream ends.
func TestHTTP2DrainsTheOldPipelock(t *testing.T) {
	w := newWorld(t, []bottle.Route{whole("a.example.com")})
	release := make(chan struct{})
	w.upstream2("a.example.com", func(rw http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(rw, "data: first\n\n")
		_ = http.NewResponseController(rw).Flush()
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	body := w.openBy(w.agent2(), "https://a.example.com/")
	old := w.gate
	w.gate = newGate(t)
	old.mu.Lock()
	w.gate.route("a.example.com:443", old.to["a.example.com:443"])
	old.mu.Unlock()
	writeHop(t, w.cfg.HopFile, w.gate.addr)
	w.reload <- struct{}{}
	w.waitStatus(func(st bottle.DaemonStatus) bool { return st.Hop == w.gate.addr })
	if old.open.n.Load() != 1 {
		t.Errorf("%d connections of the old one are open", old.open.n.Load())
	}
	close(release)
	if _, err := io.Copy(io.Discard, body); err != nil {
		t.Errorf("the stream was cut: %v", err)
	}
	eventually(t, "the end of the old one's connection", func() bool { return old.open.n.Load() == 0 })
}

// The bounds hold, whatever an agent sends, and other connections do not notice.
func TestFloodsOfFrames(t *testing.T) {
	w := newWorld(t, []bottle.Route{whole("a.example.com")})
	var now, most atomic.Int32
	w.upstream2("a.example.com", func(rw http.ResponseWriter, r *http.Request) {
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		if r.URL.Path == "/wait" {
			<-r.Context().Done()
		}
		protocols(rw, r)
	})
	const host = "a.example.com"
	head := []string{":method", "GET", ":scheme", "https", ":authority", host, ":path", "/wait"}
	// ended reads until the connection ends and returns its last words, if any.
	ended := func(h *h2) string {
		last := "no GOAWAY"
		for {
			f, err := h.fr.ReadFrame()
			if g, ok := f.(*http2.GoAwayFrame); ok {
				last = g.ErrCode.String()
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return "open"
			}
			if err != nil {
				return last
			}
		}
	}
	for _, tc := range []struct {
		name  string
		times int
		send  func(h *h2, i int) error
		want  string // the last words; "*" if there may be none, "open" if the connection goes on
	}{
		{"streams that are reset at once", 2_000, func(h *h2, i int) error {
			id := uint32(2*i + 1)
			err := h.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: h.block(head...), EndHeaders: true, EndStream: true})
			return errors.Join(err, h.fr.WriteRSTStream(id, http2.ErrCodeCancel))
		}, ""},
		{"heads without end", 1_000, func(h *h2, i int) error {
			block := h.block("x-"+fmt.Sprint(i), strings.Repeat("x", 8000))
			if i == 0 {
				return h.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block})
			}
			return h.fr.WriteContinuation(1, false, block)
		}, "*"},
		{"pings whose answers are not read", 20_000, func(h *h2, _ int) error { return h.fr.WritePing(false, [8]byte{}) }, ""},
		// One acknowledgement waits at most.
		{"settings whose answers are not read", 2_000, func(h *h2, _ int) error { return h.fr.WriteSettings() }, ""},
		{"a window of nothing", 10, func(h *h2, _ int) error { return h.fr.WriteWindowUpdate(0, 1<<31-1) }, "FLOW_CONTROL_ERROR"},
		{"more than was allowed", 100, func(h *h2, i int) error {
			if i == 0 {
				return h.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: h.block(head...), EndHeaders: true})
			}
			return h.fr.WriteData(1, false, make([]byte, 16<<10))
		}, ""}, // the stream is reset, and what comes for it is thrown away
		{"a frame over its bound", 10, func(h *h2, _ int) error { return h.fr.WriteData(1, false, make([]byte, 2<<20)) }, "FRAME_SIZE_ERROR"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := w.h2(host)
			h.must(h.c.SetDeadline(time.Now().Add(time.Minute)))
			sent := make(chan int, 1)
			go func() {
				i := 0
				for ; i < tc.times; i++ {
					if err := tc.send(h, i); err != nil {
						break
					}
				}
				sent <- i
			}()
			if n := <-sent; tc.want != "" {
				if last := ended(h); last == "open" || tc.want != "*" && last != tc.want {
					t.Errorf("after %d: %s", n, last)
				}
			}
			if a := w.do(w.agent2(), "GET", "https://a.example.com/", nil); a.status != 200 {
				t.Errorf("the next connection: %+v", a)
			}
		})
	}
	t.Run("streams over their number", func(t *testing.T) {
		h := w.h2(host)
		for i := range 101 {
			h.ask(uint32(2*i+1), head...)
		}
		if a := h.answer(201); !a.wasReset || a.reset != http2.ErrCodeProtocol && a.reset != http2.ErrCodeRefusedStream {
			t.Errorf("%+v", a)
		}
	})
	t.Run("a head over 64 KiB", func(t *testing.T) {
		h := w.h2(host)
		half := strings.Repeat("x", 33<<10)
		h.head(1, append(head, "x-a", half, "x-b", half)...)
		if a := h.answer(1); a.status != "431" {
			t.Errorf("%+v", a)
		}
		h.head(3, ":method", "GET", ":scheme", "https", ":authority", host, ":path", "/", "x-a", strings.Repeat("x", 60<<10))
		if a := h.answer(3); a.status != "200" {
			t.Errorf("one under it: %+v", a)
		}
	})
	if n := most.Load(); n > 110 {
		t.Errorf("%d requests at once upstream", n)
	}
}

// head sends a head that takes several frames.
func (h *h2) head(id uint32, fields ...string) {
	h.w.t.Helper()
	block := h.block(fields...)
	for first := true; first || len(block) > 0; first = false {
		n := min(len(block), 16<<10)
		if first {
			h.must(h.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block[:n], EndHeaders: n == len(block), EndStream: true}))
		} else {
			h.must(h.fr.WriteContinuation(id, n == len(block), block[:n]))
		}
		block = block[n:]
	}
}
