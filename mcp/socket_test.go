package mcp_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"bottle/bottle"
	"bottle/mcp"
)

// A client is one connection to the socket.
type client struct {
	nc  net.Conn
	out *bufio.Scanner
}

func dial(t testing.TB, path string) *client {
	t.Helper()
	nc, err := (&net.Dialer{}).DialContext(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	out := bufio.NewScanner(nc)
	out.Buffer(nil, 1<<20)
	return &client{nc, out}
}

// pipeline sends the lines of n calls, at most window of them unanswered, and returns the
// ids of the answers. It may be used from any goroutine.
func (c *client) pipeline(n, window int, line func(i int) string) (map[string]bool, error) {
	seen := map[string]bool{}
	for sent := 0; len(seen) < n; {
		for ; sent < n && sent-len(seen) < window; sent++ {
			if _, err := c.nc.Write([]byte(line(sent) + "\n")); err != nil {
				return seen, err
			}
		}
		if !c.out.Scan() {
			return seen, fmt.Errorf("the connection ended after %d answers: %w", len(seen), c.out.Err())
		}
		var a struct {
			ID     json.RawMessage
			Result json.RawMessage
		}
		if err := json.Unmarshal(c.out.Bytes(), &a); err != nil {
			return seen, err
		}
		id := string(a.ID)
		if a.Result == nil || seen[id] {
			return seen, fmt.Errorf("answered twice, or not with a result: %s", c.out.Text())
		}
		seen[id] = true
	}
	return seen, nil
}

// goroutinesFall waits until there are no more than there were. What has been waited for may
// take a moment to be gone.
func goroutinesFall(t *testing.T, before int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(end) {
			b := make([]byte, 1<<20)
			t.Fatalf("%d goroutines at the start, %d at the end:\n%s", before, runtime.NumGoroutine(), b[:runtime.Stack(b, true)])
		}
	}
}

// 200 clients at once, all with the same ids: each gets the answers and the progress of its own
// calls, and none of another's.
func TestManyClients(t *testing.T) {
	const clients, calls = 200, 20
	before := runtime.NumGoroutine()
	path := filepath.Join(t.TempDir(), "mcp.sock")
	q := newFakeQueue()
	if _, err := q.Submit(t.Context(), bottle.Ask{Add: []bottle.Entry{{Host: "api.example.com"}}, Reason: "x"}, ""); err != nil {
		t.Fatal(err)
	}
	stop := serve(t, path, q)
	var all, waiting sync.WaitGroup
	waiting.Add(clients)
	for n := range clients {
		c := dial(t, path)
		all.Go(func() {
			defer c.nc.Close()
			reported := sync.OnceFunc(waiting.Done)
			defer reported()
			if err := c.crowd(fmt.Sprintf("client%d.example.com", n), calls, reported); err != nil {
				t.Errorf("client %d: %v", n, err)
			}
		})
	}
	waiting.Wait()
	q.decide("r1", bottle.Answer{Status: bottle.Denied})
	all.Wait()
	stop()
	goroutinesFall(t, before)
}

// crowd makes calls that are answered with the client's own host, and waits meanwhile for a
// decision, with its host as the progress token. It calls reported when progress has come.
func (c *client) crowd(host string, calls int, reported func()) error {
	lines := fmt.Sprintf(`{"jsonrpc": "2.0", "id": "wait", "method": "tools/call", "params": {"name": "wait_for_decision", "arguments": {"id": "r1"}, "_meta": {"progressToken": %q}}}`+"\n", host)
	for i := range calls {
		lines += fmt.Sprintf(`{"jsonrpc": "2.0", "id": %d, "method": "tools/call", "params": {"name": "check_access", "arguments": {"url": "https://%s/%d"}}}`+"\n", i, host, i)
	}
	if _, err := c.nc.Write([]byte(lines)); err != nil {
		return err
	}
	for answers := 0; answers < calls+1; {
		if !c.out.Scan() {
			return fmt.Errorf("the connection ended: %w", c.out.Err())
		}
		var a struct {
			ID     json.RawMessage
			Method string
			Params struct{ ProgressToken string }
			Result struct {
				StructuredContent struct {
					URL    string
					Status bottle.Status
				}
			}
		}
		if err := json.Unmarshal(c.out.Bytes(), &a); err != nil {
			return err
		}
		got := a.Result.StructuredContent
		switch {
		case a.Method != "":
			if a.Params.ProgressToken != host {
				return fmt.Errorf("another's progress: %s", c.out.Text())
			}
			reported()
			continue
		case string(a.ID) == `"wait"` && got.Status == bottle.Denied:
		case got.URL != fmt.Sprintf("https://%s/%s", host, a.ID):
			return fmt.Errorf("another's answer: %s", c.out.Text())
		}
		answers++
	}
	return nil
}

