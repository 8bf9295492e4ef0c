package egress_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"bottle/bottle"
	"bottle/bottle/egress"
)

// After an Upgrade, be it an empty one, the connection is not framed any more: it must not
// serve a second request, which nobody watched.
func TestEmptyUpgradeEndsTheConnection(t *testing.T) {
	w := newWorld(t, []bottle.Route{whole("plain.example.com")})
	var paths atomic.Int32
	w.plainUpstream("plain.example.com", func(rw http.ResponseWriter, r *http.Request) { paths.Add(1); hello(rw, r) })
	const request = "GET http://plain.example.com/%s HTTP/1.1\r\nHost: plain.example.com\r\n%s\r\n"
	for _, upgrade := range []string{"Upgrade:\r\n", "Upgrade: \r\n", "upgrade: h2c\r\n"} {
		paths.Store(0)
		c := w.dial()
		_, _ = io.WriteString(c, fmt.Sprintf(request, "1", upgrade)+fmt.Sprintf(request, "2", "X: a\n"))
		b, _ := io.ReadAll(c)
		if n := strings.Count(string(b), "HTTP/1.1 "); n != 1 || paths.Load() != 1 {
			t.Errorf("%q: %d answers, %d requests went on: %q", upgrade, n, paths.Load(), b)
		}
	}
}

// A server that makes no difference between _ and - must not be told by the one spelling
// what the other is judged, or dropped, for.
func TestHeadersInOtherSpellings(t *testing.T) {
	limited := below("limited.example.com", "/v1")
	limited.Matches[0].Headers = []bottle.HeaderMatch{{Name: "X-Tenant", Value: "a"}}
	keyed := whole("keyed.example.com")
	keyed.Credential = "keyed"
	w := newWorld(t, []bottle.Route{limited, keyed, whole("free.example.com")}, withCredentials(credentials()))
	var seen atomic.Pointer[http.Header]
	for _, host := range []string{"limited.example.com", "keyed.example.com", "free.example.com"} {
		w.upstream(host, func(rw http.ResponseWriter, r *http.Request) {
			head := r.Header.Clone()
			seen.Store(&head)
			hello(rw, r)
		})
	}
	if err := egress.HandKeys(t.Context(), w.init.socket, map[string]string{"keyed": secret}); err != nil {
		t.Fatal(err)
	}
	get := func(url string, header http.Header) (answer, http.Header) {
		t.Helper()
		seen.Store(&http.Header{})
		a := w.do(w.agent(), "GET", url, header)
		return a, *seen.Load()
	}
	for _, name := range []string{
		"X_original_url", "X-Original_url", "X_http_method_override", "X_rewrite_url", "X_forwarded_host", "X_Forwarded-Server",
		"X-Host", "X-Original-Host", "X-Forwarded-Server", "X-Http-Host-Override", "X_host", "Transfer_encoding", "Proxy_authorization",
	} {
		a, got := get("https://limited.example.com/v1/x", http.Header{"X-Tenant": {"a"}, name: {"/admin"}})
		if a.status != 200 || got[name] != nil {
			t.Errorf("%s: %d, the upstream saw %v", name, a.status, got)
		}
	}
	if a, got := get("https://limited.example.com/v1/x", http.Header{"X-Tenant": {"a"}, "X_tenant": {"b"}}); a.status != 403 || len(got) != 0 || !strings.Contains(a.body, "X_tenant") {
		t.Errorf("a twin of what is matched: %+v", a)
	}
	for _, name := range []string{"X_api_key", "X-Api_key"} {
		if a, got := get("https://keyed.example.com/", http.Header{name: {"mine"}}); a.status != 403 || len(got) != 0 {
			t.Errorf("%s beside a credential: %+v", name, a)
		}
	}
	own := http.Header{"X_tenant": {"b"}, "X_api_key": {"mine"}, "X-Original-Url": {"/x"}}
	if a, got := get("https://free.example.com/", own); a.status != 200 || !slices.Equal(got["X_tenant"], own["X_tenant"]) || got["X_api_key"] == nil || got["X-Original-Url"] == nil {
		t.Errorf("a whole host: %+v, the upstream saw %v", a, got)
	}
}

