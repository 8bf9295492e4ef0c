package fdpass_test

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bottle/bottle/fdpass"
)

// pair is the two ends of a socket pair of some kind.
func pair(t *testing.T, kind int) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "end")
		c, err := net.FileConn(f)
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
		u, ok := c.(*net.UnixConn)
		if !ok {
			t.Fatalf("%T", c)
		}
		t.Cleanup(func() { _ = u.Close() })
		ends[i] = u
	}
	return ends[0], ends[1]
}

// connected is the two sides of a TCP connection.
func connected(t *testing.T) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr)); err != nil { //nolint:errcheck // a TCP listener
		t.Fatal(err)
	}
	if b, err = l.AcceptTCP(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*net.TCPConn{a, b} {
		t.Cleanup(func() { _ = c.Close() })
		if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	return a, b
}

func says(t *testing.T, from, to net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(from, text); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(to, got); err != nil || string(got) != text {
		t.Fatalf("%q, %v", got, err)
	}
}

// pass sends c and returns it as it arrives.
func pass(t *testing.T, c *net.TCPConn) *net.TCPConn {
	t.Helper()
	a, b := pair(t, unix.SOCK_SEQPACKET)
	if err := fdpass.Send(a, []byte("body"), c); err != nil {
		t.Fatal(err)
	}
	m, err := fdpass.Receive(b)
	if err != nil || string(m.Body) != "body" {
		t.Fatalf("%q, %v", m.Body, err)
	}
	conns, err := m.Take("it")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conns[0].Close() })
	return conns[0]
}

func TestPassed(t *testing.T) {
	here, peer := connected(t)
	there := pass(t, here)
	says(t, there, peer, "from the receiver")
	says(t, peer, there, "to the receiver")
	if err := here.Close(); err != nil {
		t.Fatal(err)
	}
	says(t, there, peer, "and on")
}

// A cut binds whoever holds the connection, at once, and never looks like an end: not to a holder who is
// reading, not to one who has yet to, and not to the peer. What lay unread is gone.
func TestCut(t *testing.T) {
	here, peer := connected(t)
	there := pass(t, here)
	reading := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, there)
		reading <- err
	}()
	says(t, there, peer, "it reads")
	second := pass(t, here)
	if err := fdpass.Cut(here); err != nil {
		t.Fatal(err)
	}
	if err := <-reading; err == nil {
		t.Error("the reader saw an end of file")
	}
	for name, c := range map[string]*net.TCPConn{"another copy": second, "the cutter": here, "the peer": peer} {
		if n, err := c.Read(make([]byte, 100)); n != 0 || err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%s reads %d bytes, %v", name, n, err)
		}
		if _, err := c.Write([]byte("more")); err == nil {
			t.Errorf("%s can write", name)
		}
	}
}

func TestCutDropsWhatIsUnread(t *testing.T) {
	here, peer := connected(t)
	there := pass(t, here)
	if _, err := io.WriteString(peer, "secret"); err != nil {
		t.Fatal(err)
	}
	raw, err := there.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Read(func(fd uintptr) bool { // until it is there
		n, _, err := unix.Recvfrom(int(fd), make([]byte, 100), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return err == nil && n == len("secret")
	}); err != nil {
		t.Fatal(err)
	}
	if err := fdpass.Cut(here); err != nil {
		t.Fatal(err)
	}
	if n, err := there.Read(make([]byte, 100)); n != 0 || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%d bytes, %v", n, err)
	}
}

func TestNoRoom(t *testing.T) {
	a, b := pair(t, unix.SOCK_SEQPACKET)
	c, peer := connected(t)
	sent := 0
	for ; sent < 1e6; sent++ {
		err := fdpass.TrySend(a, []byte("x"), c)
		if errors.Is(err, fdpass.ErrNoRoom) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := a.SetWriteDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if err := fdpass.Send(a, []byte("x"), c); !errors.Is(err, fdpass.ErrNoRoom) || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("with a deadline: %v", err)
	}
	_ = c.Close()
	for range sent {
		m, err := fdpass.Receive(b)
		if err != nil {
			t.Fatal(err)
		}
		m.Close()
	}
	if err := a.SetWriteDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if _, err := peer.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("a copy is left open: %v", err)
	}
	other, _ := connected(t)
	if err := fdpass.TrySend(a, []byte("x"), other); err != nil {
		t.Errorf("there is room again: %v", err)
	}
}

func TestTakeIsStrict(t *testing.T) {
	a, b := pair(t, unix.SOCK_SEQPACKET)
	tcp, _ := connected(t)
	other, _ := connected(t)
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // a test's listener
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, tt := range []struct {
		name, body, want string
		fds              []syscall.Conn
	}{
		{"none", "x", "0 descriptors, not 2", nil},
		{"one", "x", "1 descriptors, not 2", []syscall.Conn{tcp}},
		{"too many", "x", "descriptors were lost", []syscall.Conn{tcp, tcp, tcp, tcp, tcp, tcp, tcp, tcp, tcp, tcp}},
		{"a unix socket", "x", "second: not a TCP connection", []syscall.Conn{tcp, a}},
		{"a listener", "x", "first: not a TCP connection", []syscall.Conn{l.(*net.TCPListener), tcp}}, //nolint:errcheck // a TCP listener
		{"a long body", strings.Repeat("x", fdpass.MaxBody+1), "more than 1024 bytes", []syscall.Conn{tcp, other}},
		{"two", "x", "", []syscall.Conn{tcp, other}},
	} {
		var fds []int
		for _, c := range tt.fds {
			raw, err := c.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			if err := raw.Control(func(fd uintptr) { fds = append(fds, int(fd)) }); err != nil {
				t.Fatal(err)
			}
		}
		raw, err := a.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var sent error
		if err := raw.Control(func(fd uintptr) { sent = unix.Sendmsg(int(fd), []byte(tt.body), unix.UnixRights(fds...), nil, 0) }); err != nil || sent != nil {
			t.Fatal(err, sent)
		}
		m, err := fdpass.Receive(b)
		if err != nil {
			t.Fatal(err)
		}
		conns, err := m.Take("first", "second")
		for _, c := range conns {
			_ = c.Close()
		}
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	_ = a.Close()
	if _, err := fdpass.Receive(b); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
}

func TestCheckEnd(t *testing.T) {
	for kind, ok := range map[int]bool{unix.SOCK_SEQPACKET: true, unix.SOCK_STREAM: false, unix.SOCK_DGRAM: false} {
		a, _ := pair(t, kind)
		if err := fdpass.CheckEnd(a); (err == nil) != ok {
			t.Errorf("kind %d: %v", kind, err)
		}
	}
}
