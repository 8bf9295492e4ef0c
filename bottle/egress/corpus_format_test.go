package egress_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// A hostileCase is one case of testdata/corpus, as README.md there describes the format.
// Its texts still have their variables and escapes in them.
type hostileCase struct {
	class, name string
	modes       []string
	hop         string // "stand-in" or "gate": the only one that it is for
	host        string
	connect     string // target of the prelude's CONNECT
	sni         string
	dns         map[string][]netip.Addr
	reply       string // of the upstream
	steps       []corpusStep
	seen        map[string][]string // by mode; "" is for those without their own
	absent      []string            // from what upstreams saw
	present     []string            // in it
	hangUp      bool
	vars        []string // {x} and {y} of an expanded case, as for [strings.NewReplacer]

	// Of those in testdata/corpus/http2.
	variant   int // which of its family it is
	noPreface bool
	early     bool // the upstream answers at the request's head
	falls     bool // the stream beside the case's own may come to harm
}

// A corpusStep is something sent or something awaited.
type corpusStep struct {
	mode     string // the only one that it is for; "" means all
	send     string
	hello    *string // raw server name of a ClientHello to send
	tls      *string // server name of a TLS handshake to make
	status   int     // of an answer to await; 0 means the end of the connection
	or       int     // another that will do
	layer    string
	text     string // in the answer
	refused  bool   // by a 4xx or 5xx of whichever layer
	variable string // the status, of an expanded case
	bytes    bool   // of whatever kind must come
	whatever bool   // comes back, up to the end
	any      bool   // of the status hundred will do
	streams  string // of a case in frames: the line as it is
	kind     stepKind
}

type stepKind int

const (
	stepSend stepKind = iota
	stepHello
	stepTLS
	stepWant
)

func readCorpus(t testing.TB, dir string) []*hostileCase {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata/corpus", dir, "*.txt"))
	if err != nil || len(files) == 0 {
		t.Fatal("no corpus", err)
	}
	var all []*hostileCase
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		cases, err := parseCorpus(strings.TrimSuffix(filepath.Base(f), ".txt"), string(b))
		if err != nil {
			t.Fatalf("%s:%v", f, err)
		}
		all = append(all, cases...)
	}
	return all
}

func parseCorpus(class, text string) ([]*hostileCase, error) {
	var (
		all []*hostileCase
		c   *hostileCase
		xs  []string
	)
	names := map[string]bool{}
	finish := func() error {
		if c == nil {
			return nil
		}
		if len(c.modes) == 0 || len(c.seen) == 0 || len(c.steps) == 0 || names[c.name] {
			return fmt.Errorf(" case %q: needs a name of its own, modes, something sent and seen", c.name)
		}
		names[c.name] = true
		if len(xs) == 0 {
			all = append(all, c)
		}
		for i, x := range xs {
			one := *c
			one.variant = i
			in, out, _ := strings.Cut(x, " => ")
			one.vars, one.name = []string{"{x}", in, "{y}", out}, c.name+"/"+in
			all = append(all, &one)
		}
		xs = nil
		return nil
	}
	for i, line := range strings.Split(text, "\n") {
		bad := func(why string) error { return fmt.Errorf("%d: %s: %q", i+1, why, line) }
		key, value, _ := strings.Cut(line, ": ")
		key = strings.TrimSuffix(key, ":")
		if key == "case" {
			if err := finish(); err != nil {
				return nil, err
			}
			c = &hostileCase{class: class, name: value, host: "api.example.com", seen: map[string][]string{}, dns: map[string][]netip.Addr{}}
			continue
		}
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if c == nil {
			return nil, bad("before the first case")
		}
		if kind := line[0]; kind == '>' || kind == '<' {
			c.bytes(kind, line[1:])
			continue
		}
		key, mode, _ := strings.Cut(key, "@")
		switch key {
		case "x":
			xs = append(xs, value)
		case "modes":
			c.modes = strings.Fields(value)
		case "hop":
			c.hop = value
		case "host":
			c.host = value
		case "connect":
			c.connect = value
		case "sni":
			c.sni = value
		case "seen":
			c.seen[mode] = append(c.seen[mode], value)
		case "absent":
			c.absent = append(c.absent, value)
		case "present":
			c.present = append(c.present, value)
		case "end":
			c.hangUp = value == "hang up"
		case "preface":
			c.noPreface = value == "none"
		case "answer":
			c.early = value == "at the head"
		case "beside":
			c.falls = value == "may fall"
		case "tls":
			c.steps = append(c.steps, corpusStep{mode: mode, kind: stepTLS, tls: &value})
		case "hello":
			c.steps = append(c.steps, corpusStep{mode: mode, kind: stepHello, hello: &value})
		case "dns":
			words := strings.Fields(value)
			c.dns[words[0]] = []netip.Addr{}
			for _, w := range words[1:] {
				a, err := netip.ParseAddr(w)
				if err != nil {
					return nil, bad(err.Error())
				}
				c.dns[words[0]] = append(c.dns[words[0]], a)
			}
		case "want":
			s := corpusStep{mode: mode, kind: stepWant}
			if c.inFrames() {
				s.streams = value
				c.steps = append(c.steps, s)
				continue
			}
			if s.bytes = value == "bytes"; s.bytes {
				c.steps = append(c.steps, s)
				continue
			}
			if s.whatever = value == "whatever"; value != "closed" && !s.whatever {
				first, rest, _ := strings.Cut(value, " ")
				var err error
				if status, or, ok := strings.Cut(first, "|"); ok {
					first = status
					if s.or, err = strconv.Atoi(or); err != nil {
						return nil, bad(err.Error())
					}
				}
				if d, ok := strings.CutSuffix(first, "xx"); ok {
					first, s.any = d+"00", true
				}
				if first == "refused" {
					s.refused, first = true, "400"
				}
				if strings.HasPrefix(first, "{") {
					s.variable, first = first, "0"
				}
				if s.status, err = strconv.Atoi(first); err != nil {
					return nil, bad(err.Error())
				}
				if l, text, _ := strings.Cut(rest, " "); slices.Contains([]string{"egress", "pipelock", "upstream"}, l) {
					s.layer, rest = l, text
				}
				s.text = rest
			}
			c.steps = append(c.steps, s)
		default:
			return nil, bad("what is that?")
		}
	}
	return all, finish()
}

