package pipelock_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"bottle/bottle"
	"bottle/bottle/pipelock"
)

// The test binary is also a gate of its own process: see gateProcess.
func TestMain(m *testing.M) {
	if config := os.Getenv("BOTTLE_TEST_GATE"); config != "" {
		if err := gateMain(config); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// gateMain serves on descriptor 3, with the pair at 4 and 5, and reports on its output.
func gateMain(config string) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	sigs, drain := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(sigs, unix.SIGUSR1)
	go func() {
		for range sigs {
			drain <- struct{}{}
		}
	}()
	l, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		return err
	}
	var ends [2]*net.UnixConn
	for i := range ends {
		c, err := net.FileConn(os.NewFile(uintptr(4+i), "pair"))
		if err != nil {
			return err
		}
		u, ok := c.(*net.UnixConn)
		if !ok {
			return fmt.Errorf("%T", c)
		}
		ends[i] = u
	}
	g, err := pipelock.NewGate(pipelock.GateConfig{
		Config: config, Listener: l, AllowCIDRs: loopback, Resolve: map[string]string{"a.test": "127.0.0.1"},
		Drain: drain, Handover: ends[0], Adopt: ends[1], Logger: slog.New(slog.DiscardHandler),
		Report: func(st bottle.DaemonStatus) error { return json.NewEncoder(os.Stdout).Encode(st) },
	})
	if err != nil {
		return err
	}
	return g.Run(ctx)
}

// A gateProcess is a gate in a process of its own, in place of a running one.
type gateProcess struct {
	*heir
	cmd *exec.Cmd
}

func (p *pair) spawn(t *testing.T, config string) *gateProcess {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	sock, addr := held(t)
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), "BOTTLE_TEST_GATE="+config)
	cmd.ExtraFiles = []*os.File{sock, p.handover, p.adopt}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h := &heir{running: &running{t: t, addr: addr, config: config}, reports: make(chan bottle.DaemonStatus, 1000)}
	var reading sync.WaitGroup
	reading.Go(func() {
		for lines := json.NewDecoder(out); ; {
			var st bottle.DaemonStatus
			if lines.Decode(&st) != nil {
				return
			}
			h.reports <- st
		}
	})
	h.stop = sync.OnceValue(func() error {
		_ = cmd.Process.Signal(unix.SIGTERM)
		reading.Wait()
		return cmd.Wait()
	})
	t.Cleanup(func() { _ = h.stop() })
	return &gateProcess{h, cmd}
}

func TestHandoverAcrossProcesses(t *testing.T) {
	const tunnels = 10
	p, f := newPair(t), newTraffic(t)
	port := f.upstream()
	config := filepath.Join(t.TempDir(), "pipelock.yaml")
	if err := os.WriteFile(config, sealed(t, entry("a.test", port)), 0o600); err != nil {
		t.Fatal(err)
	}
	gate := p.spawn(t, config)
	for range tunnels {
		f.through(gate.open(port))
	}
	for range 4 {
		next := p.spawn(t, config)
		next.until("it is up", func(map[string]uint64) bool { return true })
		for len(gate.reports) > 0 {
			<-gate.reports
		}
		if err := gate.cmd.Process.Signal(unix.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		gate.left() // exits with 0
		gate = next
	}
	f.end()
	if err := gate.stop(); err != nil {
		t.Fatal(err)
	}
}

// What is not a tunnel to somewhere allowed is closed, and the next one is taken all the same.
func TestAdoptIsStrict(t *testing.T) {
	port := echo(t)
	good := fmt.Sprintf(`{"host":"a.test","port":%d,"since":"2026-01-02T03:04:05Z"}`, port)
	say := func(host, port, more string) string {
		return fmt.Sprintf(`{"host":%q,"port":%s,"since":"2026-01-02T03:04:05Z"%s}`, host, port, more)
	}
	num := strconv.Itoa(port)
	const tcp, up, pipe, local, udp, ln = "tcp", "up", "pipe", "local", "udp", "listener"
	for _, tt := range []struct{ name, body, fds, why string }{
		{"no descriptors", good, "", "0 descriptors"},
		{"one descriptor", good, "tcp", "1 descriptors"},
		{"three descriptors", good, "tcp up up", "3 descriptors"},
		{"too many descriptors", good, strings.Repeat("up ", 20), "descriptors were lost"},
		{"a pipe", good, "tcp pipe", "upstream: not a socket"},
		{"a unix socket", good, "local up", "client: not a TCP connection"},
		{"a UDP socket", good, "tcp udp", "upstream: not a TCP connection"},
		{"a listener", good, "tcp listener", "upstream: not a TCP connection"},
		{"nothing at all", "", "", "0 descriptors"},
		{"no JSON", "GET /", "tcp up", "invalid character"},
		{"too long", good + strings.Repeat(" ", 2000), "tcp up", "more than 1024 bytes"},
		{"more JSON", good + good, "tcp up", "more follows"},
		{"an unknown field", say("a.test", num, `,"admin":true`), "tcp up", "unknown field"},
		{"no host", say("", num, ""), "tcp up", "host"},
		{"a host with a dot", say("A.test.", num, ""), "tcp up", "not canonical"},
		{"port 0", say("a.test", "0", ""), "tcp up", "port 0"},
		{"another port", say("a.test", "443", ""), "tcp up", "not port 443"},
		{"over both ways", say("a.test", num, `,"client_ended":true,"upstream_ended":true`), "tcp up", "both directions"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPair(t)
			before := sockets(t)
			h := p.start(t, entry("a.test", port)) // each has its own, since what a client causes is logged sparingly
			files := map[string]*os.File{}
			for name, make := range map[string]func(*testing.T, int) *os.File{
				tcp: fromEgress, up: toPort, pipe: aPipe, local: aUnixSocket, udp: aUDPSocket, ln: aListener,
			} {
				files[name] = make(t, port)
			}
			p.send(t, tt.body, files, strings.Fields(tt.fds))
			h.becomes("it is counted", func(c map[string]uint64) bool { return c["failed"] == 1 })
			if log := h.log.String(); !strings.Contains(log, tt.why) {
				t.Errorf("%q is not in the log: %s", tt.why, log[max(0, len(log)-600):])
			}
			client, egress := connected(t)
			p.send(t, good, map[string]*os.File{tcp: client, up: toPort(t, port)}, []string{tcp, up})
			ping(t, egress)
			_ = egress.Close()
			if err := h.stop(); err != nil {
				t.Fatal(err)
			}
			if after := sockets(t); after > before+2 { // those of the test: fromEgress' other end, and what echo has yet to close
				t.Errorf("%d sockets before, %d after", before, after)
			}
		})
	}
}

