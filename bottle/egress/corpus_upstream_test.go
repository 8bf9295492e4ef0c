package egress_test

import (
	"bufio"
	"context"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// A recorder is every upstream there is: it takes whatever is dialled, speaks TLS in the
// name that it is called by, and keeps the bytes as they came. It stands behind egress in
// two ways: as a next hop that lets everything through ([recorder.standIn]), and as the
// addresses that the built-in gate dials ([recorder.LookupNetIP]).
type recorder struct {
	t  testing.TB
	ca *testCA

	mu        sync.Mutex
	conns     []*recorded
	reply     func(request []byte) []byte
	tag       string
	h2, early bool // speaks HTTP/2; answers at a request's head
	reply2    func(*seenStream) []rawFrame
	dns       map[string][]netip.Addr // of the case
	addrs     map[string]netip.Addr   // of every name that was ever resolved
	listeners []net.Listener
	port      int // of all of listeners
	certs     map[string]*tls.Certificate
	serving   sync.WaitGroup
}

// A recorded is a connection that an upstream was made.
type recorded struct {
	conn   net.Conn
	done   chan struct{}
	end    func()
	scheme string // "http" or "https"; empty if nothing was sent
	host   string // that was dialled, or named to the next hop; with the port if it is not the scheme's
	raw    []byte // until a protocol was switched to
	stream []byte // after that
	// answered is how many of the requests in raw are.
	answered int
	frames   *seenFrames // by HTTP/2
	used     bool        // something came by it, ever
	tag      string      // of the case that asks; see [recorder.beginFrames]
}

func newRecorder(t testing.TB, ca *testCA) *recorder {
	r := &recorder{t: t, ca: ca, addrs: map[string]netip.Addr{}, certs: map[string]*tls.Certificate{}}
	r.listen("first.test")
	t.Cleanup(func() {
		r.mu.Lock()
		for _, l := range r.listeners {
			_ = l.Close()
		}
		for _, c := range r.conns {
			_ = c.conn.Close()
		}
		r.mu.Unlock()
		r.serving.Wait()
	})
	return r
}

// listen gives the name an address of its own, with a listener on the one port of all.
func (r *recorder) listen(name string) netip.Addr {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a, ok := r.addrs[name]; ok {
		return a
	}
	n := len(r.addrs) + 1
	a := netip.AddrFrom4([4]byte{127, 0, byte(1 + n/250), byte(1 + n%250)})
	l, err := net.Listen("tcp", netip.AddrPortFrom(a, uint16(r.port)).String()) //nolint:noctx // a test's listener
	if err != nil {
		r.t.Errorf("an upstream for %s: %v", name, err)
		return netip.Addr{}
	}
	if r.port == 0 { // the first one, before anybody else reads it
		r.port = l.Addr().(*net.TCPAddr).Port //nolint:errcheck // a TCP listener
	}
	r.addrs[name], r.listeners = a, append(r.listeners, l)
	r.accept(l, func(c net.Conn) { r.serve(c, c, name, r.port) })
	return a
}

func (r *recorder) accept(l net.Listener, serve func(net.Conn)) {
	r.serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r.serving.Go(func() { serve(c) })
		}
	})
}

// LookupNetIP implements [pipelock.Resolver]: every name there is leads to the recorder, but
// for those that the case has answers for.
func (r *recorder) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	name := strings.TrimSuffix(host, ".")
	r.mu.Lock()
	scripted, ok := r.dns[name]
	r.mu.Unlock()
	if ok {
		return scripted, nil
	}
	r.mu.Lock()
	n := len(r.addrs)
	r.mu.Unlock()
	if n > 200 { // names below a wildcard, of a fuzzer
		return nil, errors.New("too many names")
	}
	if a := r.listen(name); a.IsValid() {
		return []netip.Addr{a}, nil
	}
	return nil, errors.New("no address")
}

// standIn starts a next hop that has no policy, and returns its address.
func (r *recorder) standIn() string {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // a test's listener
	if err != nil {
		r.t.Fatal(err)
	}
	r.mu.Lock()
	r.listeners = append(r.listeners, l)
	r.mu.Unlock()
	r.accept(l, func(c net.Conn) {
		br := bufio.NewReader(c)
		start, err := br.Peek(8)
		if err != nil || string(start) != "CONNECT " {
			r.serve(&readConn{c, br}, c, "", 0)
			return
		}
		var head []byte
		for !strings.HasSuffix(string(head), "\r\n\r\n") {
			b, err := br.ReadByte()
			if err != nil {
				break
			}
			head = append(head, b)
		}
		reqs, wrong := judge(head)
		if len(reqs) != 1 || len(wrong) > 0 || len(reqs[0].body) > 0 {
			r.t.Errorf("the next hop was sent %q: %v", head, wrong)
			_ = c.Close()
			return
		}
		host, port, _ := strings.Cut(reqs[0].target, ":")
		n, _ := strconv.Atoi(port)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		r.serve(&readConn{c, br}, c, host, n)
	})
	return l.Addr().String()
}

