package egress_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// TestCorpusHTTP2 runs testdata/corpus/http2: what a hostile agent sends as frames, with an
// upstream that speaks HTTP/2 and with one that does not, so that egress translates. Beside
// the case's own streams there is always another on the connection, which must not come to
// harm unless the connection ends.
func TestCorpusHTTP2(t *testing.T) {
	all := readCorpus(t, "http2")
	counts := newCorpusCounts(t)
	for _, hop := range []string{"stand-in", "gate"} {
		for _, mode := range []string{"h2", "h1"} {
			t.Run(hop+"/"+mode, func(t *testing.T) {
				t.Parallel()
				w := newCorpusWorld(t, hop)
				w.rec.speak(mode == "h2")
				for _, c := range all {
					if !slices.Contains(c.modes, mode) || hop == "gate" && c.variant > 0 {
						continue // to the gate all of a family is one tunnel
					}
					counts.add(c)
					t.Run(c.class+"/"+c.name, func(t *testing.T) { w.runFrames(t, c, mode) })
				}
				w.leaks(t)
			})
		}
	}
}

// besidePath is where the stream beside the case's own goes.
const besidePath = "/v1/beside"

const besideID = 1

// A frameAgent is an [attempt] in frames.
type frameAgent struct {
	*attempt
	fr      *http2.Framer
	out     *frameWriter
	streams map[uint32]*agentStream
	last    uint32 // of the streams that it opened
	goAway  http2.ErrCode
	gone    error // why the connection can't be read any more
	tag     string
}

// An agentStream is what came back on one.
type agentStream struct {
	status, layer, text string // text: of all heads and the body
	body                string
	done, reset         bool
	code                http2.ErrCode
}

func (w *corpusWorld) runFrames(t *testing.T, c *hostileCase, mode string) {
	a := &frameAgent{attempt: &attempt{hostileCase: c, t: t, w: w, mode: mode, offer: []string{"h2"}, sessions: w.sessions}, out: newFrameWriter(), streams: map[uint32]*agentStream{}, tag: w.nextTag()}
	a.setVars(true)
	w.rec.beginFrames(a.tag, c.early, func(request []byte) []byte {
		if c.reply == "" || strings.Contains(string(request), besidePath) {
			return []byte(plainReply)
		}
		return []byte(a.expand(c.reply, append([]string{"{echo}", echoed(string(request))}, a.vars...)...))
	}, func(q *seenStream) []rawFrame {
		script := "HEADERS S && :status: 200 && content-length: 2 && DATA S end ok"
		if c.reply != "" && q.only(":path") != besidePath {
			script = a.fill(c.reply, append([]string{"{echo}", echoed(q.text())}, a.vars...)...)
		}
		return a.frames(script, q.id)
	})
	if c.connect == "" && c.sni == "" && routed(a.expand(c.host)) {
		w.reached[a.expand(c.host)] = true // to learn what it speaks
	}
	a.dial()
	a.tunnel()
	if p := a.conn.(*tls.Conn).ConnectionState().NegotiatedProtocol; p != "h2" { //nolint:errcheck // it is one
		t.Fatalf("the tunnel speaks %q", p)
	}
	a.fr = http2.NewFramer(a.conn, a.br)
	a.fr.SetMaxReadFrameSize(1<<24 - 1)
	a.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if !c.noPreface {
		_, _ = io.WriteString(a.conn, http2.ClientPreface)
		a.write("SETTINGS && HEADERS 1 POST " + besidePath)
	}
	for _, s := range c.steps {
		switch {
		case s.mode != "" && s.mode != mode:
		case s.kind == stepWant:
			a.await(a.fill(s.streams, a.vars...))
		default:
			a.write(a.fill(s.send, a.vars...))
		}
	}
	a.leave()
	a.compare(w.rec.finish(t))
}

func (w *corpusWorld) nextTag() string {
	w.tags++
	return strconv.Itoa(w.tags)
}

