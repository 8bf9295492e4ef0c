package proxysock_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bottle/bottle/proxysock"
)

func rawPair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var out [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		u, ok := c.(*net.UnixConn)
		if !ok {
			t.Fatalf("a %T", c)
		}
		t.Cleanup(func() { _ = u.Close() })
		out[i] = u
	}
	return out[0], out[1]
}

func pair(t *testing.T) (a, b *proxysock.Conn) {
	t.Helper()
	x, y := rawPair(t)
	return proxysock.New(x), proxysock.New(y)
}

// What the reader learns of how the writer ended.
func TestEnds(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(a *proxysock.Conn)
		want error
	}{
		{"closed", func(a *proxysock.Conn) { _ = a.Close() }, io.EOF},
		{"half-closed", func(a *proxysock.Conn) { _ = a.CloseWrite() }, io.EOF},
		{"half-closed, then cut", func(a *proxysock.Conn) { _ = a.CloseWrite(); _ = a.SetLinger(0); _ = a.Close() }, io.EOF},
		{"cut", func(a *proxysock.Conn) { _ = a.SetLinger(0); _ = a.Close() }, io.ErrUnexpectedEOF},
		{"killed", func(a *proxysock.Conn) { _ = a.UnixConn.Close() }, io.ErrUnexpectedEOF},
		{"killed within a head", func(a *proxysock.Conn) { _, _ = a.UnixConn.Write([]byte{1}); _ = a.UnixConn.Close() }, io.ErrUnexpectedEOF},
		{"killed within a frame", func(a *proxysock.Conn) { _, _ = a.UnixConn.Write([]byte{0, 9, 'x'}); _ = a.UnixConn.Close() }, io.ErrUnexpectedEOF},
		{"after a write that failed", func(a *proxysock.Conn) {
			_ = a.SetWriteDeadline(time.Now().Add(10 * time.Millisecond))
			_, _ = a.Write(make([]byte, 4<<20))
			_ = a.Close()
		}, io.ErrUnexpectedEOF},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := pair(t)
			if _, err := io.WriteString(a, "hello"); err != nil {
				t.Fatal(err)
			}
			tt.end(a)
			got := make([]byte, 5)
			if _, err := io.ReadFull(b, got); err != nil || string(got) != "hello" {
				t.Fatalf("%q %v", got, err)
			}
			var err error
			for b1 := make([]byte, 1<<16); err == nil; {
				_, err = b.Read(b1)
			}
			if !errors.Is(err, tt.want) {
				t.Errorf("%v; want %v", err, tt.want)
			}
		})
	}
}

// A queue that is full of what nobody reads yet still takes the end, at once.
func TestEndOfAFullQueue(t *testing.T) {
	a, b := pair(t)
	_ = a.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
	total := 0
	for { // whole frames only: nothing may be left of one
		_ = a.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
		if full(t, a.UnixConn) {
			break
		}
		n, err := a.Write(make([]byte, 1000))
		total += n
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, b); err != nil || int(n) != total {
		t.Errorf("%d of %d bytes, %v", n, total, err)
	}
}

func full(t *testing.T, c *net.UnixConn) bool {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	full := false
	if err := raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		n, _ := unix.Poll(p, 0)
		full = n == 0
	}); err != nil {
		t.Fatal(err)
	}
	return full
}

// A close while another writes is a cut, and does not wait for the writer.
func TestCloseBesideAWrite(t *testing.T) {
	a, b := pair(t)
	var wg sync.WaitGroup
	started := make(chan struct{})
	wg.Go(func() {
		close(started)
		if _, err := a.Write(make([]byte, 8<<20)); err == nil {
			t.Error("8 MiB fit")
		}
	})
	<-started
	if _, err := io.ReadFull(b, make([]byte, 1)); err != nil { // it is in the midst
		t.Fatal(err)
	}
	_ = a.Close()
	wg.Wait()
	if _, err := io.Copy(io.Discard, b); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
}

// Everything arrives, in any sizes, and a deadline that passes within a head loses nothing.
func TestStream(t *testing.T) {
	a, b := pair(t)
	sent := make([]byte, 3<<20)
	_, _ = rand.Read(sent)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for rest, n := sent, 1; len(rest) > 0; n = n*3 + 1 {
			n = min(n, len(rest))
			if _, err := a.Write(rest[:n]); err != nil {
				t.Error(err)
				return
			}
			rest = rest[n:]
		}
		_ = a.CloseWrite()
	})
	got, err := io.ReadAll(b)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d bytes, equal %t, %v", len(got), bytes.Equal(got, sent), err)
	}

	x, raw := rawPair(t)
	c := proxysock.New(x)
	_, _ = raw.Write([]byte{0})
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
	if _, err := c.Read(make([]byte, 8)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Time{})
	_, _ = raw.Write([]byte{2, 'o', 'k'})
	p := make([]byte, 2)
	if _, err := io.ReadFull(c, p); err != nil || string(p) != "ok" {
		t.Errorf("%q %v", p, err)
	}
}
