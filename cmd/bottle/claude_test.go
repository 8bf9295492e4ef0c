package main_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"bottle/bottle"
	"bottle/mcp/claudetest"
)

// claudeTimeout bounds a session, which takes some five seconds on a machine that has nothing else to do,
// ten on docker; an engine with much else to do takes minutes.
const claudeTimeout = 4 * time.Minute

// A claudeSession is one way to use Claude Code, and what happens to the bottle while it waits.
type claudeSession struct {
	name      string
	run       func(*testing.T, string, claudeBackend, func(*claudeBottle, context.Context) error)
	meanwhile func(*claudeBottle, context.Context) error
}

var (
	loopback = netip.MustParseAddr("127.0.0.1")

	claudeSessions = []claudeSession{
		{"prints", claudePrints, (*claudeBottle).undisturbed},
		{"prints over a restart", claudePrints, (*claudeBottle).restart},
		{"talks", claudeTalks, (*claudeBottle).undisturbed},
		{"talks over a restart and a kill", claudeTalks, (*claudeBottle).restartAndKill},
	}

	claudeOnDocker = []claudeSession{
		{"prints over a restart", claudePrints, (*claudeBottle).restart},
		{"talks over a restart", claudeTalks, (*claudeBottle).restart},
	}
)

// claudeBackends are where TestClaudeCode runs: here always, and on docker where there is an image.
func claudeBackends(t *testing.T, image string) []claudeBackend {
	t.Helper()
	same := func(host string) string { return host }
	all := []claudeBackend{
		{name: "local", args: []string{"--backend", "local"}, programs: programs, outside: loopback, workspace: same, sessions: claudeSessions},
		{
			name: "unconfined", args: []string{"--backend", "local", "--unconfined"}, programs: programs, outside: loopback, workspace: same,
			// Without a sandbox there is no /etc/bottle; the bridge is in PATH, and the socket in the environment.
			mcpConfig: `{"mcpServers": {"bottle": {"command": "bottle-mcp"}}}`, sessions: claudeSessions[1:2],
		},
	}
	if image == "" {
		if os.Getenv("BOTTLE_REQUIRE_DOCKER") == "1" {
			t.Fatal("BOTTLE_REQUIRE_DOCKER=1, but BOTTLE_E2E_IMAGE names no image with Claude Code in it; make e2e makes one")
		}
		t.Log("nothing was run on docker: BOTTLE_E2E_IMAGE names no image with Claude Code in it")
		return all
	}
	if d := newDock(t); d != nil {
		all = append(all, claudeBackend{
			name: "docker", args: []string{"--backend", "docker"}, programs: d.dir, image: image, outside: d.at,
			workspace: func(string) string { return "/workspace" }, sessions: claudeOnDocker,
		})
	}
	return all
}

// TestClaudeCode runs the real Claude Code in a bottle, with a script for its model, which is
// reached through the bottle as the real one would be. It is refused, asks, waits, is granted less
// than it asked for, and makes do with that.
func TestClaudeCode(t *testing.T) {
	program := os.Getenv("BOTTLE_E2E_CLAUDE")
	if program == "" {
		t.Log("nothing was run: make e2e installs Claude Code and runs it in a bottle")
		return
	}
	for _, backend := range claudeBackends(t, os.Getenv("BOTTLE_E2E_IMAGE")) {
		for _, session := range backend.sessions {
			t.Run(backend.name+" "+session.name, func(t *testing.T) {
				t.Parallel()
				session.run(t, program, backend, session.meanwhile)
			})
		}
	}
}

// What the model is asked, what it is granted, and what it says in the end.
const (
	claudePrompt = "Read the guide and the figures."
	counterNote  = "the figures are not yours to read"
	claudeAnswer = "The guide says to bring a towel; of the figures I know nothing."
)

// claudeScript is the model's part: wait is what it does while its request is pending.
func claudeScript(b *claudeBottle, wait claudetest.Step) []claudetest.Step {
	guide, figures := b.url(guideHost, "/guide"), b.url(figuresHost, "/figures")
	host := func(name string) map[string]any { return map[string]any{"host": name, "ports": []int{b.port}} }
	return []claudetest.Step{
		{On: claudePrompt, Say: "I look.", Calls: []claudetest.Call{
			{Tool: "Bash", Input: map[string]string{"command": "env; curl -sS " + guide}},
		}},
		{On: "blocked by bottle: GET " + guide, Calls: []claudetest.Call{
			{Tool: "mcp__bottle__check_access", Input: map[string]string{"url": guide}},
		}},
		{On: `"allowed":false`, Say: "I ask for both.", Calls: []claudetest.Call{
			{Tool: "mcp__bottle__request_allowlist_change", Input: map[string]any{
				"add": []any{host(guideHost), host(figuresHost)}, "reason": "to read the guide, and the figures that it is about",
			}},
		}},
		wait,
		{On: `"status":"applied"`, Say: "I try again.", Calls: []claudetest.Call{
			{Tool: "Bash", Input: map[string]string{"command": "curl -sS " + guide + " " + figures}},
		}},
		{On: "bring a towel", Say: claudeAnswer},
	}
}

// afterWait is how many steps are left when the one that waits was taken.
const afterWait = 2

