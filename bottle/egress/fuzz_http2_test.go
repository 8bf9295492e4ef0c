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

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// FuzzHTTP2 sends a sequence of frames into an intercepted tunnel, to an upstream that speaks
// HTTP/2 or one that does not. Whatever arrives there is what [mayArrive] allows, in the one
// form, with no token but at its own host, and the agent is shown none.
func FuzzHTTP2(f *testing.F) {
	worlds := []*corpusWorld{newCorpusWorld(f, "stand-in"), newCorpusWorld(f, "stand-in")}
	worlds[0].rec.speak(true)
	hosts := []string{"api.example.com", "open.example.com", "cred.example.com", "keyed.example.com", "header.example.com", "evil.test"}
	for _, c := range readCorpus(f, "http2") {
		for at, host := range hosts {
			if host != c.host {
				continue
			}
			for up := range worlds {
				if b := c.packed(f); len(b) > 0 && len(b) < 4096 {
					f.Add(uint8(2*at+up), b)
				}
			}
		}
	}
	f.Fuzz(func(t *testing.T, at uint8, b []byte) {
		w, host := worlds[at%2], hosts[int(at/2)%len(hosts)]
		w.rec.beginFrames(w.nextTag(), false, func([]byte) []byte { return []byte(plainReply) }, func(q *seenStream) []rawFrame {
			all, _ := frames("HEADERS S && :status: 200 && content-length: 2 && DATA S end ok", nil, q.id)
			return all
		})
		answer := fuzzFrames(t, w.addr, host, unpack(b))
		for _, token := range corpusTokens() {
			if strings.Contains(answer, token) {
				t.Errorf("the agent is shown a token: %q", answer)
			}
		}
		for _, c := range w.rec.finish(t) {
			if c.host == "" && len(c.raw) == 0 {
				continue
			}
			var reqs []seenRequest
			if c.frames != nil {
				for _, q := range c.frames.streams {
					reqs = append(reqs, q.request())
				}
			} else {
				reqs, _ = judge(c.raw)
			}
			lines, raw := c.lines(corpusTokens())
			for _, l := range lines {
				if strings.HasPrefix(l, "WRONG ") && !strings.HasPrefix(l, "WRONG unfinished head") {
					t.Errorf("%s in %q", l, raw)
				}
			}
			for _, q := range reqs {
				if q.whole || q.head != nil {
					if why := mayArrive(c.scheme, c.host, q); why != "" {
						t.Errorf("%s: %q", why, raw)
					}
				}
			}
		}
	})
}

// A frame of a fuzzer's input: its kind, of which the highest bit says that the payload is as
// it stands, its flags, its stream, how many bytes follow, in units of 1 byte, or of 64 if the
// stream's highest bit is set, and those. Of frames with fields they are those.
const (
	packedRaw  = 0x80
	packedLong = 0x80
	nameEnds   = "\x1e"
	fieldEnds  = "\x1f"
)

// packed is all that a case sends.
func (c *hostileCase) packed(t testing.TB) (b []byte) {
	host := c.expand(c.host)
	for _, s := range c.steps {
		if s.kind != stepSend {
			continue
		}
		script := c.fill(s.send, "{host}", host, "{authority}", host, "{port}", "443", "{:port}", "", "{tls}", "443", "{:tls}", "")
		all, err := frames(script, func(method, path string) []hpack.HeaderField {
			return []hpack.HeaderField{{Name: ":method", Value: method}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: host}, {Name: ":path", Value: path}}
		}, 0)
		if err != nil {
			t.Fatal(c.name, err)
		}
		for _, f := range all {
			kind, payload := byte(f.kind), string(f.after)
			if f.bare {
				continue
			}
			if len(f.fields) > 0 {
				payload = ""
				for _, h := range f.fields {
					payload += h.Name + nameEnds + h.Value + fieldEnds
				}
			} else {
				kind |= packedRaw
			}
			stream, length := byte(f.stream)&^packedLong, len(payload)
			if length > 255 {
				stream |= packedLong
				length = min(255, length/64)
				payload = payload[:length*64]
			}
			b = append(b, kind, byte(f.flags)&^byte(http2.FlagHeadersPadded|http2.FlagHeadersPriority), stream, byte(length))
			b = append(b, payload...)
		}
	}
	return b
}

func unpack(b []byte) (all []rawFrame) {
	for len(b) >= 4 && len(all) < 64 {
		f := rawFrame{kind: http2.FrameType(b[0] &^ packedRaw), flags: http2.Flags(b[1]), stream: uint32(b[2] &^ packedLong), table: -1}
		n := int(b[3])
		if b[2]&packedLong != 0 {
			n *= 64
		}
		asItIs := b[0]&packedRaw != 0
		n = min(n, len(b)-4)
		payload := b[4 : 4+n]
		b = b[4+n:]
		if asItIs {
			f.after = payload
		} else {
			for field := range strings.SplitSeq(strings.TrimSuffix(string(payload), fieldEnds), fieldEnds) {
				name, value, _ := strings.Cut(field, nameEnds)
				f.fields = append(f.fields, hpack.HeaderField{Name: name, Value: value})
			}
		}
		all = append(all, f)
	}
	return all
}

// fuzzFrames sends them, and one more request, and returns what came back until that was
// answered, the connection ended, or nothing came for a moment.
func fuzzFrames(t *testing.T, addr, host string, all []rawFrame) string {
	t.Helper()
	c, err := net.Dial("tcp", addr) //nolint:noctx // it has a deadline
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(c, "CONNECT "+host+":443 HTTP/1.1\r\n\r\n")
	res, err := http.ReadResponse(bufio.NewReaderSize(c, 16), &http.Request{Method: http.MethodConnect})
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	conn := tls.Client(c, &tls.Config{ServerName: host, InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err := conn.Handshake(); err != nil { //nolint:noctx // it has a deadline
		t.Fatal(err)
	}
	last := uint32(129)
	all = append(all, rawFrame{kind: http2.FrameHeaders, flags: http2.FlagHeadersEndHeaders | http2.FlagHeadersEndStream, stream: last, table: -1, fields: []hpack.HeaderField{
		{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: "sentinel.invalid"}, {Name: ":path", Value: "/"},
	}})
	_, _ = io.WriteString(conn, http2.ClientPreface)
	_, _ = conn.Write(newFrameWriter().bytes(append([]rawFrame{{kind: http2.FrameSettings, table: -1}}, all...)...))
	fr := http2.NewFramer(conn, conn)
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	var answer strings.Builder
	open := map[uint32]bool{}
	for _, f := range all {
		if f.kind == http2.FrameHeaders && f.stream%2 == 1 && f.flags.Has(http2.FlagHeadersEndStream) {
			open[f.stream] = true
		}
	}
	for len(open) > 0 {
		if err := c.SetReadDeadline(time.Now().Add(30 * time.Millisecond)); err != nil {
			break
		}
		f, err := fr.ReadFrame()
		if err != nil {
			break
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			fmt.Fprintln(&answer, f.Fields)
		case *http2.DataFrame:
			_, _ = answer.Write(f.Data())
		case *http2.RSTStreamFrame:
			delete(open, f.StreamID)
		case *http2.GoAwayFrame:
			return answer.String()
		case *http2.SettingsFrame:
			if !f.IsAck() {
				_ = fr.WriteSettingsAck()
			}
		}
		if h := f.Header(); (h.Type == http2.FrameHeaders || h.Type == http2.FrameData) && h.Flags.Has(http2.FlagDataEndStream) {
			delete(open, h.StreamID)
		}
	}
	return answer.String()
}
