package egress_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"bottle/bottle"
	"bottle/bottle/egress"
)

const secret = "s3cr3t-token-of-the-operator"

func credentials() map[string]bottle.Credential {
	return map[string]bottle.Credential{
		"example": {Header: "Authorization", Scheme: "Bearer", TokenEnv: "X", Hosts: []bottle.Host{"api.example.com"}},
		"keyed":   {Header: "X-Api-Key", TokenEnv: "Y", Hosts: []bottle.Host{"keyed.example.com"}},
	}
}

func TestCredential(t *testing.T) {
	route := below("api.example.com", "/v1")
	route.Credential = "example"
	keyed := whole("keyed.example.com")
	keyed.Credential = "keyed"
	w := newWorld(t, []bottle.Route{route, keyed, whole("plainhost.example.com")}, withCredentials(credentials()))
	var seen atomic.Pointer[http.Header]
	h := func(rw http.ResponseWriter, r *http.Request) {
		head := r.Header.Clone()
		seen.Store(&head)
		rw.Header().Set("X-Echo", "you sent "+r.Header.Get("Authorization"))
		if strings.HasSuffix(r.URL.Path, "/redirect") {
			http.Redirect(rw, r, "https://plainhost.example.com/", http.StatusFound)
			return
		}
		_, _ = fmt.Fprintf(rw, "echo: %s%s.", r.Header.Get("Authorization"), r.Header.Get("X-Api-Key"))
	}
	for _, host := range []string{"api.example.com", "keyed.example.com", "plainhost.example.com"} {
		w.upstream(host, h)
	}
	w.plainUpstream("api.example.com", h)

	if st := w.waitStatus(func(bottle.DaemonStatus) bool { return true }); !slices.Equal(st.Needs, []string{"example", "keyed"}) {
		t.Errorf("needs %v", st.Needs)
	}
	if a := w.get("https://api.example.com/v1/x"); a.status != 503 || !strings.Contains(a.body, "credential example has not been handed over") {
		t.Errorf("without its token: %+v", a)
	}
	if err := egress.HandKeys(t.Context(), w.init.socket, map[string]string{"example": secret, "keyed": secret}); err != nil {
		t.Fatal(err)
	}
	w.waitStatus(func(st bottle.DaemonStatus) bool { return len(st.Needs) == 0 })

	own := http.Header{"Authorization": {"Bearer mine"}, "X-Api-Key": {"mine"}, "Connection": {"Authorization, X-Api-Key"}}
	a := w.do(w.agent(), "GET", "https://api.example.com/v1/x", own.Clone())
	if got := (*seen.Load())["Authorization"]; !slices.Equal(got, []string{"Bearer " + secret}) {
		t.Errorf("upstream saw %q", got)
	}
	if strings.Contains(a.body, secret) || strings.Contains(fmt.Sprint(a.header), secret) {
		t.Errorf("the echo shows it: %+v", a)
	}
	w.do(w.agent(), "GET", "https://keyed.example.com/", own.Clone())
	if got := *seen.Load(); !slices.Equal(got["X-Api-Key"], []string{secret}) || got["Authorization"] != nil {
		t.Errorf("upstream saw %v", got)
	}
	// Nowhere else: another path, another host, plain http, a redirect.
	if a := w.get("https://api.example.com/other"); a.status != 403 {
		t.Errorf("%+v", a)
	}
	if a := w.get("http://api.example.com/v1/x"); a.status != 403 || !strings.Contains(a.body, "TLS") {
		t.Errorf("plain http: %+v", a)
	}
	w.get("https://api.example.com/v1/redirect")
	if got := (*seen.Load()).Get("Authorization"); got != "" {
		t.Errorf("the redirect carried %q", got)
	}
	if a := w.do(w.agent(), "TRACE", "https://api.example.com/v1/x", nil); a.status != 405 {
		t.Errorf("%+v", a)
	}
	for _, path := range []string{"routes", "denials", "check?url=https://api.example.com/v1/x"} {
		if a := w.get("http://egress.bottle.internal/" + path); strings.Contains(a.body, secret) {
			t.Errorf("%s shows it", path)
		}
	}
	if strings.Contains(w.init.told(t)+w.log.String(), secret) {
		t.Error("the status or the log shows it")
	}
	// To an upstream whose certificate is not right, nothing is sent.
	w.upstream("api.example.com", h).TLS.Certificates[0] = newTestCA(t).leaf(t, "api.example.com")
	w.setRoutes([]bottle.Route{route}) // a reload drops the connections that nothing uses
	seen.Store(nil)
	if a := w.get("https://api.example.com/v1/x"); a.status != 502 || seen.Load() != nil {
		t.Errorf("%+v", a)
	}
}

