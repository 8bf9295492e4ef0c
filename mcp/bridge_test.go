package mcp_test

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"bottle/bottle"
	"bottle/mcp"
	"bottle/mcp/bridge"
)

// A stubborn queue keeps what is submitted, and then doesn't answer while the server lives:
// the answer is lost with it.
type stubborn struct {
	*fakeQueue
	filed chan struct{} // one for each Submit
	stall bool
}

func (q *stubborn) Submit(ctx context.Context, ask bottle.Ask, key string) (bottle.Ticket, error) {
	t, err := q.fakeQueue.Submit(ctx, ask, key)
	if q.stall {
		q.filed <- struct{}{}
		<-ctx.Done()
		return t, ctx.Err()
	}
	return t, err
}

// listen makes a real socket, as init does for the server.
func listen(t testing.TB, path string) net.Listener {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// serve serves on a real socket until stop is called.
func serve(t testing.TB, path string, q mcp.Queue) (stop func()) {
	t.Helper()
	srv, err := mcp.NewServer(mcp.Config{Queue: q, Enforcer: &fakeEgress{}})
	if err != nil {
		t.Fatal(err)
	}
	l := listen(t, path)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, l) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// A bridged client speaks through a bridge.
type bridged struct {
	t   *testing.T
	in  io.WriteCloser
	out *bufio.Scanner
}

func newBridged(t testing.TB, path string) (in io.WriteCloser, out *bufio.Scanner) {
	t.Helper()
	fromClient, in := io.Pipe()
	fromBridge, toClient := io.Pipe()
	var d net.Dialer
	b, err := bridge.New(bridge.Config{In: fromClient, Out: toClient, Dial: func(ctx context.Context) (net.Conn, error) { return d.DialContext(ctx, "unix", path) }})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- b.Run(context.WithoutCancel(t.Context())) }()
	t.Cleanup(func() {
		_ = in.Close()
		_ = fromBridge.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	out = bufio.NewScanner(fromBridge)
	out.Buffer(nil, bridge.MaxLine)
	return in, out
}

func (c *bridged) send(line string) {
	c.t.Helper()
	if _, err := io.WriteString(c.in, line+"\n"); err != nil {
		c.t.Fatal(err)
	}
}

type answer struct {
	ID     json.RawMessage
	Method string
	Error  *struct{ Message string }
	Result struct {
		IsError           bool
		StructuredContent struct {
			ID       string
			Status   bottle.Status
			Attempts int
		}
	}
}

func (c *bridged) next() answer {
	c.t.Helper()
	if !c.out.Scan() {
		c.t.Fatalf("no more lines: %v", c.out.Err())
	}
	var a answer
	if err := json.Unmarshal(c.out.Bytes(), &a); err != nil {
		c.t.Fatalf("%v: %s", err, c.out.Text())
	}
	return a
}

// The bundle is replaced while a request's answer is on its way, and again while a client
// waits for the decision: one attempt is counted, and each call is answered once.
func TestBridgeOverRestarts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mcp.sock")
	q := &stubborn{fakeQueue: newFakeQueue(), filed: make(chan struct{}, 1), stall: true}
	in, out := newBridged(t, path) // before there is a server
	c := &bridged{t, in, out}
	c.send(`{"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}}`)
	stop := serve(t, path, q)
	if a := c.next(); string(a.ID) != "0" || a.Error != nil {
		t.Fatalf("initialize: %+v", a)
	}
	c.send(`{"jsonrpc": "2.0", "method": "notifications/initialized"}`)
	c.send(`{"jsonrpc": "2.0", "id": "ask", "method": "tools/call", "params": {"name": "request_allowlist_change", "arguments": {"add": [{"host": "api.example.com"}], "reason": "x"}}}`)
	<-q.filed
	stop()
	stop = serve(t, path, q.fakeQueue)
	a := c.next()
	if got := a.Result.StructuredContent; string(a.ID) != `"ask"` || got.Status != bottle.Pending || got.Attempts != 1 {
		t.Fatalf("after the first restart: %+v", a)
	}

	c.send(`{"jsonrpc": "2.0", "id": 3, "method": "tools/call", "params": {"name": "wait_for_decision", "arguments": {"id": "r1", "timeout_seconds": 600}, "_meta": {"progressToken": 7}}}`)
	c.send(`{"jsonrpc": "2.0", "id": "3", "method": "tools/call", "params": {"name": "no_such_tool"}}`)
	progressed := false
	for range 2 { // in either order
		if a = c.next(); a.Method == "notifications/progress" {
			progressed = true
		} else if string(a.ID) != `"3"` {
			t.Fatalf("got %+v", a)
		}
	}
	if !progressed {
		t.Fatal("the wait has not begun")
	}
	stop()
	q.decide("r1", bottle.Answer{Status: bottle.Denied, Note: "no"})
	serve(t, path, q.fakeQueue)
	for a = c.next(); a.Method != ""; a = c.next() { // progress
	}
	if string(a.ID) != "3" || a.Result.StructuredContent.Status != bottle.Denied {
		t.Fatalf("after the second restart: %+v", a)
	}
	c.send(`{"jsonrpc": "2.0", "id": 4, "method": "ping"}`)
	if a = c.next(); string(a.ID) != "4" {
		t.Fatalf("something was answered twice: %+v", a)
	}
}

// What the client cancels is cancelled in the bundle.
func TestBridgeCancels(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mcp.sock")
	q := newFakeQueue()
	if _, err := q.Submit(t.Context(), bottle.Ask{Add: []bottle.Entry{{Host: "api.example.com"}}, Reason: "x"}, ""); err != nil {
		t.Fatal(err)
	}
	serve(t, path, q)
	in, out := newBridged(t, path)
	c := &bridged{t, in, out}
	c.send(`{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "wait_for_decision", "arguments": {"id": "r1"}, "_meta": {"progressToken": 7}}}`)
	if a := c.next(); a.Method != "notifications/progress" {
		t.Fatalf("got %+v", a)
	}
	c.send(`{"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}`)
	q.awaitEnded(t, 1)
	c.send(`{"jsonrpc": "2.0", "id": 2, "method": "ping"}`)
	if a := c.next(); string(a.ID) != "2" {
		t.Fatalf("a cancelled call was answered: %+v", a)
	}
}