// Wherever an upstream may echo the token, it comes back masked.
func TestNoEchoShowsAToken(t *testing.T) {
	route := whole("api.example.com")
	route.Credential = "example"
	w := newWorld(t, []bottle.Route{route}, withCredentials(credentials()))
	var seen atomic.Pointer[http.Header]
	w.upstream("api.example.com", func(rw http.ResponseWriter, r *http.Request) {
		head := r.Header.Clone()
		seen.Store(&head)
		h, auth := rw.Header(), r.Header.Get("Authorization")
		switch r.URL.Path {
		case "/early":
			h.Set("Link", auth)
			rw.WriteHeader(http.StatusEarlyHints)
			h.Del("Link")
			hello(rw, r)
		case "/trailer":
			h.Set("Trailer", "X-Told")
			hello(rw, r)
			h.Set("X-Told", auth)
			h.Set(http.TrailerPrefix+"X-Untold", auth)
		case "/upgrade":
			h.Set("X-Echo", auth)
			acceptWebsocket(rw, r)
		default:
			hello(rw, r)
		}
	})
	if err := egress.HandKeys(t.Context(), w.init.socket, map[string]string{"example": secret}); err != nil {
		t.Fatal(err)
	}
	raw := func(path, more string) string {
		t.Helper()
		conn, _ := w.tunnel("api.example.com:443")
		c := tls.Client(conn, &tls.Config{RootCAs: w.roots, ServerName: "api.example.com"})
		_, _ = fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: api.example.com\r\n%s\r\n", path, more)
		b, _ := io.ReadAll(c)
		return string(b)
	}
	const done = "Connection: close\r\n"
	mask := strings.Repeat("*", len(secret))
	for _, tc := range []struct{ path, header, want string }{
		{"/early", done, "HTTP/1.1 103 "},
		{"/trailer", done, "X-Told: Bearer " + mask},
		{"/trailer", done, "X-Untold: Bearer " + mask},
		{"/upgrade", websocketHead, "X-Echo: Bearer " + mask},
	} {
		got := raw(tc.path, tc.header)
		if strings.Contains(got, secret) || !strings.Contains(got, tc.want) || !strings.Contains(got, "hello") {
			t.Errorf("%s: %q is not in %q", tc.path, tc.want, got)
		}
	}
	// What would make an echo unrecognisable is not asked for.
	raw("/", done+"Accept-Encoding: gzip\r\nRange: bytes=0-9\r\nIf-Range: \"x\"\r\n")
	if got := *seen.Load(); got.Get("Accept-Encoding") != "identity" || got["Range"] != nil || got["If-Range"] != nil {
		t.Errorf("upstream saw %v", got)
	}
	raw("/upgrade", websocketHead+"Sec-WebSocket-Extensions: permessage-deflate\r\n")
	if got := *seen.Load(); got["Sec-Websocket-Extensions"] != nil {
		t.Errorf("upstream saw %v", got)
	}
}

// A token that is handed over stays, whoever else reaches the socket.
func TestHeldTokenIsNotReplaced(t *testing.T) {
	route := whole("api.example.com")
	route.Credential = "example"
	w := newWorld(t, []bottle.Route{route}, withCredentials(credentials()))
	w.upstream("api.example.com", func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+secret {
			rw.WriteHeader(http.StatusUnauthorized)
		}
	})
	hand := func(tokens map[string]string) error { return egress.HandKeys(t.Context(), w.init.socket, tokens) }
	if err := hand(map[string]string{"example": secret}); err != nil {
		t.Fatal(err)
	}
	if err := hand(map[string]string{"example": secret}); err != nil {
		t.Errorf("the same again: %v", err)
	}
	err := hand(map[string]string{"example": "of-somebody-else", "keyed": "of-somebody-else"})
	if err == nil || !strings.Contains(err.Error(), "credential example: another token is held") || strings.Contains(err.Error(), secret) {
		t.Errorf("another one: %v", err)
	}
	if a := w.get("https://api.example.com/"); a.status != 200 {
		t.Errorf("%+v", a)
	}
	if st := w.waitStatus(func(bottle.DaemonStatus) bool { return true }); !slices.Equal(st.Needs, []string{"keyed"}) {
		t.Errorf("a refused handover left something: needs %v", st.Needs)
	}
}