// An upstream of an address that this gate would not dial is not taken over either.
func TestAdoptClassifiesTheUpstream(t *testing.T) {
	port := echo(t)
	p := newPair(t)
	h := &heir{reports: make(chan bottle.DaemonStatus, 1000)}
	h.running = start(t, func(c *pipelock.GateConfig) {
		c.Handover, c.Adopt, c.AllowCIDRs = end(t, p.handover), end(t, p.adopt), nil
		c.Report = func(st bottle.DaemonStatus) error { h.reports <- st; return nil }
	}, entry("a.test", port))
	p.send(t, fmt.Sprintf(`{"host":"a.test","port":%d}`, port),
		map[string]*os.File{"tcp": fromEgress(t, 0), "up": toPort(t, port)}, []string{"tcp", "up"})
	h.becomes("it is counted", func(c map[string]uint64) bool { return c["failed"] == 1 && c["adopted"] == 0 })
}

func TestPairIsChecked(t *testing.T) {
	p := newPair(t)
	stream, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	s := &pair{os.NewFile(uintptr(stream[0]), "a"), os.NewFile(uintptr(stream[1]), "b")}
	defer s.handover.Close()
	defer s.adopt.Close()
	config := filepath.Join(t.TempDir(), "pipelock.yaml")
	if err := os.WriteFile(config, sealed(t), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, ends := range map[string][2]*net.UnixConn{
		"both or neither":       {end(t, p.handover), nil},
		"give both or neither":  {nil, end(t, p.adopt)},
		"SOCK_SEQPACKET":        {end(t, s.handover), end(t, p.adopt)},
		"end of a SOCK_SEQPACK": {end(t, p.handover), end(t, s.adopt)},
	} {
		_, err := pipelock.NewGate(pipelock.GateConfig{
			Config: config, Listener: listenOn(t, "127.0.0.1:0"), Handover: ends[0], Adopt: ends[1], Logger: slog.New(slog.DiscardHandler),
		})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
		for _, c := range ends {
			if c != nil {
				_ = c.Close()
			}
		}
	}
}

// send sends a message of any kind, and closes the descriptors as a gate would.
func (p *pair) send(t *testing.T, body string, files map[string]*os.File, names []string) {
	t.Helper()
	var fds []int
	for _, n := range names {
		fds = append(fds, int(files[n].Fd()))
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if err := unix.Sendmsg(int(p.handover.Fd()), []byte(body), oob, nil, 0); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		_ = f.Close()
	}
}

func fileOf(t *testing.T, c any) *os.File {
	t.Helper()
	x, ok := c.(interface {
		File() (*os.File, error)
		io.Closer
	})
	if !ok {
		t.Fatalf("%T", c)
	}
	defer x.Close()
	f, err := x.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// connected is a connection of which a gate would hold one end, and egress the other.
func connected(t *testing.T) (*os.File, net.Conn) {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	a, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return fileOf(t, a), c
}

func fromEgress(t *testing.T, _ int) *os.File {
	f, _ := connected(t)
	return f
}

func toPort(t *testing.T, port int) *os.File {
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	return fileOf(t, c)
}

func aPipe(t *testing.T, _ int) *os.File {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func aUnixSocket(t *testing.T, _ int) *os.File {
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	return fileOf(t, l)
}

func aUDPSocket(t *testing.T, _ int) *os.File {
	c, err := (&net.ListenConfig{}).ListenPacket(t.Context(), "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return fileOf(t, c)
}

func aListener(t *testing.T, _ int) *os.File {
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return fileOf(t, l)
}
