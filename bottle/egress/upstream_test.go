package egress

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"bottle/bottle"
	"bottle/bottle/allow"
)

// A request that took the old transports just before a switch is carried, and leaves no
// connection behind that would keep the old pipelock from draining.
func TestRequestOnRetiredTransports(t *testing.T) {
	states := make(chan http.ConnState, 16)
	gate := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }))
	gate.Config.ConnState = func(_ net.Conn, s http.ConnState) { states <- s }
	gate.Start()
	defer gate.Close()
	u, err := newUpstreams(newHop(gate.Listener.Addr().String(), "", nil), nil, responseTimeout)
	if err != nil {
		t.Fatal(err)
	}
	old := u.current.Load()
	u.use(gate.Listener.Addr().String())
	if u.current.Load() == old {
		t.Fatal("the same transports")
	}
	ex := &exchange{query: allow.Query{Host: "a.example.com", Port: 80}}
	req := httptest.NewRequestWithContext(context.WithValue(t.Context(), exchangeKey{}, ex), http.MethodGet, "http://a.example.com/", nil)
	req.RequestURI = ""
	res, err := old.roundTrip(ex, req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); err != nil || string(b) != "hello" {
		t.Errorf("%q %v", b, err)
	}
	late := time.After(10 * time.Second)
	for {
		select {
		case s := <-states:
			if s == http.StateClosed {
				return
			}
		case <-late:
			t.Fatal("the connection is kept")
		}
	}
}

func TestReaches(t *testing.T) {
	route := func(host bottle.Host, ports ...int) bottle.Route { return bottle.Route{Host: host, Ports: ports} }
	a, b, all := route("a.example.com"), route("b.example.com"), route("*.example.com")
	part := a
	part.Matches = []bottle.Match{{Method: http.MethodGet}}
	type routes = []bottle.Route
	for _, tc := range []struct {
		name     string
		old, now routes
		want     bool
	}{
		{"nothing from nothing", nil, nil, true},
		{"the same", routes{a}, routes{a}, true},
		{"one more", routes{a}, routes{b, a}, true},
		{"one less", routes{a, b}, routes{a}, false},
		{"all gone", routes{a}, nil, false},
		{"another", routes{a}, routes{b}, false},
		{"part of a host", routes{a}, routes{part}, true},
		{"a port less", routes{a}, routes{route("a.example.com", 443)}, false},
		{"a port more", routes{route("a.example.com", 443)}, routes{a}, true},
		{"ports on two routes", routes{a}, routes{route("a.example.com", 443), route("a.example.com", 80)}, true},
		{"into a wildcard", routes{a, b}, routes{all}, true},
		{"into a wildcard of another port", routes{a}, routes{route("*.example.com", 443)}, false},
		{"out of a wildcard", routes{all}, routes{a, b}, false},
		{"a wildcard stays", routes{all, a}, routes{all}, true},
	} {
		if got := (&snapshot{routes: tc.now}).reaches(&snapshot{routes: tc.old}); got != tc.want {
			t.Errorf("%s: %t", tc.name, got)
		}
	}
}

// What the agent reads of a failure does not tell where pipelock is, however deep it is said.
func TestCauseNamesNoAddress(t *testing.T) {
	at := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8888}
	op := func(err error) error { return &net.OpError{Op: "write", Net: "tcp", Source: at, Addr: at, Err: err} }
	for _, err := range []error{op(net.ErrClosed), op(op(net.ErrClosed)), op(op(syscall.EPIPE)), op(fmt.Errorf("broken: %w", op(io.EOF)))} {
		if text := cause(err); text == "" || strings.Contains(text, "127.0.0.1") {
			t.Errorf("%v: %q", err, text)
		}
	}
}
