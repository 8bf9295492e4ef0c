package egress_test

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"bottle/bottle"
	"bottle/bottle/egress"
)

const (
	querySecret = "q+s3cr3t/of the&operator"
	password    = "p:ssw0rd-of-the-operator"
	pair        = "someone-secret:another-secret"
)

func forms() map[string]bottle.Credential {
	return map[string]bottle.Credential{
		"maps": {Query: "api_key", TokenEnv: "X", Hosts: []bottle.Host{"maps.example.com"}},
		"user": {Basic: &bottle.Basic{User: "joe"}, TokenEnv: "Y", Hosts: []bottle.Host{"user.example.com"}},
		"pair": {Basic: &bottle.Basic{}, TokenEnv: "Z", Hosts: []bottle.Host{"pair.example.com"}},
	}
}

// everySecret is each text that must not be seen on the agent's side.
func everySecret() []string {
	code := base64.StdEncoding.EncodeToString
	return []string{
		querySecret, url.QueryEscape(querySecret), url.PathEscape(querySecret), password, "someone-secret", "another-secret",
		strings.TrimRight(code([]byte("joe:"+password)), "="), strings.TrimRight(code([]byte(pair)), "="),
	}
}

func hasSecret(text string) bool {
	return slices.ContainsFunc(everySecret(), func(s string) bool { return strings.Contains(text, s) })
}

// A formWorld is one whose upstreams take credentials of each form and echo all of it.
type formWorld struct {
	*world
	access *syncBuffer
	seen   atomic.Pointer[http.Request] // what an upstream was asked last
}

func newFormWorld(t *testing.T) *formWorld {
	t.Helper()
	w := &formWorld{access: &syncBuffer{}}
	var routes []bottle.Route
	for name, c := range forms() {
		routes = append(routes, bottle.Route{Host: c.Hosts[0], Credential: name})
	}
	routes = append(routes, whole("elsewhere.example.com"))
	w.world = newWorld(t, routes, withCredentials(forms()), func(c *egress.Config) { c.AccessLog = w.access })
	for _, c := range forms() {
		w.upstream2(string(c.Hosts[0]), w.echo)
		w.plainUpstream(string(c.Hosts[0]), w.echo)
	}
	w.upstream("elsewhere.example.com", w.echo)
	w.hand()
	return w
}

func (w *formWorld) hand() {
	w.t.Helper()
	if err := egress.HandKeys(w.t.Context(), w.init.socket, map[string]string{"maps": querySecret, "user": password, "pair": pair}); err != nil {
		w.t.Fatal(err)
	}
	w.waitStatus(func(st bottle.DaemonStatus) bool { return len(st.Needs) == 0 })
}

// echo says all that it was told, in a header, the body and a trailer, as an error page may.
func (w *formWorld) echo(rw http.ResponseWriter, r *http.Request) {
	w.seen.Store(r)
	user, pass, _ := r.BasicAuth()
	told := fmt.Sprintf("%s | %s | %s | %s %s", r.URL.RawQuery, r.URL.Query().Get("api_key"), r.Header.Get("Authorization"), user, pass)
	rw.Header().Set("X-Echo", told)
	rw.Header().Set("Trailer", "X-Last")
	if strings.HasSuffix(r.URL.Path, "/redirect") {
		http.Redirect(rw, r, "https://elsewhere.example.com/?"+r.URL.RawQuery, http.StatusFound) //nolint:gosec // G710: a test of what follows it
		return
	}
	_, _ = io.WriteString(rw, "you said "+told+".")
	rw.Header().Set("X-Last", told)
}

