package egress_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"bottle/bottle"
	"bottle/bottle/egress"
)

// A notebook is what an upstream keeps of the newest request.
type notebook struct {
	mu   sync.Mutex
	last *http.Request
	body []byte
}

func (r *notebook) record(req *http.Request) {
	b, _ := io.ReadAll(req.Body)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last, r.body = req, b
}

func (r *notebook) header() http.Header {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last.Header
}

// byBoth runs f for HTTP/1.1 and for HTTP/2, on both sides.
func byBoth(t *testing.T, routes []bottle.Route, f func(t *testing.T, w *world, serve func(host string, h http.HandlerFunc), c *http.Client)) {
	t.Helper()
	t.Run("HTTP/1.1", func(t *testing.T) {
		w := newWorld(t, routes, withCredentials(credentials()))
		f(t, w, func(host string, h http.HandlerFunc) { w.upstream(host, h) }, w.agent())
	})
	t.Run("HTTP/2", func(t *testing.T) {
		w := newWorld(t, routes, withCredentials(credentials()))
		f(t, w, w.upstream2, w.agent2())
	})
}

// What goes by is as it was sent, but for what ends here.
func TestHeadersEndToEnd(t *testing.T) {
	byBoth(t, []bottle.Route{whole("api.example.com")}, func(t *testing.T, w *world, serve func(string, http.HandlerFunc), c *http.Client) {
		var rec notebook
		serve("api.example.com", func(rw http.ResponseWriter, r *http.Request) {
			rec.record(r)
			h := rw.Header()
			for _, name := range []string{"Alt-Svc", "X-Bottle-Layer", "Proxy-Authenticate", "Keep-Alive", "Connection"} {
				h.Set(name, "x")
			}
			h["Set-Cookie"] = []string{"a=1", "b=2"}
			h.Set("X-Kept", "yes")
			h["Content-Type"] = nil
			_, _ = io.WriteString(rw, "<html>")
		})
		sent := http.Header{
			"X-Kept": {"1", "2"}, "Te": {"trailers"}, "Cookie": {"a=1; b=2"}, "Accept-Encoding": {"br"}, "User-Agent": {"mine"},
			"Proxy-Authorization": {"x"}, "Forwarded": {"host=b"}, "X-Forwarded-For": {"1.1.1.1"}, "X-Forwarded-Host": {"b"},
		}
		a := w.do(c, "GET", "https://api.example.com/a%2fb/..%3b?q=%20;c&q", sent)
		got := rec.header()
		for _, name := range []string{"X-Kept", "Cookie", "Accept-Encoding", "User-Agent"} {
			if !slices.Equal(got[name], sent[name]) {
				t.Errorf("the upstream saw %s: %q", name, got[name])
			}
		}
		for _, name := range []string{"Proxy-Authorization", "Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "Via", "Connection"} {
			if got[name] != nil {
				t.Errorf("the upstream saw %s: %q", name, got[name])
			}
		}
		if te := got.Get("Te"); (te == "trailers") != (rec.last.ProtoMajor == 2) {
			t.Errorf("the upstream saw TE: %q", te)
		}
		if rec.last.RequestURI != "/a%2fb/..%3b?q=%20;c&q" {
			t.Errorf("the upstream saw %s", rec.last.RequestURI)
		}
		for _, name := range []string{"Alt-Svc", "X-Bottle-Layer", "Proxy-Authenticate", "Keep-Alive", "Connection", "Content-Type"} {
			if a.header[name] != nil {
				t.Errorf("the agent saw %s: %q", name, a.header[name])
			}
		}
		if a.body != "<html>" || !slices.Equal(a.header["Set-Cookie"], []string{"a=1", "b=2"}) || a.header.Get("X-Kept") != "yes" {
			t.Errorf("%+v", a)
		}
	})
}