// claudePrints runs a session without a terminal (claude -p), which waits by wait_for_decision.
func claudePrints(t *testing.T, program string, backend claudeBackend, meanwhile func(*claudeBottle, context.Context) error) {
	b := newClaudeBottle(t, program, backend, func(b *claudeBottle) []claudetest.Step {
		return claudeScript(b, claudetest.Step{On: `"status":"pending"`, Calls: []claudetest.Call{
			{Tool: "mcp__bottle__wait_for_decision", Input: map[string]any{"id": "r1", "timeout_seconds": 60}},
		}})
	})
	ctx, cancel := context.WithTimeout(t.Context(), claudeTimeout)
	defer cancel()
	debug := filepath.Join(b.workspace, "debug.log")
	cmd := b.start(ctx, "--debug-file", filepath.Join(backend.workspace(b.workspace), "debug.log"),
		"--output-format", "json", "-p", claudePrompt)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	running, ended := context.WithCancel(ctx)
	var exit error
	go func() {
		defer ended()
		exit = cmd.Wait()
	}()
	err := b.model.Await(running, afterWait)
	if err == nil {
		err = awaitText(running, debug, "Calling MCP tool: wait_for_decision") // the wait is under way
	}
	if err == nil {
		err = b.decide(running, meanwhile)
	}
	if err != nil {
		cancel()
	}
	<-running.Done()
	if err != nil {
		t.Fatalf("%v\nbottle start: %v: %s\n%s", err, exit, errOut.String(), out.String())
	}
	if exit != nil || !strings.Contains(errOut.String(), "is stopped") {
		t.Errorf("bottle start: %v: %s", exit, errOut.String())
	}
	var result struct {
		Result  string
		IsError bool `json:"is_error"`
	}
	if err := json.Unmarshal(out.Bytes(), &result); err != nil || result.IsError || result.Result != claudeAnswer {
		t.Errorf("%v: claude printed %s", err, out.String())
	}
	b.checkSession()
}

// claudeTalks runs a session at a terminal. There the request is a task, which goes to the
// background by itself, and the model is woken by its end.
func claudeTalks(t *testing.T, program string, backend claudeBackend, meanwhile func(*claudeBottle, context.Context) error) {
	b := newClaudeBottle(t, program, backend, func(b *claudeBottle) []claudetest.Step {
		return claudeScript(b, claudetest.Step{On: "background", Say: "I asked, and go on meanwhile."})
	})
	ctx, cancel := context.WithTimeout(t.Context(), claudeTimeout)
	defer cancel()
	term, err := claudetest.Start(b.start(ctx))
	if err != nil {
		t.Fatal(err)
	}
	defer term.Close()
	for _, step := range []func() error{
		func() error { return term.Await(ctx, 0, "bypass permissions on") },
		func() error { return term.Say(ctx, claudePrompt) },
		func() error { return term.Await(ctx, 0, "I asked, and go on meanwhile.") },
		func() error { return b.decide(ctx, meanwhile) },
		func() error { return term.Await(ctx, 0, claudeAnswer) },
		func() error { return term.Say(ctx, "/exit") },
		func() error { return term.Await(ctx, 0, "bottle "+b.name+" is stopped") },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	b.checkSession()
}

// decide answers the request that waits, after something has happened meanwhile.
func (b *claudeBottle) decide(ctx context.Context, meanwhile func(*claudeBottle, context.Context) error) error {
	b.checkProcesses()
	if err := meanwhile(b, ctx); err != nil {
		return err
	}
	return b.counter(ctx)
}

func (b *claudeBottle) undisturbed(context.Context) error { return nil }

func (b *claudeBottle) restart(ctx context.Context) error {
	began := time.Now()
	_, err := b.operate(ctx, "restart", b.name)
	b.t.Logf("bottle restart took %.1f s", time.Since(began).Seconds())
	return err
}

// restartAndKill kills the daemon that Claude Code is connected to, too. Local backend alone: elsewhere
// its pid is another process of this machine's.
func (b *claudeBottle) restartAndKill(ctx context.Context) error {
	if err := b.restart(ctx); err != nil {
		return err
	}
	dir, err := bottle.NewDir(filepath.Join(b.world.state, b.name))
	if err != nil {
		return err
	}
	var st bottle.DaemonStatus
	if err := bottle.ReadJSON(dir.DaemonStatus(bottle.DaemonSupervise), 0, &st); err != nil {
		return err
	}
	if err := syscall.Kill(st.PID, syscall.SIGKILL); err != nil {
		return err
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for { // until it runs again: meanwhile nothing can be approved
		var init bottle.InitStatus
		if err := bottle.ReadJSON(dir.InitStatus(), 0, &init); err != nil {
			return err
		}
		if init.Ready && init.Daemons[bottle.DaemonSupervise].Restarts > 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("supervise did not come back: %w", ctx.Err())
		}
	}
}

// checkSession looks at what the model was told, and at what was left of the key.
func (b *claudeBottle) checkSession() {
	t := b.t
	t.Helper()
	left, err := b.model.Left()
	if err != nil || len(left) > 0 {
		t.Errorf("%v: the model did not come to %+v", err, left)
	}
	for on, wants := range map[string][]string{
		"blocked by bottle: GET":    {"ANTHROPIC_API_KEY=" + claudetest.Key, "HTTPS_PROXY="},
		`"status":"applied"`:        {counterNote, "you asked for"},
		"bring a towel":             {"blocked by bottle: GET " + b.url(figuresHost, "/figures")},
		`"allowed":false,`:          {`"ask":`},
		"# MCP Server Instructions": {"You work in a bottle"},
	} {
		got := b.told(on)
		for _, want := range wants {
			if !strings.Contains(got, want) {
				t.Errorf("with %q the model was not told %q: %s", on, want, got)
			}
		}
	}
	b.checkKey()
}

// awaitText returns when the file has the text.
func awaitText(ctx context.Context, path, text string) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if b, err := os.ReadFile(path); err == nil && bytes.Contains(b, []byte(text)) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s never had %q: %w", path, text, ctx.Err())
		}
	}
}