// Each form takes the place of whatever the agent sent, over both protocols.
func TestCredentialForms(t *testing.T) {
	w := newFormWorld(t)
	for proto, agent := range map[string]*http.Client{"HTTP/1.1": w.agent(), "HTTP/2.0": w.agent2()} {
		for _, tt := range []struct{ name, url, query, authorization string }{
			{"query alone", "https://maps.example.com/v1", "api_key=" + url.QueryEscape(querySecret), ""},
			{"query beside others", "https://maps.example.com/v1?b=%41&c=d%20e&&f", "api_key=" + url.QueryEscape(querySecret) + "&b=%41&c=d%20e&&f", ""},
			{"query of the agent's", "https://maps.example.com/v1?api_key=mine&a=b&api_key=again", "api_key=" + url.QueryEscape(querySecret) + "&a=b", ""},
			{"basic", "https://user.example.com/v1?api_key=mine", "api_key=mine", "Basic " + base64.StdEncoding.EncodeToString([]byte("joe:"+password))},
			{"basic, user secret too", "https://pair.example.com/", "", "Basic " + base64.StdEncoding.EncodeToString([]byte(pair))},
		} {
			t.Run(proto+" "+tt.name, func(t *testing.T) {
				a := w.do(agent, "GET", tt.url, http.Header{"Authorization": {"Bearer mine"}})
				r := w.seen.Load()
				if r.Proto != proto || r.URL.RawQuery != tt.query || r.Header.Get("Authorization") != tt.authorization || len(r.Header["Authorization"]) > 1 {
					t.Errorf("%s: the upstream saw %q, Authorization %q", r.Proto, r.URL.RawQuery, r.Header["Authorization"])
				}
				if a.status != 200 || hasSecret(a.body) || hasSecret(fmt.Sprint(a.header)) {
					t.Errorf("the echo shows it: %+v", a)
				}
			})
		}
	}
}

// The agent can't have a second one beside the operator's, in any spelling: what the standard
// reads as the parameter is taken out, and what some server might is refused.
func TestQueryCredentialIsNotDoubled(t *testing.T) {
	w := newFormWorld(t)
	mine := "api_key=" + url.QueryEscape(querySecret)
	for query, want := range map[string]string{ // "" is a refusal
		"api%5Fkey=x":             mine,
		"%61%70%69_key=x&a=1":     mine + "&a=1",
		"API_KEY=x":               mine,
		"api_key":                 mine,
		"api_key=&a":              mine + "&a",
		"a=api_key=x":             mine + "&a=api_key=x",
		"my_api_key=x&api_keys=y": mine + "&my_api_key=x&api_keys=y",
		"api%255Fkey=x":           "",
		"api%25255Fkey=x":         "",
		"a=1;api_key=x":           "",
		"api_key=x;a=1":           "",
		"api.key=x":               "",
		"api+key=x":               "",
		"api-key=x":               "",
		"%20api_key=x":            "",
		"api_key[]=x":             "",
		"api_key%5B0%5D=x":        "",
		"api_key%00z=x":           "",
		"api%u005fkey=x":          "",
		"?api_key=x":              "",
		"%zz&api_key%=x&api_key":  mine + "&%zz&api_key%=x",
	} {
		t.Run(query, func(t *testing.T) {
			w.seen.Store(nil)
			raw := w.raw("maps.example.com", "GET /v1?"+query+" HTTP/1.1\r\nHost: maps.example.com\r\nConnection: close\r\n\r\n")
			r := w.seen.Load()
			switch {
			case want == "" && (r != nil || raw.status != 403 || !strings.Contains(raw.body, "leave it out")):
				t.Errorf("%+v", raw)
			case want != "" && (r == nil || r.URL.RawQuery != want):
				t.Errorf("%+v: the upstream saw %v", raw, r)
			}
		})
	}
}

