package egress_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"bottle/bottle"
)

func TestFronting(t *testing.T) {
	w := newWorld(t, []bottle.Route{whole("a.example.com"), whole("b.example.com"), {Host: "pass.example.com", TLS: bottle.Passthrough}})
	for _, h := range []string{"a.example.com", "b.example.com", "pass.example.com"} {
		w.upstream(h, func(http.ResponseWriter, *http.Request) { t.Errorf("a request reached %s", h) })
	}
	for _, tc := range []struct{ name, connect, sni, request, status string }{
		{"other SNI", "a.example.com", "b.example.com", "GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n", "403"},
		{"no SNI", "a.example.com", "", "GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n", "403"},
		{"no SNI, passthrough", "pass.example.com", "", "GET / HTTP/1.1\r\nHost: pass.example.com\r\n\r\n", "403"},
		{"other SNI, passthrough", "pass.example.com", "a.example.com", "GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n", "403"},
		{"other Host", "a.example.com", "a.example.com", "GET / HTTP/1.1\r\nHost: b.example.com\r\n\r\n", "421"},
		{"other port in Host", "a.example.com", "a.example.com", "GET / HTTP/1.1\r\nHost: a.example.com:8443\r\n\r\n", "421"},
		{"absolute-form to another", "a.example.com", "a.example.com", "GET https://b.example.com/ HTTP/1.1\r\nHost: b.example.com\r\n\r\n", "421"},
		{"absolute-form, Host differs", "a.example.com", "a.example.com", "GET https://a.example.com/ HTTP/1.1\r\nHost: b.example.com\r\n\r\n", "421"},
		{"http inside TLS", "a.example.com", "a.example.com", "GET http://a.example.com/ HTTP/1.1\r\nHost: a.example.com\r\n\r\n", "421"},
		{"CONNECT inside TLS", "a.example.com", "a.example.com", "CONNECT b.example.com:443 HTTP/1.1\r\nHost: b.example.com:443\r\n\r\n", "421"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, status := w.tunnel(tc.connect + ":443")
			if status != 200 {
				t.Fatal(status)
			}
			tlsc := tls.Client(c, &tls.Config{InsecureSkipVerify: true, ServerName: tc.sni})
			if _, err := io.WriteString(tlsc, tc.request); err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(tlsc)
			if err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 "+tc.status) || !strings.Contains(string(b), "fronting") {
				t.Errorf("%v %s", err, b)
			}
		})
	}
	t.Run("not TLS", func(t *testing.T) {
		for _, host := range []string{"a.example.com:80", "pass.example.com:443", "unknown.example.com:22"} {
			c, _ := w.tunnel(host)
			_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: b.example.com\r\n\r\n")
			if b, err := io.ReadAll(c); err != nil || !strings.Contains(string(b), "not TLS") {
				t.Errorf("%s: %v %q", host, err, b)
			}
		}
	})
	if got := w.gate.targets(); len(got) != 0 {
		t.Errorf("dialled %v", got)
	}
	found := 0
	for _, d := range w.denials() {
		if strings.Contains(d.Reason, "fronting") {
			found++
		}
	}
	if found < 8 {
		t.Errorf("%d groups of fronting in the denials: %+v", found, w.denials())
	}
}

func TestBadConnectTargets(t *testing.T) {
	w := newWorld(t, []bottle.Route{whole("example.com"), whole("*.corp.example.com")})
	for _, target := range []string{
		"127.0.0.1:443", "2130706433:443", "0x7f000001:443", "0177.0.0.1:443", "127.1:443", "[::1]:443", "[::ffff:127.0.0.1]:443", "[fe80::1%25eth0]:443",
		"example.com", "example.com:0", "example.com:65536", "example.com:0443", "example.com:+443", "example.com:443:443", "user@example.com:443", "user:pw@example.com:443",
		"example.com%00.evil.test:443", "ex%61mple.com:443", "example.com/:443", "*.corp.example.com:443", "example..com:443", "example.com..:443",
		strings.Repeat("a", 64) + ".com:443", "-example.com:443", "exam_ple.com:443", "http://example.com:443", "\xff.com:443",
	} {
		c := w.dial()
		_, _ = io.WriteString(c, "CONNECT "+target+" HTTP/1.1\r\nHost: x\r\n\r\n")
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Errorf("%q: %v", target, err)
			continue
		}
		b, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if res.StatusCode != 403 || res.Header.Get("X-Bottle-Layer") != "egress" || len(b) == 0 {
			t.Errorf("%q: %s %s", target, res.Status, b)
		}
	}
	// Other spellings of an allowed name are that name; neighbours of it are not.
	w.upstream("example.com", hello)
	for host, want := range map[string]int{
		"EXAMPLE.com": 200, "example.com.": 200, "notexample.com": 403, "example.com.evil.test": 403, "www.example.com": 403,
		"corp.example.com": 403, "a.b.corp.example.com": 403, "xn--exmple-cua.com": 403, "exаmple.com": 403,
	} {
		ascii := host
		if host == "exаmple.com" {
			ascii = "xn--exmple-4nf.com"
		}
		c, status := w.tunnel(ascii + ":443")
		if status != 200 {
			t.Errorf("%s: CONNECT %d", host, status)
			continue
		}
		tc := tls.Client(c, &tls.Config{RootCAs: w.roots, ServerName: strings.ToLower(strings.TrimSuffix(ascii, "."))})
		_, _ = fmt.Fprintf(tc, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", ascii)
		hres, err := http.ReadResponse(bufio.NewReader(tc), nil)
		if err != nil {
			t.Errorf("%s: %v", host, err)
			continue
		}
		_ = hres.Body.Close()
		if hres.StatusCode != want {
			t.Errorf("%s: %s, want %d", host, hres.Status, want)
		}
	}
	if got := w.gate.targets(); len(got) != 1 && len(got) != 2 || got[0] != "example.com:443" {
		t.Errorf("dialled %v", got)
	}
}

