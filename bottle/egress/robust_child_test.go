package egress_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bottle/bottle"
	"bottle/bottle/egress"
	"bottle/bottle/pipelock"
)

const childEnv = "BOTTLE_TEST_CHILD"

// A childJob is what this program does in a process of its own: it is an egress, or a gate.
type childJob struct {
	Egress *childEgress `json:",omitempty"`
	Gate   *childGate   `json:",omitempty"`
	Files  uint64       // RLIMIT_NOFILE; 0 leaves it as it is
}

// A childEgress has its sockets at descriptors 3 and 4, and with Passing its end at 5.
type childEgress struct {
	Routes, SpentPath, CACert, CAKey, HopFile, Secret, GateSecret string
	UpstreamCA                                                    []byte
	Conns                                                         int // see Config.Limit
	Passing                                                       bool
}

// A childGate has its socket at descriptor 3, and the end by which it passes connections at 4.
type childGate struct {
	Config string
	Hosts  []string // which are at 127.0.0.1
}

func TestMain(m *testing.M) {
	job := os.Getenv(childEnv)
	if job == "" {
		os.Exit(m.Run())
	}
	if err := childMain(job); err != nil {
		fmt.Fprintln(os.Stderr, "child:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func childMain(text string) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	var job childJob
	if err := json.Unmarshal([]byte(text), &job); err != nil {
		return err
	}
	if job.Files > 0 {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: job.Files, Max: job.Files}); err != nil {
			return err
		}
	}
	report := func(st bottle.DaemonStatus) error { return json.NewEncoder(os.Stdout).Encode(st) }
	l, err := listenerAt(3)
	if err != nil {
		return err
	}
	if job.Gate != nil {
		resolve := map[string]string{}
		for _, host := range job.Gate.Hosts {
			resolve[host] = "127.0.0.1"
		}
		pass, err := unixConnAt(4)
		if err != nil {
			return err
		}
		g, err := pipelock.NewGate(pipelock.GateConfig{
			Config: job.Gate.Config, Listener: l, Pass: pass, Secret: gateSecret, Logger: slog.New(slog.DiscardHandler), Report: report,
			Resolve: resolve, AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")},
		})
		if err != nil {
			return err
		}
		return g.Run(ctx)
	}
	keys, err := listenerAt(4)
	if err != nil {
		return err
	}
	c := job.Egress
	cfg := egress.Config{
		Routes: c.Routes, SpentPath: c.SpentPath, CACert: c.CACert, CAKey: c.CAKey, HopFile: c.HopFile, UpstreamCA: c.UpstreamCA,
		Secret: c.Secret, GateSecret: c.GateSecret, Listener: l, KeyListener: keys, Report: report, Logger: slog.New(slog.DiscardHandler),
	}
	if c.Passing {
		if cfg.Passed, err = unixConnAt(5); err != nil {
			return err
		}
	}
	cfg.Limit(c.Conns, 0, 0, 0)
	s, err := egress.New(cfg)
	if err != nil {
		return err
	}
	return s.Run(ctx)
}

func listenerAt(fd uintptr) (net.Listener, error) {
	f := os.NewFile(fd, "listener")
	defer f.Close()
	return net.FileListener(f)
}

func unixConnAt(fd uintptr) (*net.UnixConn, error) {
	f := os.NewFile(fd, "end")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("descriptor %d is %T", fd, c)
	}
	return u, nil
}

// A child is such a process.
type child struct {
	pid  int
	addr string // of what it listens on, at descriptor 3
	stop func()
}

type socketFile interface{ File() (*os.File, error) }

// start starts it on those sockets. It is ended with the test.
func (j childJob) start(t testing.TB, report func(bottle.DaemonStatus) error, sockets ...socketFile) *child {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context.Background(), self)
	cmd.Env = append(os.Environ(), childEnv+"="+string(text))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	for _, s := range sockets {
		f, err := s.File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	begun := make(chan struct{})
	var reading sync.WaitGroup
	reading.Go(func() {
		first := sync.OnceFunc(func() { close(begun) })
		defer first()
		for lines := json.NewDecoder(out); ; {
			var st bottle.DaemonStatus
			if lines.Decode(&st) != nil {
				return
			}
			_ = report(st)
			first()
		}
	})
	c := &child{pid: cmd.Process.Pid, addr: sockets[0].(net.Listener).Addr().String(), stop: sync.OnceFunc(func() { //nolint:errcheck // they are listeners
		_ = cmd.Process.Signal(unix.SIGTERM)
		late := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
		defer late.Stop()
		reading.Wait()
		if err := cmd.Wait(); err != nil {
			t.Errorf("child: %v", err)
		}
	})}
	t.Cleanup(c.stop)
	<-begun
	return c
}

// apart puts the world's egress into a process of its own, which may have that many descriptors.
func (w *world) apart(files uint64, conns int) *child {
	w.t.Helper()
	w.stop()
	w.init.forget()
	c := w.cfg
	job := childJob{Files: files, Egress: &childEgress{
		Routes: c.Routes, SpentPath: c.SpentPath, CACert: c.CACert, CAKey: c.CAKey, HopFile: c.HopFile, Secret: c.Secret,
		GateSecret: c.GateSecret, UpstreamCA: c.UpstreamCA, Conns: conns, Passing: c.Passed != nil,
	}}
	sockets := []socketFile{w.init.proxy, w.init.keys}
	if c.Passed != nil {
		defer c.Passed.Close()
		sockets = append(sockets, c.Passed)
	}
	child := job.start(w.t, w.init.report, sockets...)
	w.stop = child.stop
	w.addr = w.waitStatus(func(st bottle.DaemonStatus) bool { return st.Listen != "" }).Listen
	return child
}

// builtIn puts a built-in gate, in a process of its own, behind the world's egress, for those
// hosts, each at a port of 127.0.0.1. What it dials it passes to an egress that is put apart afterwards.
func (w *world) builtIn(files uint64, entries ...bottle.AllowEntry) *child {
	w.t.Helper()
	doc, err := pipelock.New(entries)
	if err != nil {
		w.t.Fatal(err)
	}
	b, _, err := doc.Bytes()
	if err != nil {
		w.t.Fatal(err)
	}
	config := filepath.Join(w.dir, "pipelock.yaml")
	if err := bottle.WriteFile(config, b, 0o600); err != nil {
		w.t.Fatal(err)
	}
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		w.t.Fatal(err)
	}
	defer l.Close()
	job := childJob{Files: files, Gate: &childGate{Config: config}}
	for _, e := range entries {
		job.Gate.Hosts = append(job.Gate.Hosts, string(e.Host))
	}
	writeHop(w.t, w.cfg.HopFile, l.Addr().String())
	var pass *net.UnixConn
	pass, w.cfg.Passed = passingPair(w.t)
	defer pass.Close()
	return job.start(w.t, func(bottle.DaemonStatus) error { return nil }, l, pass)
}