// A readConn is a connection of which some bytes are in a reader.
type readConn struct {
	net.Conn
	r io.Reader
}

func (c *readConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// serve records a connection and answers the requests in it. host is the one that was
// dialled; where it is empty, each request names its own in absolute-form.
func (r *recorder) serve(conn, socket net.Conn, host string, port int) {
	rec := &recorded{conn: socket, done: make(chan struct{}), host: host}
	rec.end = func() { _ = socket.(*net.TCPConn).CloseWrite() } //nolint:errcheck // it is one
	defer close(rec.done)
	defer socket.Close()
	r.mu.Lock()
	r.conns = append(r.conns, rec)
	r.mu.Unlock()
	br := bufio.NewReader(conn)
	first, err := br.Peek(1)
	if err != nil {
		return
	}
	conn = &readConn{conn, br}
	scheme, own, h2 := "http", 80, false
	if first[0] == 0x16 {
		scheme, own = "https", 443
		r.mu.Lock()
		var protos []string
		if r.h2 {
			protos = []string{"h2", "http/1.1"}
		}
		r.mu.Unlock()
		config := &tls.Config{NextProtos: protos, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return r.cert(host), nil }}
		config.SetSessionTicketKeys([][32]byte{{1}}) // as one server would: to resume costs less
		inner := tls.Server(conn, config)
		if inner.Handshake() != nil { //nolint:noctx // the socket is closed at the end
			return
		}
		r.mu.Lock()
		rec.end = func() { _ = inner.CloseWrite(); _ = socket.(*net.TCPConn).CloseWrite() } //nolint:errcheck // it is one
		r.mu.Unlock()
		conn, h2 = inner, inner.ConnectionState().NegotiatedProtocol == "h2"
	}
	r.mu.Lock()
	if rec.scheme = scheme; host != "" && port != own && port != r.port {
		rec.host += ":" + strconv.Itoa(port)
	}
	r.mu.Unlock()
	if h2 {
		r.record2(rec, conn)
		return
	}
	r.record(rec, conn)
}

func (r *recorder) record(rec *recorded, conn net.Conn) {
	buf, last := make([]byte, 32<<10), false
	for {
		n, err := conn.Read(buf)
		r.mu.Lock()
		rec.used = rec.used || n > 0
		switch {
		case rec.stream != nil:
			rec.stream = append(rec.stream, buf[:n]...)
		default:
			rec.raw = append(rec.raw, buf[:n]...)
		}
		var replies [][]byte
		if rec.stream == nil && n > 0 {
			reqs := reading{}.read(rec.raw)
			for _, q := range reqs[min(rec.answered, len(reqs)):] {
				if q.whole {
					rec.answered++
					replies = append(replies, r.reply(slices.Concat(q.head, q.body)))
				}
			}
			for _, a := range replies {
				if strings.HasPrefix(string(a), "HTTP/1.1 101") {
					rec.stream = []byte{}
				}
			}
		}
		r.mu.Unlock()
		for _, a := range replies {
			_, _ = conn.Write(a)
			last = last || strings.Contains(strings.ToLower(string(a)), "\r\nconnection: close\r\n")
		}
		if last {
			r.mu.Lock()
			rec.end()
			r.mu.Unlock()
			last = false
		}
		if err != nil {
			return
		}
	}
}

func (r *recorder) cert(host string) *tls.Certificate {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.certs[host]
	if c == nil {
		leaf := r.ca.leaf(r.t, host)
		c = &leaf
		r.certs[host] = c
	}
	return c
}

// begin is called before a case.
func (r *recorder) begin(dns map[string][]netip.Addr, reply func([]byte) []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dns, r.reply = dns, reply
	r.forget()
}

// beginFrames is called before a case in frames. Its requests have the tag in a field
// ([tagField]): those of others are late ones of the cases before, whose connection ended
// while egress carried them out.
func (r *recorder) beginFrames(tag string, early bool, reply func([]byte) []byte, reply2 func(*seenStream) []rawFrame) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tag, r.early, r.reply, r.reply2 = tag, early, reply, reply2
	r.forget()
}