// A stream that carries a credential ends when the credential is taken off its host.
func TestRevokedCredentialCutsItsStreams(t *testing.T) {
	route := whole("api.example.com")
	route.Credential = "example"
	w := newWorld(t, []bottle.Route{route}, withCredentials(credentials()))
	gone := make(chan struct{}, 1)
	w.upstream("api.example.com", stream(gone))
	if err := egress.HandKeys(t.Context(), w.init.socket, map[string]string{"example": secret}); err != nil {
		t.Fatal(err)
	}
	body := w.open("https://api.example.com/")
	w.setRoutes([]bottle.Route{whole("api.example.com")})
	if _, err := io.Copy(io.Discard, body); err == nil {
		t.Error("a clean end")
	}
	<-gone
}

func TestRoutesWithACredentialForAnotherHostAreRefused(t *testing.T) {
	w := newWorld(t, nil, withCredentials(credentials()))
	bad := whole("evil.example.com")
	bad.Credential = "example"
	w.writeRoutes([]bottle.Route{bad})
	w.reload <- struct{}{}
	st := w.waitStatus(func(st bottle.DaemonStatus) bool { return st.Refused != nil })
	if !strings.Contains(st.Refused.Error, "evil.example.com") {
		t.Errorf("%+v", st.Refused)
	}
}

func TestKeySocket(t *testing.T) {
	w := newWorld(t, nil, withCredentials(credentials()))
	for name, tokens := range map[string]map[string]string{
		"unknown":      {"example": secret, "nobody": secret},
		"empty":        {"example": ""},
		"line break":   {"example": secret + "\n"},
		"control":      {"example": secret + "\x00"},
		"far too long": {"example": strings.Repeat("x", 20<<10)},
	} {
		err := egress.HandKeys(t.Context(), w.init.socket, tokens)
		if err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, line := range []string{"\n", "{}\n", `{"schema":2,"tokens":{}}` + "\n", `{"schema":1,"tokens":{"example":5}}` + "\n"} {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "unix", w.init.socket)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, line)
		var reply struct {
			OK    bool
			Error string
		}
		if err := json.NewDecoder(c).Decode(&reply); err != nil || reply.OK || reply.Error == "" {
			t.Errorf("%q: %+v %v", line, reply, err)
		}
		_ = c.Close()
	}
	if st := w.waitStatus(func(bottle.DaemonStatus) bool { return true }); len(st.Needs) != 2 {
		t.Errorf("a refused handover left something: %v", st.Needs)
	}
	before := w.waitStatus(func(bottle.DaemonStatus) bool { return true }).Instance
	w.stop()
	nobody := filepath.Join(w.dir, "nobody.sock")
	if err := egress.HandKeys(t.Context(), nobody, nil); err == nil {
		t.Error("handed to nobody")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := egress.HandKeys(ctx, w.init.socket, nil); err == nil {
		t.Error("handed to an egress that is gone")
	}
	// The next one has the same socket, and no token.
	w.start()
	if st := w.waitStatus(func(bottle.DaemonStatus) bool { return true }); st.Instance == before || len(st.Needs) != 2 {
		t.Errorf("%+v", st)
	}
}
