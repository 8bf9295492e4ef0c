package claudetest_test

import (
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"

	"bottle/mcp/claudetest"
)

func TestTerminal(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	term, err := claudetest.Start(exec.CommandContext(ctx, "sh", "-c", `printf 'ready\033[1Cto \033[31mtalk\033[0m\n'; read line; stty size; echo "got [$line]"`))
	if err != nil {
		t.Fatal(err)
	}
	defer term.Close()
	if err := term.Await(ctx, 0, "ready to talk"); err != nil {
		t.Fatal(err)
	}
	mark := term.Mark()
	if err := term.Say(ctx, "hello there"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"50 200", "got [hello there]"} {
		if err := term.Await(ctx, mark, want); err != nil {
			t.Error(err)
		}
	}
	if err := term.Await(ctx, mark, "ready"); err == nil || !strings.Contains(err.Error(), "it has ended") {
		t.Errorf("await what was written before the mark: %v", err)
	}
}

func TestTerminalOfNoProgram(t *testing.T) {
	if _, err := claudetest.Start(exec.CommandContext(t.Context(), "/no/such/program")); err == nil {
		t.Error("it started")
	}
}

// A program's children may hold on to the terminal.
func TestTerminalClosesWithChildren(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	term, err := claudetest.Start(exec.CommandContext(ctx, "sh", "-c", `trap '' HUP; sleep 60 & echo ready; wait`))
	if err != nil {
		t.Fatal(err)
	}
	if err := term.Await(ctx, 0, "ready"); err != nil {
		t.Fatal(err)
	}
	term.Close()
	if ctx.Err() != nil {
		t.Error("it took until the time was up")
	}
}