// A call's answer was once dropped: its goroutine forgot the call before the writer, which
// had the answer already, asked whether it was still wanted.
func TestEveryQuickCallIsAnswered(t *testing.T) {
	const conns, calls = 16, 500
	path := filepath.Join(t.TempDir(), "mcp.sock")
	stop := serve(t, path, newFakeQueue())
	var all sync.WaitGroup
	for range conns {
		c := dial(t, path)
		if err := c.nc.SetDeadline(time.Now().Add(10 * time.Second)); err != nil { // a lost answer would hang
			t.Fatal(err)
		}
		all.Go(func() {
			defer c.nc.Close()
			got, err := c.pipeline(calls, 8, func(i int) string { return fmt.Sprintf(`{"jsonrpc": "2.0", "id": %d, "method": "ping"}`, i) })
			if err != nil {
				t.Errorf("%d of %d answered: %v", len(got), calls, err)
			}
		})
	}
	all.Wait()
	stop()
}

// A client that goes away without a word ends its calls.
func TestAbruptCloseCancels(t *testing.T) {
	const clients = 20
	before := runtime.NumGoroutine()
	path := filepath.Join(t.TempDir(), "mcp.sock")
	q := newFakeQueue()
	if _, err := q.Submit(t.Context(), bottle.Ask{Add: []bottle.Entry{{Host: "api.example.com"}}, Reason: "x"}, ""); err != nil {
		t.Fatal(err)
	}
	stop := serve(t, path, q)
	for range clients {
		c := dial(t, path)
		_, err := c.nc.Write([]byte(`{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "wait_for_decision", "arguments": {"id": "r1"}, "_meta": {"progressToken": "p"}}}` + "\n"))
		if err != nil {
			t.Fatal(err)
		}
		if !c.out.Scan() { // its progress: it waits
			t.Fatal(c.out.Err())
		}
		if err := c.nc.Close(); err != nil {
			t.Fatal(err)
		}
	}
	q.awaitEnded(t, clients)
	stop()
	goroutinesFall(t, before)
}

// A client that reads nothing is hung up on when the write deadline has passed, and so is
// nobody else.
func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, err := mcp.NewServer(mcp.Config{Queue: newFakeQueue(), Enforcer: &fakeEgress{}})
		if err != nil {
			t.Fatal(err)
		}
		slow, theirs := net.Pipe()
		var slowDone, quickDone time.Duration
		var all sync.WaitGroup
		begin := time.Now()
		all.Go(func() {
			srv.ServeConn(t.Context(), theirs)
			slowDone = time.Since(begin)
		})
		quick, theirs2 := net.Pipe()
		all.Go(func() {
			srv.ServeConn(t.Context(), theirs2)
			quickDone = time.Since(begin)
		})
		if _, err := slow.Write([]byte(`{"jsonrpc": "2.0", "id": 1, "method": "ping"}` + "\n")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		c := &client{quick, bufio.NewScanner(quick)}
		if _, err := c.pipeline(3, 1, func(i int) string { return fmt.Sprintf(`{"jsonrpc": "2.0", "id": %d, "method": "ping"}`, i) }); err != nil {
			t.Error(err)
		}
		_ = quick.Close()
		all.Wait()
		if slowDone != mcp.WriteTimeout || quickDone < time.Minute {
			t.Errorf("hung up on the slow one after %v, and on the other after %v", slowDone, quickDone)
		}
	})
}

