package egress

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"bottle/bottle"
)

func TestLeaves(t *testing.T) {
	certPEM, keyPEM, err := newCA("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := errors.Join(bottle.WriteFile(dir+"/c", certPEM, 0o644), bottle.WriteFile(dir+"/k", keyPEM, 0o600)); err != nil {
		t.Fatal(err)
	}
	authority, err := loadCA(dir+"/c", dir+"/k")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	l := newLeaves(authority, func() time.Time { return now })
	var wg sync.WaitGroup
	var mu sync.Mutex
	serials := map[string]bool{}
	for range 32 {
		wg.Go(func() {
			c, err := l.config("a.example.com", protoH1)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			serials[c.Certificates[0].Leaf.SerialNumber.String()] = true
		})
	}
	wg.Wait()
	if len(serials) != 1 {
		t.Errorf("%d certificates for one host at once", len(serials))
	}
	serial := func() (*big.Int, time.Time) {
		c, err := l.config("a.example.com", protoH2)
		if err != nil {
			t.Fatal(err)
		}
		leaf := c.Certificates[0].Leaf
		return leaf.SerialNumber, leaf.NotAfter
	}
	first, _ := serial()
	now = now.Add(leafLife/2 + time.Second)
	if second, end := serial(); second.Cmp(first) == 0 || !end.After(now) {
		t.Error("not made anew")
	}
	for i := range maxLeaves + 10 {
		l.entry(bottle.Host("h" + strings.Repeat("x", i%50) + string(rune('a'+i%26)) + ".example.com"))
		l.entry(bottle.Host(strings.Repeat("y", i/50+1) + strings.Repeat("x", i%50) + ".example.com"))
	}
	if l.byAge.Len() > maxLeaves || len(l.hosts) != l.byAge.Len() {
		t.Errorf("%d in the list, %d in the map", l.byAge.Len(), len(l.hosts))
	}
}

func TestRedactor(t *testing.T) {
	const token = "abcabcab-token"
	mask := strings.Repeat("*", len(token))
	for _, tc := range []struct{ in, want string }{
		{"", ""},
		{"nothing here", "nothing here"},
		{token, mask},
		{"x" + token + "y" + token, "x" + mask + "y" + mask},
		{"abcabc" + token + "abcab", "abcabc" + mask + "abcab"},
		{token[:len(token)-1], token[:len(token)-1]},
	} {
		for name, r := range map[string]io.Reader{"whole": strings.NewReader(tc.in), "bytes": iotest.OneByteReader(strings.NewReader(tc.in)), "err with data": iotest.DataErrReader(strings.NewReader(tc.in))} {
			got, err := io.ReadAll(&redactor{body: io.NopCloser(r), token: []byte(token)})
			if err != nil || string(got) != tc.want {
				t.Errorf("%s %q: %q %v", name, tc.in, got, err)
			}
		}
	}
	stars := &redactor{body: io.NopCloser(strings.NewReader("a " + mask + " b")), token: []byte(mask)}
	if got, err := io.ReadAll(stars); err != nil || string(got) != "a "+mask+" b" {
		t.Errorf("a token of asterisks: %q %v", got, err)
	}
	// What can't be a token's beginning is not held back.
	pr, pw := io.Pipe()
	r := &redactor{body: pr, token: []byte(token)}
	go func() { _, _ = io.WriteString(pw, "data: 1\n\n") }()
	buf := make([]byte, 64)
	if n, err := r.Read(buf); err != nil || string(buf[:n]) != "data: 1\n\n" {
		t.Errorf("%q %v", buf[:n], err)
	}
	_ = pw.Close()
}