// speak says whether the upstreams speak HTTP/2.
func (r *recorder) speak(h2 bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.h2 = h2
}

// forget drops what the cases before were for. The caller holds the lock.
func (r *recorder) forget() {
	r.conns = slices.DeleteFunc(r.conns, func(c *recorded) bool {
		select {
		case <-c.done:
			return true
		default: // made after the end of its case, and still to be used
			c.raw, c.answered = nil, 0
			if c.frames != nil {
				c.frames.streams, c.frames.wrong = nil, nil
			}
			return false
		}
	})
}

// finish ends all connections, waits until each has read all that was ever sent to it, and
// returns them.
func (r *recorder) finish(t testing.TB) []*recorded {
	over := make(chan struct{})
	close(over)
	r.mu.Lock()
	var conns []*recorded
	for _, c := range r.conns {
		if r.tag != "" && !c.used {
			// egress keeps it for later, as net/http does with one that ended unused.
			conns = append(conns, &recorded{conn: c.conn, done: over, host: c.host, scheme: c.scheme})
			continue
		}
		c.end()
		c.tag = r.tag
		conns = append(conns, c)
	}
	r.mu.Unlock()
	patience := time.After(10 * time.Second)
	for _, c := range conns {
		select {
		case <-c.done:
		case <-patience:
			t.Fatalf("the connection to %q does not end; it was sent %q", c.host, c.raw)
		}
	}
	return conns
}

// lines says what a connection was used for, in the corpus' words, and all bytes of it. A
// token that arrived is shown by its name.
func (c *recorded) lines(tokens map[string]string) (lines []string, raw string) {
	if c.host == "" && len(c.raw) == 0 {
		return nil, "" // to the next hop, and never used
	}
	if c.frames != nil {
		return c.frames.lines(c, tokens)
	}
	reqs, wrong := judge(c.raw)
	if len(reqs) == 0 {
		return []string{"dial " + c.host}, ""
	}
	raw = string(c.raw) + string(c.stream)
	for _, q := range reqs {
		if tag := tagOf(string(q.head)); c.tag != "" && tag != "" && tag != c.tag {
			raw = strings.Replace(raw, string(q.head), "", 1)
			continue
		}
		host, target := c.host, q.target
		if rest, ok := strings.CutPrefix(target, "http://"); ok && host == "" {
			host, target, _ = strings.Cut(rest, "/")
			target = "/" + target
		}
		s := fmt.Sprintf("%s %s %s %s", c.scheme, host, q.method, target)
		if len(q.hosts) != 1 || q.hosts[0] != host && strings.TrimSuffix(q.hosts[0], ":"+portOf(c.conn)) != host {
			s += fmt.Sprintf(" Host=%q", q.hosts)
		}
		lines = append(lines, s+rest(q.body, q.whole, string(q.head)+string(q.body), tokens))
	}
	for _, w := range wrong {
		lines = append(lines, "WRONG "+w)
	}
	if len(c.stream) > 0 {
		lines = append(lines, "stream "+strconv.QuoteToASCII(string(c.stream)))
	}
	return lines, raw
}

// tagField is the field with a case's tag.
const tagField = "x-case"

func tagOf(head string) string {
	_, rest, _ := strings.Cut(strings.ToLower(head), tagField+": ")
	tag, _, _ := strings.Cut(rest, "\r\n")
	return tag
}

// rest is the end of a request's line: its body, whether it ended, and its tokens.
func rest(body []byte, whole bool, text string, tokens map[string]string) (s string) {
	if len(body) > 0 {
		s = " " + strconv.QuoteToASCII(clipped(string(body)))
	}
	if !whole {
		s += " unfinished"
	}
	for name, token := range tokens {
		if strings.Contains(text, token) {
			s += " +" + name
		}
	}
	return s
}

func clipped(s string) string {
	if len(s) > 80 {
		return s[:60] + fmt.Sprintf("... %d bytes", len(s))
	}
	return s
}

func portOf(c net.Conn) string {
	_, port, _ := net.SplitHostPort(c.LocalAddr().String())
	return port
}

// acceptKey is what a server answers a websocket's key with.
func acceptKey(request []byte) string {
	for line := range strings.SplitSeq(string(request), "\r\n") {
		if name, value, _ := strings.Cut(line, ":"); strings.EqualFold(name, "Sec-WebSocket-Key") {
			sum := sha1.Sum([]byte(strings.TrimSpace(value) + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
			return base64.StdEncoding.EncodeToString(sum[:])
		}
	}
	return ""
}
