package main_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"bottle/bottle"
)

// soakHosts is how many hosts agents ask for beside those that are listed.
const soakHosts = 50

// A soakBottle is the bottle that is soaked: the real programs, started as an operator would.
type soakBottle struct {
	state string
	dir   *bottle.Dir
	door  soakDoor
	world *world // clears up whatever happens
}

func startSoakBottle(t *testing.T, up *soakUpstream) *soakBottle {
	t.Helper()
	state, err := os.MkdirTemp("/tmp", "b") //nolint:usetesting // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	b := &soakBottle{state: state, world: &world{state: state}}
	t.Cleanup(func() {
		for _, l := range b.world.clear() {
			t.Error(l)
		}
		if t.Failed() {
			t.Log(tail(b.world.logs(), 40))
		}
		_ = os.RemoveAll(state)
	})
	if b.dir, err = bottle.NewDir(filepath.Join(state, "soak")); err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(state, "upstream.pem")
	resolve := []string{soakOpen + ": 127.0.0.1", soakTunnel + ": 127.0.0.1", "edited.corp.example: 127.0.0.1"}
	for i := range soakHosts {
		resolve = append(resolve, fmt.Sprintf("h%d.corp.example: 127.0.0.1", i))
	}
	manifest := fmt.Sprintf(`name: soak
agent: {workspace: %s}
egress:
  routes:
    - {host: %s, ports: [%d], matches: [{path: {type: PathPrefix, value: /open}}]}
    - {host: %s, ports: [%d], tls: passthrough}
  resolve: {%s}
  allow_cidrs: [127.0.0.0/8]
  upstream_ca: %s
`, state, soakOpen, up.port, soakTunnel, up.echoPort, strings.Join(resolve, ", "), ca)
	for file, text := range map[string]string{ca: string(up.caPEM), filepath.Join(state, "soak.yaml"): manifest} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	script := fmt.Sprintf(soakEditor, up.port)
	if err := os.WriteFile(filepath.Join(state, "editor"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := b.cli(t.Context(), "start", "-f", filepath.Join(state, "soak.yaml"), "--detach"); err != nil {
		t.Fatalf("bottle start: %v\n%s", err, out)
	}
	var cfg bottle.BundleConfig
	if err := bottle.ReadJSON(b.dir.BundleConfig(), 0, &cfg); err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	for _, pem := range [][]byte{up.caPEM, readFile(t, b.dir.CACert())} {
		if !roots.AppendCertsFromPEM(pem) {
			t.Fatal("no certificate in a CA's file")
		}
	}
	b.door = soakDoor{addr: cfg.Egress, auth: bottle.ProxyAuthorization(cfg.ProxySecret), roots: roots}
	return b
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// tail is the last n lines of a text.
func tail(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

func (b *soakBottle) env() []string {
	return append(os.Environ(), "BOTTLE_STATE_DIR="+b.state, "XDG_CONFIG_HOME="+b.state, "TERM=xterm", "NO_COLOR=1")
}

// cli runs the bottle command without a terminal, and returns all that it printed.
func (b *soakBottle) cli(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(programs, "bottle"), args...)
	cmd.Env = b.env()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("bottle %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), err
}

// kills kills a daemon after the other, one every so often, until ctx ends; not in the last
// three seconds before end, so that each has come back by then.
func (b *soakBottle) kills(ctx context.Context, every time.Duration, end time.Time, book *soakBook) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	victims := []string{bottle.DaemonEgress, bottle.DaemonPipelock, bottle.DaemonSupervise}
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if time.Until(end) < 3*time.Second {
			continue
		}
		if err := b.kill(context.WithoutCancel(ctx), victims[n%len(victims)], book); err != nil {
			book.fault("%v", err)
		}
	}
}

// kill kills a daemon by its pid, and returns when another is in its place.
func (b *soakBottle) kill(ctx context.Context, daemon string, book *soakBook) error {
	ctx, cancel := context.WithTimeout(ctx, 2*soakPatience)
	defer cancel()
	var st bottle.InitStatus
	if err := bottle.ReadJSON(b.dir.InitStatus(), 0, &st); err != nil {
		return err
	}
	id, err := bottle.ProcessOf(st.Daemons[daemon].PID)
	if err != nil {
		return fmt.Errorf("kill %s: %w", daemon, err)
	}
	done := book.killed(daemon)
	if err := syscall.Kill(id.PID, syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill %s: %w", daemon, err)
	}
	if err := poll(ctx, func() bool { return !id.Alive() }); err != nil {
		return fmt.Errorf("%s (%d) does not die: %w", daemon, id.PID, err)
	}
	dead := time.Now()
	done(dead, time.Time{})
	err = poll(ctx, func() bool {
		var st bottle.InitStatus
		return bottle.ReadJSON(b.dir.InitStatus(), 0, &st) == nil && st.Ready && st.Daemons[daemon].PID != id.PID
	})
	if err != nil {
		return fmt.Errorf("%s does not come back: %w", daemon, err)
	}
	done(dead, time.Now())
	book.longest("back after a kill", time.Since(dead))
	return nil
}

// poll looks every millisecond until it is so, or ctx ends.
func poll(ctx context.Context, so func() bool) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !so() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

// stop stops the bottle as an operator would, and returns what is not as it should be.
func (b *soakBottle) stop(ctx context.Context) error {
	if _, err := b.cli(ctx, "audit", "--verify"); err != nil {
		return err
	}
	if _, err := b.cli(ctx, "stop", "soak"); err != nil {
		return err
	}
	if _, err := b.cli(ctx, "audit", "--verify"); err != nil {
		return err
	}
	if left := b.world.processes(); len(left) > 0 {
		var names []string
		for _, pid := range left {
			names = append(names, fmt.Sprintf("%d %s", pid, cmdline(pid)))
		}
		return errors.New("outlived bottle stop: " + strings.Join(names, "; "))
	}
	return nil
}