// A grant that ends while a reload asks the flows is not taken for one whose flows were cut.
func TestEndDuringASweepIsSeenByTheNextTick(t *testing.T) {
	dir := t.TempDir()
	if err := EnsureCA(dir+"/c", dir+"/k", "test"); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	ends := now.Add(time.Minute)
	doc, err := bottle.NewRoutes([]bottle.Route{{Host: "a.example.com", Grant: &bottle.Grant{
		Request: "r1", By: "0 op", At: now, Duration: bottle.Duration{Kind: bottle.TTL, TTL: time.Minute}, ExpiresAt: &ends,
	}}})
	if err != nil {
		t.Fatal(err)
	}
	b, _, err := doc.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	if err := bottle.WriteFile(dir+"/r", b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := bottle.WriteStatus(dir+"/h", bottle.Hop{Schema: bottle.Schema, Pipelock: "127.0.0.1:1"}); err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{
		Routes: dir + "/r", SpentPath: dir + "/o", CACert: dir + "/c", CAKey: dir + "/k", HopFile: dir + "/h",
		Listener: new(net.TCPListener), KeyListener: new(net.UnixListener), // it is not run
		Report: func(bottle.DaemonStatus) error { return nil }, Logger: slog.New(slog.DiscardHandler), Now: func() time.Time { return now },
	})
	if err != nil {
		t.Fatal(err)
	}
	f := &flow{}
	question := func() bool { // it is allowed still, and an instant later it isn't
		now = ends.Add(time.Second)
		return true
	}
	f.question.Store(&question)
	s.flows.add(f)
	if v := s.reload(); v.refused != nil {
		t.Fatal(v.refused)
	}
	if s.over == s.ended(s.snap.Load()) {
		t.Error("the end went by unseen")
	}
}

// pieces is a connection whose reads give what is there in steps of n bytes.
type pieces struct {
	net.Conn
	r io.Reader
	n int
}

func (p *pieces) Read(b []byte) (int, error) { return p.r.Read(b[:min(len(b), p.n)]) }

// FuzzWire holds the two ends together: where wireConn lets a stream of requests pass,
// net/http reads the same framing in it, whatever the sizes of reads.
func FuzzWire(f *testing.F) {
	f.Add([]byte("GET http://a.b/ HTTP/1.1\r\nHost: a.b\r\n\r\n"), 3)
	f.Add([]byte("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.0\r\n\r\n"), 1)
	f.Add([]byte("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), 7)
	f.Add([]byte("GET / HTTP/1.1\r\nHost: a\r\nX: b\nY: c\r\n\r\n"), 100)
	f.Add([]byte("CONNECT a.b:443 HTTP/1.1\r\n\r\n\x16\x03\x01"), 2)
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		if n < 1 || n > 4096 {
			n = 1
		}
		pass := func(n int) ([]byte, *violation) {
			c := &wireConn{Conn: &pieces{r: bytes.NewReader(b), n: n}}
			var out bytes.Buffer
			_, err := io.Copy(&out, struct{ io.Reader }{c})
			var v *violation
			if err != nil && !errors.As(err, &v) {
				t.Fatal(err)
			}
			return out.Bytes(), v
		}
		whole, v := pass(4096)
		some, v2 := pass(n)
		if (v == nil) != (v2 == nil) || v != nil && v.reason != v2.reason {
			t.Fatalf("reads of %d bytes change the verdict: %v, %v", n, v, v2)
		}
		if v == nil && (!bytes.Equal(whole, b) || !bytes.Equal(some, b)) {
			t.Fatal("bytes lost")
		}
		// Each message that both read to its end must end at the same byte.
		theirs := endsByNetHTTP(b)
		for i, end := range endsByWire(b) {
			if i < len(theirs) && theirs[i] != end {
				t.Fatalf("message %d ends at %d for wireConn and at %d for net/http", i, end, theirs[i])
			}
		}
	})
}

func endsByWire(b []byte) (ends []int) {
	c := &wireConn{}
	for i := range b {
		if _, v := c.scan(b[i : i+1]); v != nil || c.state == raw {
			break
		}
		if c.state == inRequestLine && c.size == 0 {
			ends = append(ends, i+1)
		}
	}
	return ends
}

func endsByNetHTTP(b []byte) (ends []int) {
	r := bytes.NewReader(b)
	br := bufio.NewReader(r)
	for {
		req, err := http.ReadRequest(br)
		if err != nil {
			return ends
		}
		if _, err := io.Copy(io.Discard, req.Body); err != nil {
			return ends
		}
		ends = append(ends, len(b)-r.Len()-br.Buffered())
	}
}