func TestSmuggling(t *testing.T) {
	w := newWorld(t, []bottle.Route{whole("plain.example.com")})
	var reached atomic.Int32
	w.plainUpstream("plain.example.com", func(rw http.ResponseWriter, r *http.Request) { reached.Add(1); hello(rw, r) })
	const line, host = "POST http://plain.example.com/ HTTP/1.1\r\n", "Host: plain.example.com\r\n"
	for _, tc := range []struct{ name, request, status string }{
		{"CL and TE", line + host + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400"},
		{"TE and CL", line + host + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", "400"},
		{"two CL", line + host + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", "400"},
		{"two equal CL", line + host + "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", "400"},
		{"CL list", line + host + "Content-Length: 5, 5\r\n\r\nhello", "400"},
		{"CL sign", line + host + "Content-Length: +5\r\n\r\nhello", "400"},
		{"TE twice", line + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", "400"},
		{"TE other", line + host + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "400"},
		{"TE with a tab", line + host + "Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n", "400"},
		{"space before colon", line + host + "Content-Length : 5\r\n\r\nhello", "400"},
		{"bare LF in the head", line + "Host: plain.example.com\nX: y\r\n\r\n", "400"},
		{"bare LF request line", "GET http://plain.example.com/ HTTP/1.1\n" + host + "\r\n", "400"},
		{"bare LF ends the head", line + host + "Content-Length: 0\r\n\n", "400"},
		{"bare CR", line + host + "X: a\rTransfer-Encoding: chunked\r\n\r\n", "400"},
		{"NUL", line + host + "X: a\x00b\r\n\r\n", "400"},
		{"folded", line + host + "X: a\r\n b\r\n\r\n", "400"},
		{"no colon", line + host + "X\r\n\r\n", "400"},
		{"two Hosts", line + host + host + "\r\n", "400"},
		{"Host differs from target", line + "Host: other.example.com\r\n\r\n", "421"},
		{"two spaces", "GET  http://plain.example.com/ HTTP/1.1\r\n" + host + "\r\n", "400"},
		{"version", "GET http://plain.example.com/ HTTP/1.2\r\n" + host + "\r\n", "505"},
		{"h2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505"},
		{"fragment", "GET http://plain.example.com/#x HTTP/1.1\r\n" + host + "\r\n", "400"},
		{"Upgrade with a body", line + host + "Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 5\r\n\r\nhello", "400"},
		{"origin-form", "GET / HTTP/1.1\r\n" + host + "\r\n", "400"},
		{"https without CONNECT", "GET https://plain.example.com/ HTTP/1.1\r\n" + host + "\r\n", "400"},
		{"ftp", "GET ftp://plain.example.com/ HTTP/1.1\r\n" + host + "\r\n", "400"},
		{"userinfo", "GET http://u@plain.example.com/ HTTP/1.1\r\n" + host + "\r\n", "403"},
		{"head over its bound", line + host + "X: " + strings.Repeat("a", 70<<10) + "\r\n\r\n", "431"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := w.dial()
			go func() { _, _ = io.WriteString(c, tc.request) }()
			b, _ := io.ReadAll(c) // a reset may follow the answer
			if !strings.HasPrefix(string(b), "HTTP/1.1 "+tc.status+" ") || !strings.Contains(string(b), "X-Bottle-Layer: egress") {
				t.Errorf("got %.300q", b)
			}
			if strings.Count(string(b), "X-Bottle-Layer") != 1 {
				t.Errorf("more than one answer: %q", b)
			}
		})
	}
	if n := reached.Load(); n != 0 {
		t.Errorf("%d requests reached the upstream", n)
	}
	t.Run("bad chunk after a good head", func(t *testing.T) {
		for _, chunk := range []string{"5;ext=1\r\nhello\r\n0\r\n\r\n", "5\nhello\r\n0\r\n\r\n", "0x5\r\nhello\r\n0\r\n\r\n", "5\r\nhelloGET / HTTP/1.1\r\n\r\n", "ffffffffffffffff\r\nhello"} {
			c := w.dial()
			_, _ = io.WriteString(c, line+host+"Transfer-Encoding: chunked\r\n\r\n"+chunk)
			b, _ := io.ReadAll(c)
			if strings.Contains(string(b), "200 OK") {
				t.Errorf("%q: %q", chunk, b)
			}
		}
	})
	t.Run("pipelined good ones", func(t *testing.T) {
		c := w.dial()
		_, _ = io.WriteString(c, strings.Repeat(line+host+"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 2)+line+host+"Content-Length: 2\r\nConnection: close\r\n\r\nhi")
		b, err := io.ReadAll(c)
		if n := strings.Count(string(b), "200 OK"); n != 3 || err != nil {
			t.Errorf("%d answers, %v: %s", n, err, b)
		}
	})
}
