package main_test

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
	"syscall"
	"testing"
	"time"

	"bottle/bottle"
	"bottle/bottle/pipelock"
)

// soakGateEnv makes this binary a gate: the value is a soakGateConfig.
const soakGateEnv = "BOTTLE_SOAK_GATE"

type soakGateConfig struct {
	Config, Listen string
	Resolve        map[string]string
}

// The gate's process is this binary, started by the soak. TestMain would build all programs first.
func init() {
	text := os.Getenv(soakGateEnv)
	if text == "" {
		return
	}
	if err := soakGate(text); err != nil {
		fmt.Fprintln(os.Stderr, "gate:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// soakGate serves as any program does that binds its own port: until TERM, then it drains.
func soakGate(text string) error {
	var cfg soakGateConfig
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.Listen)
	if err != nil {
		return err
	}
	g, err := pipelock.NewGate(pipelock.GateConfig{
		Config: cfg.Config, Listener: l, Resolve: cfg.Resolve,
		AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	return g.Run(ctx)
}

// A soakPlain is what the same clients lose when pipelock is ended and started again, as one
// would do without a supervisor that replaces it.
type soakPlain struct {
	rounds int
	book   *soakBook
	load   *soakLoad
	away   []time.Duration // from TERM until a connection is served again
}

// runSoakPlain plays the rounds, each a few seconds apart.
func runSoakPlain(t *testing.T, up *soakUpstream, rounds, perSecond, tunnels int, apart time.Duration) *soakPlain {
	t.Helper()
	gate := newSoakGate(t, up)
	gate.start(t)
	p := &soakPlain{rounds: rounds, book: newSoakBook()}
	door := soakDoor{addr: gate.cfg.Listen, roots: up.roots}
	p.load = &soakLoad{door: door, host: soakOpen, port: up.port, path: "/open", book: p.book, age: &soakAge{}}
	held := &soakHeld{door: door, up: up, book: p.book, age: p.load.age}

	ctx, cancel := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	defer clients.Wait()
	defer cancel()
	for range tunnels {
		clients.Go(func() { held.tunnel(ctx) })
	}
	clients.Go(func() { p.load.run(ctx, perSecond) })
	tick := time.NewTicker(apart)
	defer tick.Stop()
	for range rounds {
		<-tick.C
		began := time.Now()
		gate.end(t)
		gate.start(t)
		for {
			if _, err := door.get(ctx, soakOpen, up.port, "/open"); err == nil {
				break
			}
			if time.Since(began) > soakPatience {
				t.Fatalf("the gate does not come back")
			}
			<-time.After(time.Millisecond)
		}
		p.away = append(p.away, time.Since(began))
	}
	<-tick.C
	return p
}

// A soakProcess is the gate's process.
type soakProcess struct {
	cfg soakGateConfig
	cmd *exec.Cmd
}

func newSoakGate(t *testing.T, up *soakUpstream) *soakProcess {
	t.Helper()
	doc, err := pipelock.New([]bottle.AllowEntry{{Host: soakOpen, Ports: []int{up.port}}, {Host: soakTunnel, Ports: []int{up.echoPort}}})
	if err != nil {
		t.Fatal(err)
	}
	text, _, err := doc.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	p := &soakProcess{cfg: soakGateConfig{
		Config: filepath.Join(t.TempDir(), bottle.PipelockFile), Resolve: map[string]string{soakOpen: "127.0.0.1", soakTunnel: "127.0.0.1"},
	}}
	if err := os.WriteFile(p.cfg.Config, text, 0o600); err != nil {
		t.Fatal(err)
	}
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.cfg.Listen = ln.Addr().String()
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.cmd != nil {
			_ = p.cmd.Process.Kill()
			_ = p.cmd.Wait()
		}
	})
	return p
}

// start returns when the process runs, not when it serves.
func (p *soakProcess) start(t *testing.T) {
	t.Helper()
	text, err := json.Marshal(p.cfg)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd = exec.CommandContext(context.WithoutCancel(t.Context()), self)
	p.cmd.Env = append(os.Environ(), soakGateEnv+"="+string(text))
	p.cmd.Stderr = os.Stderr
	if err := p.cmd.Start(); err != nil {
		p.cmd = nil
		t.Fatal(err)
	}
}

// end terminates it, and waits until it is gone.
func (p *soakProcess) end(t *testing.T) {
	t.Helper()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	err := p.cmd.Wait()
	p.cmd = nil
	if err != nil && err.Error() != "signal: terminated" { // that is one that had no handler yet, on a busy machine
		t.Fatalf("the gate ended with %v", err)
	}
}
