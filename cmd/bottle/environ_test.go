package main_test

import (
	"context"
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

// On the local backend the agent has the operator's uid. It must not find the tokens in the
// environment of the processes around it, nor egress' memory.
func TestTokensAreNotInProc(t *testing.T) {
	state, err := os.MkdirTemp("/tmp", "b") //nolint:usetesting // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(state) })
	manifest := filepath.Join(state, "b.yaml")
	text := "name: b\ncredentials:\n  c: {header: Authorization, scheme: Bearer, token_env: BOTTLE_TEST_TOKEN, hosts: [api.corp.example]}\n" +
		"egress:\n  routes:\n    - {host: api.corp.example, credential: c}\n"
	if err := os.WriteFile(manifest, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	as := ordinary(t, state, manifest)
	run := func(name string, args ...string) *exec.Cmd {
		cmd := exec.CommandContext(context.WithoutCancel(t.Context()), name, args...)
		cmd.SysProcAttr = as
		cmd.Dir = "/"
		cmd.Env = []string{"PATH=" + programs + ":/usr/bin:/bin", "HOME=" + state, "BOTTLE_STATE_DIR=" + state, "BOTTLE_TEST_TOKEN=tellnobody"}
		return cmd
	}
	// A sibling without anything to hide shows that the test can see at all.
	open := run("sleep", "60")
	if err := open.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = open.Process.Kill()
		_ = open.Wait()
	}()
	for end := time.Now().Add(5 * time.Second); ; { // until it is sleep
		out, err := run("cat", fmt.Sprintf("/proc/%d/environ", open.Process.Pid)).CombinedOutput()
		if err == nil && strings.Contains(string(out), "tellnobody") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the environment of a sibling is hidden anyway: %v %s", err, out)
		}
	}

	// start waits for its agent, which looks around.
	look := `for p in $PPID $(cat "$1"/keeper) $(cat "$1"/egress); do cat /proc/$p/environ /proc/$p/maps && echo "$p can be read"; done; true`
	agent := `n=0; until [ -s "$0"/egress ]; do sleep 0.01; n=$((n+1)); [ $n -lt 1000 ] || exit 1; done; ` + strings.ReplaceAll(look, `"$1"`, `"$0"`)
	start := run(filepath.Join(programs, "bottle"), "start", "--unconfined", "-f", manifest, "--", "sh", "-c", agent, state)
	var out strings.Builder
	start.Stdout, start.Stderr = &out, &out
	if err := start.Start(); err != nil {
		t.Fatal(err)
	}
	w := &world{state: state}
	t.Cleanup(func() {
		for _, l := range w.clear() {
			t.Error(l)
		}
	})
	ended := make(chan struct{})
	var failed error
	go func() {
		defer close(ended)
		failed = start.Wait()
	}()
	keeper, egress := pids(t, state, ended)
	for _, f := range []struct {
		name string
		pid  int
	}{{"keeper", keeper}, {"egress", egress}} { // the agent waits for the last
		if err := bottle.WriteFile(filepath.Join(state, f.name), fmt.Appendln(nil, f.pid), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	<-ended
	if failed != nil {
		t.Fatalf("%v\n%s", failed, out.String())
	}
	if s := out.String(); strings.Contains(s, "can be read") || strings.Contains(s, "tellnobody") || strings.Count(s, "Permission denied") != 6 {
		t.Errorf("the agent saw:\n%s", s)
	}
}

// ordinary gives the files to a uid without privileges; nil if this process has such a one.
func ordinary(t *testing.T, paths ...string) *syscall.SysProcAttr {
	t.Helper()
	if os.Getuid() != 0 {
		return nil
	}
	const nobody = 65534
	if err := os.Chmod(programs, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, p := range paths {
		if err := os.Chown(p, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
}

// pids waits until the bottle is ready, or its start has ended: then it returns zeros.
func pids(t *testing.T, state string, ended <-chan struct{}) (keeper, egress int) {
	t.Helper()
	dir, err := bottle.NewDir(filepath.Join(state, "b"))
	if err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(30 * time.Second); ; {
		var st bottle.InitStatus
		m, err := dir.LoadMetadata()
		if err == nil && bottle.ReadJSON(dir.InitStatus(), 0, &st) == nil && st.Ready {
			return m.Keeper.PID, st.Daemons[bottle.DaemonEgress].PID
		}
		if time.Now().After(end) {
			t.Fatalf("not ready: %v %+v", err, st)
		}
		select {
		case <-ended:
			return 0, 0
		case <-tick.C:
		}
	}
}
