package egress_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"bottle/bottle"
	"bottle/bottle/egress"
)

// files is how many descriptors the child has.
func (c *child) files(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/" + strconv.Itoa(c.pid) + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

// processorTime is that of the child so far: fields 14 and 15 of /proc/PID/stat, in hundredths of a second.
func (c *child) processorTime(t *testing.T) time.Duration {
	t.Helper()
	b, err := os.ReadFile("/proc/" + strconv.Itoa(c.pid) + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	sum := 0
	for _, f := range strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))[11:13] {
		n, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return time.Duration(sum) * 10 * time.Millisecond
}

// rests checks that the child, who can't accept, does not try all the time. It takes half a second, in
// which a loop would use the processor as far as it gets it.
func (c *child) rests(t *testing.T) {
	t.Helper()
	before := c.processorTime(t)
	<-time.After(500 * time.Millisecond)
	if used := c.processorTime(t) - before; used > 150*time.Millisecond {
		t.Errorf("%s of the processor in half a second", used)
	}
}

// exhaust opens connections to addr until the child has no descriptors left, and some more that wait.
func (c *child) exhaust(t *testing.T, addr string, limit int) (open []net.Conn) {
	t.Helper()
	for range limit + 20 {
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		open = append(open, conn)
	}
	eventually(t, "the last descriptor", func() bool { return c.files(t) >= limit })
	return open
}

// An egress without descriptors says so of what it can't do, goes on with what it has, does not
// spin, and takes up its work when there are some again; and so it is with its key socket.
func TestEgressWithoutDescriptors(t *testing.T) {
	const limit = 96
	w := newWorld(t, []bottle.Route{whole("*.example.com")}, withCredentials(credentials()))
	w.upstream("ws.example.com", func(rw http.ResponseWriter, r *http.Request) {
		c, brw, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %s\r\n\r\n", websocketAccept(r))
		_, _ = io.Copy(c, brw)
	})
	w.plainUpstream("new.example.com", hello)
	child := w.apart(limit, 10*limit)

	old, br, status := ws(t, w, "/", "websocket")
	if status != http.StatusSwitchingProtocols {
		t.Fatal(status)
	}
	goesOn := func() {
		t.Helper()
		_, _ = io.WriteString(old, "ping")
		b := make([]byte, 4)
		if _, err := io.ReadFull(br, b); err != nil || string(b) != "ping" {
			t.Fatalf("what was open: %q %v", b, err)
		}
	}
	goesOn()
	var tunnels [8]func() (status int, layer, text string) // each needs an upstream connection of its own
	for i := range tunnels {
		host := fmt.Sprintf("new%d.example.com", i)
		w.upstream(host, hello)
		conn, _ := w.tunnel(host + ":443")
		inside := tls.Client(conn, &tls.Config{RootCAs: w.roots, ServerName: host})
		if err := inside.HandshakeContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		reader := bufio.NewReader(inside)
		tunnels[i] = func() (int, string, string) {
			t.Helper()
			_, _ = io.WriteString(inside, "GET / HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
			res, err := http.ReadResponse(reader, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			b, err := io.ReadAll(res.Body)
			if err != nil {
				t.Fatal(err)
			}
			return res.StatusCode, res.Header.Get("X-Bottle-Layer"), string(b)
		}
	}

	open := child.exhaust(t, w.addr, limit)
	handed := make(chan error, 1)
	go func() {
		handed <- egress.HandKeys(context.Background(), w.init.socket, map[string]string{"api": "TOKENTOKENTOKEN"})
	}()
	// A descriptor that was in use for a moment is free until the next accept, a second at most. Then
	// the first of these gets it, and keeps it.
	get := tunnels[0]
	status, layer, text := get()
	for i := 1; status == 200 && i < len(tunnels); i++ {
		get = tunnels[i]
		status, layer, text = get()
	}
	if status != 503 || layer != "egress" || !strings.Contains(text, "no descriptors left") {
		t.Errorf("a new connection to an upstream: %d %s %s", status, layer, text)
	}
	goesOn()
	child.rests(t)
	goesOn()
	for _, c := range open {
		_ = c.Close()
	}
	eventually(t, "its work", func() bool {
		status, _, _ := get()
		return status == 200
	})
	if err := <-handed; err != nil && !strings.Contains(err.Error(), "credential") { // its name is no matter here
		t.Errorf("the key socket: %v", err)
	}
	if a := w.get("http://new.example.com/"); a.status != 200 {
		t.Errorf("%+v", a)
	}
	goesOn()
}

// connectTo sends the gate a CONNECT on c and returns its answer.
func connectTo(t *testing.T, c net.Conn, target string) (status int, reason string) {
	t.Helper()
	_, _ = io.WriteString(c, "CONNECT "+target+" HTTP/1.1\r\nHost: "+target+"\r\nProxy-Authorization: "+bottle.ProxyAuthorization(gateSecret)+"\r\n\r\n")
	res, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: http.MethodConnect})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusOK {
		return res.StatusCode, ""
	}
	var body struct{ Layer, Reason string }
	if err := json.NewDecoder(res.Body).Decode(&body); err != nil || body.Layer != "pipelock" {
		t.Errorf("%+v %v", body, err)
	}
	return res.StatusCode, body.Reason
}

// The gate takes as many tunnels as its descriptors are enough for, says so of more, and comes
// through without any, as egress does.
func TestGateWithoutDescriptors(t *testing.T) {
	const limit, most = 128, (128 - 64) / 6
	w := newWorld(t, nil)
	echo, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	port := echo.Addr().(*net.TCPAddr).Port //nolint:errcheck // it is one
	target := "a.example.com:" + strconv.Itoa(port)
	gate := w.builtIn(limit, bottle.AllowEntry{Host: "a.example.com", Ports: []int{port}})
	dial := func() net.Conn {
		c, err := new(net.Dialer).DialContext(t.Context(), "tcp", gate.addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		return c
	}
	ping := func(c net.Conn) {
		t.Helper()
		b := make([]byte, 4)
		_, _ = io.WriteString(c, "ping")
		if _, err := io.ReadFull(c, b); err != nil {
			t.Fatalf("a tunnel that was open: %v", err)
		}
	}

	// More tunnels than there may be.
	var tunnels []net.Conn
	for range most {
		c := dial()
		if status, reason := connectTo(t, c, target); status != 200 {
			t.Fatal(status, reason)
		}
		ping(c)
		tunnels = append(tunnels, c)
	}
	if status, reason := connectTo(t, dial(), target); status != 503 || !strings.Contains(reason, fmt.Sprint(most, " connections are open")) {
		t.Errorf("one too many: %d %s", status, reason)
	}
	for _, c := range tunnels[1:] {
		_ = c.Close()
	}
	eventually(t, "room again", func() bool {
		c := dial()
		defer c.Close()
		status, _ := connectTo(t, c, target)
		return status == 200
	})

	// Connections that say nothing.
	var ready [8]net.Conn
	for i := range ready {
		ready[i] = dial()
		if status, reason := connectTo(t, ready[i], "b.example.com:443"); status != 403 { // and it is kept
			t.Fatal(status, reason)
		}
	}
	open := gate.exhaust(t, gate.addr, limit)
	// A descriptor that an earlier tunnel gave back late, its pipes' say, is taken by the first that finds
	// it free; one of those after it must be refused.
	status, reason := http.StatusOK, ""
	for i := 0; i < len(ready) && status == http.StatusOK; i++ {
		status, reason = connectTo(t, ready[i], target)
	}
	if status != 503 || !strings.Contains(reason, "no descriptors left") {
		t.Errorf("without descriptors: %d %s", status, reason)
	}
	ping(tunnels[0])
	gate.rests(t)
	for _, c := range open {
		_ = c.Close()
	}
	eventually(t, "its work", func() bool {
		c := dial()
		defer c.Close()
		status, _ := connectTo(t, c, target)
		return status == 200
	})
	ping(tunnels[0])
}