// raw sends text in a tunnel's TLS and reads one answer.
func (w *world) raw(host, text string) answer {
	w.t.Helper()
	conn, _ := w.tunnel(host + ":443")
	c := tls.Client(conn, &tls.Config{RootCAs: w.roots, ServerName: host})
	if _, err := io.WriteString(c, text); err != nil {
		w.t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return answer{res.StatusCode, res.Header, string(b)}
}

// No form shows up anywhere but at its own host, over TLS.
func TestCredentialFormsStaySecret(t *testing.T) {
	w := newFormWorld(t)
	var said []string
	for name, c := range forms() {
		host := string(c.Hosts[0])
		w.seen.Store(nil)
		if a := w.get("http://" + host + "/"); a.status != 403 || w.seen.Load() != nil {
			t.Errorf("%s over plain HTTP: %+v", name, a)
		}
		client := w.agent()
		client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		a := w.do(client, "GET", "https://"+host+"/redirect?a=b", nil)
		said = append(said, a.body, fmt.Sprint(a.header))
		w.get("https://" + host + "/redirect?a=b") // and followed
		if r := w.seen.Load(); r.Host != "elsewhere.example.com" || r.Header.Get("Authorization") != "" || hasSecret(r.URL.RawQuery) {
			t.Errorf("%s: the redirect carried %q %q", name, r.URL.RawQuery, r.Header.Get("Authorization"))
		}
		if a := w.do(w.agent(), "TRACE", "https://"+host+"/", nil); a.status != 405 {
			t.Errorf("%s: TRACE: %+v", name, a)
		}
		said = append(said, w.get("https://"+host+"/?api%2Dkey=x").body) // a refusal
	}
	for _, path := range []string{"routes", "denials", "check?url=https://maps.example.com/v1/x", "healthz"} {
		said = append(said, w.get("http://egress.bottle.internal/"+path).body)
	}
	said = append(said, w.init.told(t))
	w.stop()
	said = append(said, w.log.String(), w.access.String())
	for _, s := range said {
		if hasSecret(s) {
			t.Errorf("shown: %s", s)
		}
	}
	if s := w.access.String(); !strings.Contains(s, `"credential":"maps"`) || strings.Contains(s, "a=b") {
		t.Errorf("the access log: %s", s)
	}
}

// An error that quotes the upstream must not quote what it was told.
func TestGarbageWithASecretInIt(t *testing.T) {
	w := newFormWorld(t)
	for name, c := range forms() {
		w.upstream(string(c.Hosts[0]), func(rw http.ResponseWriter, r *http.Request) {
			conn, _, err := http.NewResponseController(rw).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			_, pass, _ := r.BasicAuth()
			_, _ = fmt.Fprintf(conn, "%s%s is what you sent\r\n\r\n", r.URL.Query().Get("api_key"), pass)
		})
		w.setRoutes([]bottle.Route{whole("elsewhere.example.com")}) // nothing is connected any more
		w.setRoutes([]bottle.Route{{Host: c.Hosts[0], Credential: name}})
		if a := w.get("https://" + string(c.Hosts[0]) + "/"); a.status != 502 || hasSecret(a.body) {
			t.Errorf("%s: %+v", name, a)
		}
	}
	w.stop()
	if said := w.log.String() + w.access.String(); hasSecret(said) {
		t.Errorf("shown: %s", said)
	}
}

func TestUnusableToken(t *testing.T) {
	w := newWorld(t, nil, withCredentials(forms()))
	err := egress.HandKeys(t.Context(), w.init.socket, map[string]string{"pair": "no-colon-in-it", "user": password})
	if err == nil || !strings.Contains(err.Error(), "credential pair: the token has no colon") || strings.Contains(err.Error(), "no-colon") {
		t.Errorf("%v", err)
	}
	if st := w.waitStatus(func(bottle.DaemonStatus) bool { return true }); len(st.Needs) != 3 {
		t.Errorf("taken in part: %v", st.Needs)
	}
}

func TestRouteThatJudgesWhatItReplaces(t *testing.T) {
	w := newWorld(t, nil, withCredentials(forms()))
	w.writeRoutes([]bottle.Route{{Host: "user.example.com", Credential: "user", Matches: []bottle.Match{{Headers: []bottle.HeaderMatch{{Name: "authorization", Value: "x"}}}}}})
	w.reload <- struct{}{}
	st := w.waitStatus(func(st bottle.DaemonStatus) bool { return st.Refused != nil })
	if !strings.Contains(st.Refused.Error, "no match can judge by it") {
		t.Errorf("%+v", st.Refused)
	}
}
