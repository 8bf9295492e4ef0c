package launch

import (
	"os/exec"
	"strings"
	"testing"
)

// What comes before init has handlers waits for them.
func TestStartBlocked(t *testing.T) {
	const early = "kill -HUP $$; kill -USR1 $$; kill -USR2 $$; kill -35 $$; kill -36 $$; echo alive"
	for name, start := range map[string]func(*exec.Cmd) error{"blocked": startBlocked, "as usual": (*exec.Cmd).Start} {
		var out strings.Builder
		cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", early)
		cmd.Stdout = &out
		if err := start(cmd); err != nil {
			t.Fatal(err)
		}
		err := cmd.Wait()
		if survived := err == nil && out.String() == "alive\n"; survived != (name == "blocked") {
			t.Errorf("%s: %v %q", name, err, out.String())
		}
	}
	// Our own mask is as it was.
	if out, err := exec.CommandContext(t.Context(), "/bin/sh", "-c", "kill -HUP $$; echo alive").Output(); err == nil {
		t.Errorf("HUP is still blocked: %q", out)
	}
}
