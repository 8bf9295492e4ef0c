package main_test

import (
	"bufio"
	"fmt"
	"strings"
	"syscall"
	"testing"
)

// An approval waits for daemons that have died and are about to be started again, and does not for a bottle that is stopped.
func TestApproveWaitsForDaemons(t *testing.T) {
	p := pot(t, nil, randomName(), "")
	p.bottle("start", "-f", p.manifest, "--backend", "local", "--unconfined", "--detach")
	agent := p.session()
	ask := func(host string) {
		t.Helper()
		r := agent.call("request_allowlist_change", fmt.Sprintf(`{"add":[{"host":%q,"ports":[%d]}],"reason":"to wait for"}`, host, p.site.at.Port()))
		if r.err != nil || r.isError {
			t.Fatalf("%v %s", r.err, r.text)
		}
	}
	ask("api.example.com")
	digest := p.digest("r1")
	ask("data.example.com")
	second := p.digest("r2")

	m := p.metadata()
	kill := func(pid int, s syscall.Signal) {
		t.Helper()
		if err := syscall.Kill(pid, s); err != nil {
			t.Fatal(err)
		}
	}
	kill(m.Keeper.PID, syscall.SIGSTOP)
	kill(m.Init.PID, syscall.SIGKILL)
	eventually(t, func() string {
		if m.Init.Alive() {
			return "init does not die"
		}
		return ""
	})
	approve := p.command("approve", "r1", "--digest", digest)
	said, err := approve.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	approve.Stdout = &out
	if err := approve.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(said).ReadString('\n')
	kill(m.Keeper.PID, syscall.SIGCONT)
	if err != nil || !strings.Contains(line, "its daemons are coming back; waiting up to 5s") {
		t.Errorf("%q, %v", line, err)
	}
	if err := approve.Wait(); err != nil {
		t.Errorf("%v, %s", err, &out)
	}
	says(t, out.String(), "confirmed in force")

	p.bottle("stop", p.name)
	if out := p.code(1, "approve", "r2", "--digest", second); strings.Contains(out, "waiting") {
		t.Error(out)
	}
}