// echoed is text that stays what it is in a reply.
func echoed(text string) string {
	return strings.NewReplacer(`\`, `\\`, "\r", `\r`, "\n", `\n`).Replace(text)
}

func (a *frameAgent) frames(script string, self uint32) []rawFrame {
	a.t.Helper()
	all, err := frames(script, func(method, path string) []hpack.HeaderField {
		return []hpack.HeaderField{
			{Name: ":method", Value: method}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: a.expand("{authority}", a.vars...)}, {Name: ":path", Value: path},
		}
	}, self)
	if err != nil {
		a.t.Error(err)
	}
	return all
}

// write sends a script. An error is not one: see [attempt.send].
func (a *frameAgent) write(script string) {
	a.t.Helper()
	all := a.frames(script, 0)
	for i, f := range all {
		if f.kind != http2.FrameHeaders || f.bare {
			continue
		}
		a.last = max(a.last, f.stream)
		if len(f.fields) > 0 && strings.HasPrefix(f.fields[0].Name, ":") && f.flags.Has(http2.FlagHeadersEndHeaders) {
			all[i].fields = append(f.fields, hpack.HeaderField{Name: tagField, Value: a.tag})
		}
	}
	_, _ = a.conn.Write(a.out.bytes(all...))
}

func (a *frameAgent) stream(id uint32) *agentStream {
	s := a.streams[id]
	if s == nil {
		s = &agentStream{}
		a.streams[id] = s
	}
	return s
}

// read takes one frame; false means that there are no more.
func (a *frameAgent) read() bool {
	a.t.Helper()
	if a.gone != nil {
		return false
	}
	f, err := a.fr.ReadFrame()
	if err != nil {
		if a.gone = err; errors.Is(err, os.ErrDeadlineExceeded) {
			a.t.Fatal("nothing more comes, and no end")
		}
		var bad http2.StreamError
		if errors.As(err, &bad) {
			a.t.Errorf("a response that is none: %v", err)
		}
		return false
	}
	s := a.stream(f.Header().StreamID)
	if s.done && f.Header().StreamID != 0 && f.Header().Type != http2.FrameRSTStream && f.Header().Type != http2.FrameWindowUpdate {
		a.t.Errorf("after the end of stream %d came %v", f.Header().StreamID, f)
	}
	ended := false
	switch f := f.(type) {
	case *http2.MetaHeadersFrame:
		if status := f.PseudoValue("status"); status != "" {
			s.status = status
		}
		for _, field := range f.Fields {
			s.text += field.Name + ": " + field.Value + "\n"
			if field.Name == "x-bottle-layer" {
				s.layer = field.Value
			}
		}
		ended = f.StreamEnded()
	case *http2.DataFrame:
		s.body += string(f.Data())
		ended = f.StreamEnded()
	case *http2.RSTStreamFrame:
		if !s.done {
			s.done, s.reset, s.code = true, true, f.ErrCode
		}
	case *http2.SettingsFrame:
		if !f.IsAck() {
			a.write("SETTINGS ack")
		}
	case *http2.GoAwayFrame:
		a.goAway = f.ErrCode
	case *http2.PushPromiseFrame:
		a.t.Errorf("a push: %v", f)
	}
	if ended {
		s.done = true
		_, _ = fmt.Fprintln(&a.w.told, s.text, s.body)
	}
	return true
}

// until reads until the stream or the connection ended.
func (a *frameAgent) until(id uint32) *agentStream {
	a.t.Helper()
	s := a.stream(id)
	for !s.done && a.read() {
	}
	return s
}

// await is a line of what must come back.
func (a *frameAgent) await(want string) {
	a.t.Helper()
	words := strings.Fields(unescape(want))
	if words[0] == "closed" {
		for a.goAway == http2.ErrCodeNo && a.read() { // which comes a second before the end
		}
		if len(words) > 1 && a.goAway.String() != words[1] {
			a.t.Errorf("the connection ended with %v, not %s", a.goAway, words[1])
		}
		a.over = true
		return
	}
	if words[0] == "whatever" {
		a.whatever = true
		return
	}
	id, err := strconv.Atoi(words[0])
	if err != nil || len(words) < 2 {
		a.t.Fatalf("want: %s", want)
	}
	s := a.until(uint32(id))
	layer, text := "", strings.Join(words[2:], " ")
	if l, rest, _ := strings.Cut(text, " "); slices.Contains([]string{"egress", "pipelock", "upstream"}, l) {
		layer, text = l, rest
	}
	good := s.done
	switch what := words[1]; what {
	case "reset":
		good = good && s.reset && s.status == "" && (text == "" || s.code.String() == text)
		text = ""
	case "cut": // not as if it were whole
		good = s.reset || !s.done
	case "any": // as long as it is an end
		good = s.done || a.gone != nil
	case "refused":
		good = s.reset || !s.done || s.status >= "400"
		text = ""
	default:
		hundred, xx := strings.CutSuffix(what, "xx")
		good = good && !s.reset && s.layer == layer && (s.status == what || xx && strings.HasPrefix(s.status, hundred))
	}
	text, none := strings.CutPrefix(text, "!")
	if !good || text != "" && strings.Contains(s.text+s.body, text) == none {
		a.t.Errorf("wanted %q, came %+v, connection %v %v", want, *s, a.goAway, a.gone)
	}
}

// leave ends the connection once the stream beside was served and one more request refused.
func (a *frameAgent) leave() {
	a.t.Helper()
	defer a.conn.Close()
	if a.over || a.hangUp || a.whatever || a.noPreface {
		return
	}
	beside := a.stream(besideID)
	if !beside.done {
		a.write("DATA 1 end beside")
		a.until(besideID)
	}
	if beside.status != "200" && !a.falls && (beside.layer != "egress" || a.host == "api.example.com" && a.connect == "" && a.sni == "") || beside.reset && !a.falls {
		a.t.Errorf("the stream beside: %+v, connection %v %v", *beside, a.goAway, a.gone)
	}
	last := a.last + 2 | 1
	a.write(fmt.Sprintf("HEADERS %d end && :method: GET && :scheme: https && :authority: sentinel.invalid && :path: /", last))
	if s := a.until(last); s.status != "421" && s.status != "403" || s.layer != "egress" {
		a.t.Errorf("a last request: %+v, connection %v %v", *s, a.goAway, a.gone)
	}
}
