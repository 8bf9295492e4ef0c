package egress_test

import (
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"testing"

	"bottle/bottle"
)

// one is a session cache that offers the last session to every host.
type one struct{ session *tls.ClientSessionState }

func (c *one) Get(string) (*tls.ClientSessionState, bool) { return c.session, c.session != nil }

func (c *one) Put(_ string, s *tls.ClientSessionState) { c.session = s }

// A session with an agent is resumed for its own host alone, whatever the agent offers.
func TestAgentSessionIsResumedForItsHostAlone(t *testing.T) {
	w := newWorld(t, []bottle.Route{whole("a.example.com"), whole("b.example.com")})
	w.upstream("a.example.com", hello)
	w.upstream("b.example.com", hello)
	cache := new(one)
	for _, tc := range []struct {
		host    string
		version uint16
		resumed bool
	}{
		{"a.example.com", tls.VersionTLS13, false},
		{"a.example.com", tls.VersionTLS13, true},
		{"b.example.com", tls.VersionTLS13, false},
		{"b.example.com", tls.VersionTLS13, true},
		{"a.example.com", tls.VersionTLS13, false},
		{"a.example.com", tls.VersionTLS12, false},
		{"a.example.com", tls.VersionTLS12, true},
		{"b.example.com", tls.VersionTLS12, false},
	} {
		c := w.agent()
		tr := c.Transport.(*http.Transport) //nolint:errcheck // the harness makes no other
		tr.DisableKeepAlives = true
		tr.TLSClientConfig.ClientSessionCache, tr.TLSClientConfig.MaxVersion = cache, tc.version
		// The names are checked by each handshake, so a session of another's would be refused by us first.
		tr.TLSClientConfig.InsecureSkipVerify = true
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+tc.host+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.TLS.DidResume != tc.resumed {
			t.Errorf("%s %s: resumed is %v", tc.host, tls.VersionName(tc.version), res.TLS.DidResume)
		}
	}
}

// Upstreams' sessions are resumed too, each host's by itself, though two hosts be one server
// with one key for its tickets.
func TestUpstreamSessionIsResumedForItsHostAlone(t *testing.T) {
	w := newWorld(t, []bottle.Route{whole("a.example.com"), whole("b.example.com")})
	type seen struct {
		host    string
		resumed bool
	}
	var got []seen // one request at a time
	h := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		got = append(got, seen{r.TLS.ServerName, r.TLS.DidResume})
		rw.Header().Set("Connection", "close")
		hello(rw, r)
	})
	config := &tls.Config{Certificates: []tls.Certificate{w.ca.leaf(t, "a.example.com"), w.ca.leaf(t, "b.example.com")}}
	config.SetSessionTicketKeys([][32]byte{{1}})
	for _, host := range []string{"a.example.com", "b.example.com"} {
		s := httptest.NewUnstartedServer(h)
		s.TLS = config.Clone()
		s.StartTLS()
		t.Cleanup(s.Close)
		w.gate.route(host+":443", s.Listener.Addr().String())
	}
	for _, host := range []string{"a.example.com", "a.example.com", "b.example.com", "b.example.com", "a.example.com"} {
		if a := w.get("https://" + host + "/"); a.status != http.StatusOK {
			t.Fatalf("%+v", a)
		}
	}
	want := []seen{
		{"a.example.com", false}, {"a.example.com", true}, {"b.example.com", false}, {"b.example.com", true}, {"a.example.com", true},
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%d: %+v, not %+v", i, got[i], want[i])
		}
	}
}
