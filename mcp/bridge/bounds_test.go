package bridge_test

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"

	"bottle/mcp/bridge"
)

// begin runs a bridge for the rest of the test, whose bubble it is to be called in.
func begin(t *testing.T, f *fakeBundle) (client io.Writer, out *lineLog) {
	in, w := io.Pipe()
	out = &lineLog{}
	b, err := bridge.New(bridge.Config{In: in, Out: out, Dial: f.dial})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- b.Run(context.WithoutCancel(t.Context())) }()
	t.Cleanup(func() {
		_ = w.Close()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		f.drop()
		f.readers.Wait()
	})
	return w, out
}

func send(t *testing.T, w io.Writer, format string, args ...any) {
	t.Helper()
	if _, err := fmt.Fprintf(w, format+"\n", args...); err != nil {
		t.Fatal(err)
	}
}

func TestLongMessages(t *testing.T) {
	const call = `{"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"x": "%s"}}`
	for name, c := range map[string]struct {
		size int
		want string
	}{
		"what the bundle takes is sent":            {bridge.MaxCall - len(call), ""},
		"what it doesn't is answered with its id":  {bridge.MaxCall, `"id":1,"error":{"code":-32000,"message":"message longer than 262144 bytes`},
		"a line over the bound can't be named":     {bridge.MaxLine, `"id":null,"error":{"code":-32600,"message":"message longer than 1048576 bytes`},
		"and is not kept, however long it goes on": {8 * bridge.MaxLine, `"id":null,"error":{"code":-32600,"message":"message longer than 1048576 bytes`},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, out := begin(t, &fakeBundle{})
				send(t, client, call, strings.Repeat("x", c.size))
				send(t, client, `{"jsonrpc": "1.0", "id": "next", "method": "ping"}`)
				synctest.Wait()
				got := out.take()
				if len(got) == 0 || !strings.Contains(got[len(got)-1], `"id":"next"`) {
					t.Fatalf("what follows a long line is lost: %v", got)
				}
				if first := strings.Join(got[:len(got)-1], "\n"); c.want == "" && first != "" || !strings.Contains(first, c.want) {
					t.Errorf("got %q, want %q", first, c.want)
				}
			})
		})
	}
}

func TestCallsInFlightAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, out := begin(t, &fakeBundle{})
		for i := range bridge.MaxCalls {
			send(t, client, `{"jsonrpc": "2.0", "id": %d, "method": "subscriptions/listen"}`, i)
		}
		synctest.Wait()
		if got := out.take(); len(got) != 0 {
			t.Fatalf("answered: %v", got)
		}
		send(t, client, `{"jsonrpc": "2.0", "id": "more", "method": "ping"}`)
		synctest.Wait()
		if got := strings.Join(out.take(), "\n"); !strings.Contains(got, "256 calls are in flight") {
			t.Errorf("got %q", got)
		}
		send(t, client, `{"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}}`)
		send(t, client, `{"jsonrpc": "2.0", "id": "room", "method": "ping"}`)
		synctest.Wait()
		if got := out.take(); len(got) != 0 {
			t.Errorf("there is room again, but: %v", got)
		}
	})
}