// A line that is begun must be ended in time: a client can't hold memory by dribbling.
func TestDribble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, err := mcp.NewServer(mcp.Config{Queue: newFakeQueue(), Enforcer: &fakeEgress{}})
		if err != nil {
			t.Fatal(err)
		}
		ours, theirs := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			srv.ServeConn(t.Context(), theirs)
		}()
		begin := time.Now()
		time.Sleep(time.Hour) // an idle client stays
		for {
			if _, err := ours.Write([]byte("x")); err != nil {
				break
			}
			time.Sleep(time.Second)
		}
		<-done
		if got := time.Since(begin) - time.Hour; got > mcp.LineTimeout+time.Second {
			t.Errorf("hung up on after %v", got)
		}
	})
}

func TestConnectionsAreBounded(t *testing.T) {
	srv, err := mcp.NewServer(mcp.Config{Queue: newFakeQueue(), Enforcer: &fakeEgress{}, MaxConns: 2})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "mcp.sock")
	l := listen(t, path)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, l) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	ping := func(int) string { return `{"jsonrpc": "2.0", "id": 1, "method": "ping"}` }
	for range 2 {
		c := dial(t, path)
		defer c.nc.Close()
		if _, err := c.pipeline(1, 1, ping); err != nil {
			t.Fatal(err)
		}
	}
	c := dial(t, path)
	defer c.nc.Close()
	if !c.out.Scan() || !strings.Contains(c.out.Text(), "serves 2 at once") {
		t.Errorf("the third is told %q", c.out.Text())
	}
	if c.out.Scan() {
		t.Errorf("and then %q", c.out.Text())
	}
}

// dialFor makes this test binary a client: it prints the first line that the server says.
const dialFor = "BOTTLE_TEST_DIAL"

func TestMain(m *testing.M) {
	if path := os.Getenv(dialFor); path != "" {
		os.Exit(dialOnce(path))
	}
	os.Exit(m.Run())
}

func dialOnce(path string) int {
	nc, err := (&net.Dialer{}).DialContext(context.Background(), "unix", path)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer nc.Close()
	if _, err := nc.Write([]byte(`{"jsonrpc": "2.0", "id": 1, "method": "ping"}` + "\n")); err != nil {
		fmt.Println(err)
	}
	out := bufio.NewScanner(nc)
	out.Scan()
	fmt.Println(out.Text())
	return 0
}

// Who is served is what the kernel says of the peer, even where the file's mode lets anybody in.
func TestPeers(t *testing.T) {
	dir, err := os.MkdirTemp("", "bottle-peers") //nolint:usetesting // t.TempDir is below a directory that another user can't enter
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	exe := filepath.Join(dir, "client")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "mcp.sock")
	err = errors.Join(os.WriteFile(exe, b, 0o755), os.Chmod(dir, 0o755), os.Chmod(exe, 0o755))
	if err != nil {
		t.Fatal(err)
	}
	serve(t, path, newFakeQueue())
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	peers := map[string]struct {
		cred *syscall.Credential
		want string
	}{
		"our own user": {nil, `"result":{}`},
	}
	if os.Geteuid() == 0 { // only root can be others
		gid := uint32(os.Getegid())
		peers["another user"] = struct {
			cred *syscall.Credential
			want string
		}{&syscall.Credential{Uid: 65534, Gid: 65534}, "belongs to another user"}
		peers["another user of our group"] = struct {
			cred *syscall.Credential
			want string
		}{&syscall.Credential{Uid: 65534, Gid: gid}, `"result":{}`}
		peers["another user with our group beside its own"] = struct {
			cred *syscall.Credential
			want string
		}{&syscall.Credential{Uid: 65534, Gid: 65534, Groups: []uint32{gid}}, `"result":{}`}
	}
	for name, p := range peers {
		t.Run(name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), exe)
			cmd.Env = []string{dialFor + "=" + path}
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.cred}
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), p.want) {
				t.Errorf("got %s (%v), want %s", out, err, p.want)
			}
		})
	}
}
