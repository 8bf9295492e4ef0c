package inside_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bottle/bottle/launch/inside"
	"bottle/bottle/proxysock"
)

// The test program is also the first process, and what runs in it: Run reaps every child of its
// caller's, so that it can't be called beside other tests.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "first" {
		os.Exit(first(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == "fetch" {
		os.Exit(fetch(os.Args[2]))
	}
	os.Exit(m.Run())
}

func first(args []string) int {
	if err := inside.CloseInherited(); err != nil {
		fmt.Println(err)
		return 98
	}
	c := inside.Config{Env: os.Environ(), Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}}
	if f, err := inside.ParseForward(args[0]); err == nil {
		c.Forwards = []inside.Forward{f}
		args = args[1:]
	}
	c.Argv = args
	code, err := inside.Run(c)
	if e, ok := errors.AsType[*inside.ExitError](err); ok {
		return e.Code
	}
	if err != nil {
		fmt.Println(err)
		return 99
	}
	return code
}

// fetch reads all that comes from addr.
func fetch(addr string) int {
	c, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", addr)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer c.Close()
	n, err := io.Copy(io.Discard, c)
	fmt.Println(n, err)
	return 0
}

// run starts the first process, and waits for it.
func run(t *testing.T, meanwhile func(p *os.Process), args ...string) (code int, out string) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p, err := os.StartProcess(exe, append([]string{exe, "first"}, args...), &os.ProcAttr{Files: []*os.File{nil, w, w}})
	_ = w.Close()
	if err != nil {
		t.Fatal(err)
	}
	if meanwhile != nil {
		meanwhile(p)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	st, err := p.Wait()
	if err != nil {
		t.Fatal(err)
	}
	return st.ExitCode(), string(b)
}

func TestExitCodes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		argv []string
		code int
		out  string
	}{
		{"zero", []string{"sh", "-c", "echo hello"}, 0, "hello"},
		{"its own", []string{"sh", "-c", "exit 42"}, 42, ""},
		{"a signal", []string{"sh", "-c", "kill -SEGV $$"}, 139, ""},
		{"no such command", []string{"nonesuch"}, 127, ""},
		{"no program", []string{file}, 126, ""},
		{"what it leaves is not waited for", []string{"sh", "-c", "(sleep 0.01 &); exit 3"}, 3, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if code, out := run(t, nil, tt.argv...); code != tt.code || !strings.Contains(out, tt.out) {
				t.Errorf("%d %q; want %d %q", code, out, tt.code, tt.out)
			}
		})
	}
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if code, out := run(t, nil, l.Addr().String()+"=/x", "true"); code != 99 || !strings.Contains(out, "in use") {
		t.Errorf("a port that is taken: %d %q", code, out)
	}
	if _, err := inside.Run(inside.Config{}); err == nil {
		t.Error("no command")
	}
}

func TestSignalsReachTheCommand(t *testing.T) {
	for name, sig := range map[string]unix.Signal{"TERM": unix.SIGTERM, "INT": unix.SIGINT, "HUP": unix.SIGHUP, "USR1": unix.SIGUSR1} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			ready := filepath.Join(dir, "ready")
			code, out := run(t, func(p *os.Process) {
				until(t, func() bool { _, err := os.Stat(ready); return err == nil })
				_ = p.Signal(sig)
			}, "sh", "-c", "trap 'echo got; exit 9' "+name+"; touch "+ready+"; while :; do sleep 0.01; done")
			if code != 9 || out != "got\n" {
				t.Errorf("%d %q", code, out)
			}
		})
	}
}

func until(t *testing.T, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(20 * time.Second); !ok(); <-tick.C {
		if time.Now().After(end) {
			t.Fatal("not in 20 s")
		}
	}
}

// A connection ends as the other side did, and waits for a bundle that is not there yet.
func TestForward(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		end  func(c *proxysock.Conn)
		want string
	}{
		{"ended", func(c *proxysock.Conn) { _ = c.Close() }, "1048576 <nil>"},
		{"cut", func(c *proxysock.Conn) { _ = c.SetLinger(0); _ = c.Close() }, "reset by peer"},
		{"killed", func(c *proxysock.Conn) { _ = c.UnixConn.Close() }, "reset by peer"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "p.sock")
			free, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			addr := free.Addr().String()
			_ = free.Close()
			var wg sync.WaitGroup
			defer wg.Wait()
			_, out := run(t, func(*os.Process) {
				l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
				if err != nil {
					t.Fatal(err)
				}
				wg.Go(func() {
					defer l.Close()
					u, err := l.AcceptUnix()
					if err != nil {
						t.Error(err)
						return
					}
					c := proxysock.New(u)
					_, _ = c.Write(bytes.Repeat([]byte("x"), 1<<20))
					tt.end(c)
				})
			}, addr+"="+path, exe, "fetch", addr)
			if !strings.Contains(out, tt.want) {
				t.Errorf("%q; want %q", out, tt.want)
			}
		})
	}
}

func TestParseForward(t *testing.T) {
	for s, ok := range map[string]bool{
		"127.0.0.1:80=/a": true, "[::1]:80=/a": true, "0.0.0.0:80=/a": false, "localhost:80=/a": false, "127.0.0.1:80": false, "127.0.0.1:80=a": false, "127.0.0.1=/a": false, "": false,
	} {
		if _, err := inside.ParseForward(s); (err == nil) != ok {
			t.Errorf("%q: %v", s, err)
		}
	}
}