func TestBodiesEndToEnd(t *testing.T) {
	const size = 300_000
	plain := bytes.Repeat([]byte("0123456789"), size/10)
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, _ = z.Write(plain)
	_ = z.Close()
	byBoth(t, []bottle.Route{whole("api.example.com")}, func(t *testing.T, w *world, serve func(string, http.HandlerFunc), c *http.Client) {
		var rec notebook
		serve("api.example.com", func(rw http.ResponseWriter, r *http.Request) {
			rec.record(r)
			h := rw.Header()
			switch r.URL.Path {
			case "/gzip":
				h.Set("Content-Encoding", "gzip")
				h.Set("Content-Length", strconv.Itoa(packed.Len()))
				_, _ = rw.Write(packed.Bytes())
			case "/big-head":
				h.Set("X-Big", strings.Repeat("x", 60<<10))
			case "/file":
				http.ServeContent(rw, r, "f.bin", time.Unix(1e9, 0), bytes.NewReader(plain))
			case "/304":
				h.Set("Etag", `"x"`)
				rw.WriteHeader(http.StatusNotModified)
			case "/echo":
				_, _ = rw.Write(rec.body)
			}
		})
		c.Transport.(*http.Transport).DisableCompression = true //nolint:errcheck // it is one
		type reply struct {
			status int
			length int64
			header http.Header
		}
		send := func(method, path string, body io.Reader, header http.Header) (reply, []byte) {
			t.Helper()
			req, err := http.NewRequestWithContext(t.Context(), method, "https://api.example.com"+path, body)
			if err != nil {
				t.Fatal(err)
			}
			if header != nil {
				req.Header = header
			}
			res, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			b, err := io.ReadAll(res.Body)
			if err != nil {
				t.Error(err)
			}
			return reply{res.StatusCode, res.ContentLength, res.Header}, b
		}
		if res, b := send("GET", "/gzip", nil, http.Header{"Accept-Encoding": {"gzip"}}); !bytes.Equal(b, packed.Bytes()) || res.header.Get("Content-Encoding") != "gzip" || res.length != int64(packed.Len()) {
			t.Errorf("compressed: %d bytes, %v", len(b), res.header)
		}
		if res, b := send("GET", "/file", nil, http.Header{"Range": {"bytes=10-19"}}); res.status != http.StatusPartialContent || string(b) != "0123456789" || res.header.Get("Content-Range") != fmt.Sprintf("bytes 10-19/%d", size) {
			t.Errorf("a range: %d %q %v", res.status, b, res.header)
		}
		if res, b := send("HEAD", "/file", nil, nil); res.status != 200 || res.length != size || len(b) != 0 {
			t.Errorf("HEAD: %d, length %d, %d bytes", res.status, res.length, len(b))
		}
		if res, _ := send("GET", "/304", nil, nil); res.status != http.StatusNotModified || res.header.Get("Etag") != `"x"` {
			t.Errorf("304: %d %v", res.status, res.header)
		}
		if res, _ := send("GET", "/big-head", nil, nil); len(res.header.Get("X-Big")) != 60<<10 {
			t.Errorf("a large head: %d", res.status)
		}
		if res, _ := send("GET", "/", nil, http.Header{"X-Big": {strings.Repeat("x", 60<<10)}}); res.status != 200 || len(rec.header().Get("X-Big")) != 60<<10 {
			t.Errorf("a large head of a request: %d", res.status)
		}
		for name, body := range map[string]io.Reader{"with a length": bytes.NewReader(plain), "without": io.MultiReader(bytes.NewReader(plain))} {
			if _, b := send("POST", "/echo", body, nil); !bytes.Equal(b, plain) {
				t.Errorf("an upload %s came back as %d bytes", name, len(b))
			}
		}
		if known := rec.last.ContentLength; known != -1 && known != size {
			t.Errorf("the length of an upload: %d", known)
		}
	})
}

// Informational responses go on as they come, and a body is not sent before it is wanted.
func TestInformationalResponses(t *testing.T) {
	keyed := whole("keyed.example.com")
	keyed.Credential = "keyed"
	byBoth(t, []bottle.Route{whole("api.example.com"), keyed}, func(t *testing.T, w *world, serve func(string, http.HandlerFunc), c *http.Client) {
		if err := egress.HandKeys(t.Context(), w.init.socket, map[string]string{"keyed": secret}); err != nil {
			t.Fatal(err)
		}
		for _, host := range []string{"api.example.com", "keyed.example.com"} {
			serve(host, func(rw http.ResponseWriter, r *http.Request) {
				rw.Header().Set("Link", "</a.css>; rel=preload")
				rw.Header().Set("Alt-Svc", "x")
				rw.Header().Set("X-Echo", r.Header.Get("X-Api-Key"))
				rw.WriteHeader(http.StatusEarlyHints)
				rw.Header().Del("Link")
				b, _ := io.ReadAll(r.Body)
				_, _ = rw.Write(b)
			})
		}
		for _, host := range []string{"api.example.com", "keyed.example.com"} {
			var hints []http.Header
			continued := false
			trace := &httptrace.ClientTrace{
				Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
					if code == http.StatusEarlyHints {
						hints = append(hints, http.Header(h))
					}
					return nil
				},
				Got100Continue: func() { continued = true },
			}
			req, err := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), trace), http.MethodPost, "https://"+host+"/", strings.NewReader("body"))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Expect", "100-continue")
			c.Transport.(*http.Transport).ExpectContinueTimeout = time.Minute //nolint:errcheck // it is one
			res, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(res.Body)
			_ = res.Body.Close()
			if err != nil || string(b) != "body" || !continued {
				t.Errorf("%s: %v %q, asked to go on: %t", host, err, b, continued)
			}
			if len(hints) != 1 || hints[0].Get("Alt-Svc") != "" || (hints[0].Get("Link") == "") != (host == "keyed.example.com") || hints[0].Get("X-Echo") != "" {
				t.Errorf("%s: hints %v", host, hints)
			}
		}
	})
}