// inFrames reports whether what the case sends are frames of HTTP/2.
func (c *hostileCase) inFrames() bool {
	return slices.Contains(c.modes, "h2") || slices.Contains(c.modes, "h1")
}

// bytes takes a line of what is sent or answered: "> a line", which ends in CR LF, or
// ">> bytes", which end as they do.
func (c *hostileCase) bytes(kind byte, rest string) {
	end := "\r\n"
	if rest != "" && rest[0] == kind {
		rest, end = rest[1:], ""
	}
	text := strings.TrimPrefix(rest, " ") + end
	if kind == '<' {
		c.reply += text
		return
	}
	if n := len(c.steps); n > 0 && c.steps[n-1].kind == stepSend {
		c.steps[n-1].send += text
		return
	}
	c.steps = append(c.steps, corpusStep{kind: stepSend, send: text})
}

var (
	repeats = regexp.MustCompile(`\{(\d+)\*([^{}]*)\}`)
	escapes = regexp.MustCompile(`\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|.)`)
)

// expand fills in the case's variables, then {N*text}, then escapes: \r \n \t \0 \\ \xHH \uHHHH.
func (c *hostileCase) expand(s string, vars ...string) string { return unescape(c.fill(s, vars...)) }

func (c *hostileCase) fill(s string, vars ...string) string {
	if len(c.vars) > 0 {
		s = strings.NewReplacer(c.vars...).Replace(s)
	}
	s = strings.NewReplacer(vars...).Replace(s)
	all := func(m string) string {
		p := repeats.FindStringSubmatch(m)
		n, err := strconv.Atoi(p[1])
		if err != nil {
			return m
		}
		return strings.Repeat(p[2], n)
	}
	for repeats.MatchString(s) { // from the inside
		s = repeats.ReplaceAllStringFunc(s, all)
	}
	return s
}

func unescape(s string) string {
	return escapes.ReplaceAllStringFunc(s, func(m string) string {
		switch m[1] {
		case 'r':
			return "\r"
		case 'n':
			return "\n"
		case 't':
			return "\t"
		case '0':
			return "\x00"
		case 'x', 'u':
			if n, err := strconv.ParseUint(m[2:], 16, 32); err == nil && m[1] == 'x' {
				return string([]byte{byte(n)})
			} else if err == nil {
				return string(rune(n))
			}
		}
		return m[1:]
	})
}