// What is refused, or answered before its body was read, does not wait for the body.
func TestEarlyResponses(t *testing.T) {
	byBoth(t, []bottle.Route{below("api.example.com", "/v1"), {Host: "up.example.com"}}, func(t *testing.T, _ *world, serve func(string, http.HandlerFunc), c *http.Client) {
		serve("up.example.com", func(rw http.ResponseWriter, _ *http.Request) {
			_ = http.NewResponseController(rw).EnableFullDuplex() // else it waits for the body itself
			http.Error(rw, "too much", http.StatusRequestEntityTooLarge)
		})
		for url, want := range map[string]int{"https://api.example.com/v2": 403, "https://up.example.com/": 413} {
			pr, pw := io.Pipe()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, pr)
			if err != nil {
				t.Fatal(err)
			}
			go func() { _, _ = pw.Write([]byte("the beginning")) }()
			res, err := c.Do(req)
			if err != nil {
				t.Errorf("%s: %v", url, err)
				continue
			}
			if res.StatusCode != want {
				t.Errorf("%s: %s", url, res.Status)
			}
			_ = res.Body.Close()
			_ = pw.Close()
		}
	})
}

// A secret goes to its host alone, and does not come back in a head, a body or a trailer.
func TestCredentialEndToEnd(t *testing.T) {
	route := below("api.example.com", "/v1")
	route.Credential = "example"
	byBoth(t, []bottle.Route{route, whole("other.example.com")}, func(t *testing.T, w *world, serve func(string, http.HandlerFunc), c *http.Client) {
		var rec notebook
		for _, host := range []string{"api.example.com", "other.example.com"} {
			serve(host, func(rw http.ResponseWriter, r *http.Request) {
				rec.record(r)
				got := r.Header.Get("Authorization")
				if r.URL.Path == "/v1/redirect" {
					http.Redirect(rw, r, "https://other.example.com/", http.StatusTemporaryRedirect)
					return
				}
				rw.Header().Set("Trailer", "X-Sum")
				rw.Header().Set("X-Echo", got)
				for i := range len(got) { // byte by byte
					_, _ = io.WriteString(rw, got[i:i+1])
					_ = http.NewResponseController(rw).Flush()
				}
				rw.Header().Set("X-Sum", got)
				rw.Header().Set(http.TrailerPrefix+"X-Late", got)
			})
		}
		if err := egress.HandKeys(t.Context(), w.init.socket, map[string]string{"example": secret}); err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://api.example.com/v1/x", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer mine")
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		all := fmt.Sprint(res.Header, res.Trailer, string(b))
		if err != nil || strings.Contains(all, secret) || strings.Count(all, strings.Repeat("*", len(secret))) != 4 {
			t.Errorf("%v: %s", err, all)
		}
		if got := rec.header()["Authorization"]; !slices.Equal(got, []string{"Bearer " + secret}) {
			t.Errorf("the upstream saw %q", got)
		}
		if w.do(c, "GET", "https://api.example.com/v1/redirect", nil); rec.last.Host != "other.example.com" || rec.header()["Authorization"] != nil {
			t.Errorf("after a redirect %s saw %q", rec.last.Host, rec.header()["Authorization"])
		}
	})
}

// What a route judges by the query is what its upstream gets.
func TestQueryEndToEnd(t *testing.T) {
	route := bottle.Route{Host: "git.example.com", Matches: []bottle.Match{{
		Method: "GET", Path: &bottle.PathMatch{Type: bottle.PathPrefix, Value: "/r/info/refs"},
		Query: []bottle.QueryMatch{{Name: "service", Value: "git-upload-pack"}},
	}}}
	byBoth(t, []bottle.Route{route}, func(t *testing.T, w *world, serve func(string, http.HandlerFunc), c *http.Client) {
		var rec notebook
		serve("git.example.com", func(_ http.ResponseWriter, r *http.Request) { rec.record(r) })
		for query, want := range map[string]int{
			"?service=git-upload-pack": 200, "?a=b&%73ervice=git%2dupload-pack": 200,
			"?service=git-receive-pack": 403, "": 403, "?service=git-upload-pack&service=git-receive-pack": 403,
			"?service=git-upload-pack;service=git-receive-pack": 403, "?service=git-upload-pack&Service=git-receive-pack": 403,
		} {
			a := w.do(c, "GET", "https://git.example.com/r/info/refs"+query, nil)
			if a.status != want || want == 200 && rec.last.RequestURI != "/r/info/refs"+query {
				t.Errorf("%s: %+v", query, a)
			}
			check, err := egress.Client{Proxy: w.addr}.Check(t.Context(), "https://git.example.com/r/info/refs"+query, "")
			if err != nil || check.Allowed != (want == 200) {
				t.Errorf("%s: %+v %v", query, check, err)
			}
		}
	})
}
