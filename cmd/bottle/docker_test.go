package main_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/creack/pty"
	"github.com/mark3labs/mcp-go/client"
	"github.com/mark3labs/mcp-go/mcp"

	"bottle/bottle"
)

// The whole loop through the command line, with a bottle of containers and an agent in one of
// them: refused, asked for, cut down, granted, revoked, and on under a restart of its bundle.
func TestDocker(t *testing.T) {
	d := newDock(t)
	if d == nil {
		return
	}
	p := pot(t, d, randomName(), "")
	p.install()
	says(t, p.bottle("start", "-f", p.manifest, "--detach"), "bottle "+p.name+" is ready")
	agent := p.session()
	fetch := func(p *potted, code int, host string) string {
		p.t.Helper()
		return p.inside(code, "/workspace/fetch", p.site.url(host, "/"))
	}

	t.Run("overview", func(t *testing.T) { overview(t, p.in(t)) })
	t.Run("exit codes", func(t *testing.T) {
		p := p.in(t)
		for code, argv := range map[int][]string{
			0: {"true"}, 7: {"sh", "-c", "exit 7"}, 137: {"sh", "-c", "kill -9 $$"},
			126: {"/workspace"}, 127: {"no-such-program"},
		} {
			p.inside(code, argv...)
		}
	})

	says(t, fetch(p, 0, "open"), "200 open.example.com", "has it")
	says(t, fetch(p, 22, "api"), "403", "request_allowlist_change")
	r := agent.call("request_allowlist_change", fmt.Sprintf(
		`{"add":[{"host":"api.example.com","ports":[%d]},{"host":"data.example.com","ports":[%[1]d]}],"reason":"two hosts"}`, p.site.at.Port()))
	if r.err != nil || r.isError {
		t.Fatalf("%v %s", r.err, r.text)
	}
	whole := p.digest("r1")
	offer := p.digest("r1", "--only", "api.example.com")
	p.code(4, "approve", "r1", "--only", "api.example.com", "--digest", whole)
	says(t, p.bottle("approve", "r1", "--only", "api.example.com", "--digest", offer), "routes.yaml is at", "pipelock.yaml is at", "confirmed in force")
	r = agent.call("wait_for_decision", fmt.Sprintf(`{"id":%q,"timeout_seconds":10}`, r.id))
	says(t, r.text, `"status": "applied"`, "you asked for")
	says(t, fetch(p, 0, "api"), "200 api.example.com")
	fetch(p, 22, "data")

	t.Run("revoke cuts it", func(t *testing.T) {
		p := p.in(t)
		stream := p.command("attach", p.name, "--", "/workspace/fetch", p.site.url("api", "/stream"))
		var out bytes.Buffer
		stream.Stdout, stream.Stderr = &out, &out
		p.site.forget()
		if err := stream.Start(); err != nil {
			t.Fatal(err)
		}
		<-p.site.authorizations
		says(t, p.bottle("revoke", "r1"), "r1 revoked")
		if err := stream.Wait(); err == nil || strings.Contains(out.String(), "Timeout") {
			t.Errorf("the stream: %v, %s", err, &out)
		}
		says(t, fetch(p, 22, "api"), "403")
	})

	t.Run("restart", func(t *testing.T) { restartUnderAgent(t, p.in(t), agent) })
	t.Run("killed from outside", func(t *testing.T) {
		p := p.in(t)
		before := p.metadata().Docker
		if err := d.cli.ContainerKill(t.Context(), before.Sidecars, "KILL"); err != nil {
			t.Fatal(err)
		}
		p.becomes("ready", func() bool { return !p.initRuns(before.Sidecars) })
		says(t, fetch(p, 0, "data"), "200 data.example.com")
		says(t, agent.call("list_routes", "{}").text, "data.example.com")
		if now := p.metadata().Docker; now.Agent != before.Agent {
			t.Error("the agent's container was made anew")
		}
	})
	t.Run("the agent's container killed alone", func(t *testing.T) {
		p := p.in(t)
		before := p.metadata().Docker
		if err := d.cli.ContainerKill(t.Context(), before.Agent, "KILL"); err != nil {
			t.Fatal(err)
		}
		says(t, fetch(p, 0, "data"), "200 data.example.com")
		if now := p.metadata().Docker; now.Agent != before.Agent || now.Sidecars != before.Sidecars {
			t.Errorf("from %+v to %+v", before, now)
		}
	})
	agent = p.session() // what ran in it is gone
	t.Run("allowlist edit", func(t *testing.T) {
		p := p.in(t)
		before := p.daemon(bottle.DaemonPipelock)
		p.editAllowlist("trusted_domains: [trusted.example.com]\n")
		if now := p.daemon(bottle.DaemonPipelock); now == before {
			t.Errorf("pipelock %d was not replaced", now)
		}
		says(t, fetch(p, 0, "data"), "200")
		says(t, agent.call("list_routes", "{}").text, "data.example.com")
	})
	t.Run("cleanup leaves what lives", func(t *testing.T) {
		p := p.in(t)
		if out := p.bottle("cleanup"); out != "nothing was left\n" {
			t.Error(out)
		}
		fetch(p, 0, "open")
	})
	says(t, p.bottle("audit", "--verify"), "whole")

	says(t, p.bottle("stop", p.name), "is stopped")
	if left := p.onEngine(); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	if b, err := os.ReadFile(p.dir.Path("compose.log")); err != nil || !bytes.Contains(b, []byte("sidecars")) {
		t.Errorf("compose.log: %q, %v", b, err)
	}
	says(t, p.bottle("logs", p.name), "sidecars")
	says(t, p.bottle("logs", p.name, "--egress"), " 200 allowed ", "GET data.example.com:", " REFUSED egress ")
	says(t, p.code(1, "attach", p.name, "--", "true"), "does not run")
}

// What an operator looks at.
func overview(t *testing.T, p *potted) {
	var list []struct{ Name, Status, Backend string }
	if err := json.Unmarshal([]byte(p.bottle("ls", "--json")), &list); err != nil {
		t.Fatal(err)
	}
	if len(list) != 1 || list[0].Status != "ready" || list[0].Backend != "docker" {
		t.Errorf("%+v", list)
	}
	says(t, p.bottle("doctor", "--bottle", p.name), "status: ready", "routes.yaml: sha256:", "pipelock.yaml: sha256:")
	says(t, p.bottle("logs", p.name), "bundle started", "sidecars")
	project := "bottle-" + p.name
	for _, c := range []struct {
		args []string
		says []string
	}{
		{[]string{"ls"}, []string{project, "running(2)"}},
		{[]string{"-p", project, "ps"}, []string{project + "-sidecars-1", project + "-agent-1"}},
		{[]string{"-p", project, "logs"}, []string{"sidecars-1"}},
	} {
		cmd := exec.CommandContext(t.Context(), "docker", append([]string{"compose"}, c.args...)...)
		cmd.Env = p.env
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("docker compose %q: %v", c.args, err)
		}
		says(t, string(out), c.says...)
	}
}

// The bundle's container is made anew under an agent that runs and has a session.
func restartUnderAgent(t *testing.T, p *potted, agent *agent) {
	r := agent.call("request_allowlist_change", fmt.Sprintf(`{"add":[{"host":"data.example.com","ports":[%d]}],"reason":"to stay"}`, p.site.at.Port()))
	p.bottle("approve", "r2", "--digest", p.digest("r2"))
	inForce := regexp.MustCompile(`(?m)^\S+  (?:routes|pipelock)\.yaml  \S+  in force$`)
	revisions := func() (all []string) {
		for _, list := range []string{"routes", "allowlist"} {
			all = append(all, inForce.FindString(p.bottle(list)))
		}
		return all
	}
	before, was := p.metadata(), revisions()

	worker := p.command("attach", p.name, "--", "sh", "-c", `echo up; read line; echo "still: $line"; /workspace/fetch "$line"; exit 3`)
	in, err := worker.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := worker.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := worker.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	if s, err := lines.ReadString('\n'); s != "up\n" {
		t.Fatalf("%q, %v", s, err)
	}

	says(t, p.bottle("restart", p.name), "is ready again")
	now := p.metadata()
	if now.Docker.Sidecars == before.Docker.Sidecars || now.Docker.Agent != before.Docker.Agent || now.Keeper == before.Keeper {
		t.Errorf("from %+v %+v\nto %+v %+v", before.Docker, before.Keeper, now.Docker, now.Keeper)
	}
	if is := revisions(); strings.Join(is, "") != strings.Join(was, "") || was[0] == "" || was[1] == "" {
		t.Errorf("from %q to %q", was, is)
	}
	if _, err := io.WriteString(in, p.site.url("data", "/")+"\n"); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(lines)
	if err != nil {
		t.Error(err)
	}
	says(t, string(rest), "still: https://data.example.com", "200 data.example.com")
	if _ = worker.Wait(); worker.ProcessState.ExitCode() != 3 {
		t.Errorf("the agent's exit: %v", worker.ProcessState)
	}
	says(t, agent.call("get_request", fmt.Sprintf(`{"id":%q}`, r.id)).text, `"status": "applied"`)
	if r := agent.call("list_routes", "{}"); r.err != nil || r.isError || !strings.Contains(r.text, "data.example.com") {
		t.Errorf("the session after the restart: %+v", r)
	}
}

// session is an agent's MCP session, by a bottle-mcp that runs in its container.
func (p *potted) session() *agent {
	p.t.Helper()
	m, err := client.NewStdioMCPClient(filepath.Join(p.programs, "bottle"), p.env, "attach", p.name, "--", "bottle-mcp")
	if err != nil {
		p.t.Fatal(err)
	}
	a := &agent{mcp: m, calls: map[string]chan reply{}}
	p.t.Cleanup(a.close)
	ctx, cancel := context.WithTimeout(p.t.Context(), stepTimeout)
	defer cancel()
	var init mcp.InitializeRequest
	init.Params.ProtocolVersion = "2025-11-25"
	init.Params.ClientInfo = mcp.Implementation{Name: "docker", Version: "1"}
	if _, err := m.Initialize(ctx, init); err != nil {
		p.t.Fatalf("initialize over attach: %v", err)
	}
	return a
}

var digestLine = regexp.MustCompile(`digest (sha256:\S+)`)

// digest waits for a request, and looks at it as an operator does.
func (p *potted) digest(id string, offer ...string) string {
	p.t.Helper()
	eventually(p.t, func() string {
		if out := p.bottle("requests", "--all"); !strings.Contains(out, id+" ") {
			return out
		}
		return ""
	})
	m := digestLine.FindStringSubmatch(p.bottle(append([]string{"show", id}, offer...)...))
	if m == nil {
		p.t.Fatalf("%s has no digest", id)
	}
	return m[1]
}

// becomes waits until the bottle has a status, once it has been seen to change.
func (p *potted) becomes(status string, changed func() bool) {
	p.t.Helper()
	eventually(p.t, func() string {
		if !changed() {
			return "nothing has changed"
		}
		if out := p.bottle("ls"); !strings.Contains(out, " "+status+" ") {
			return out
		}
		return ""
	})
}

// initRuns reports whether a container's first process is the one that was started at first.
func (p *potted) initRuns(container string) bool {
	p.t.Helper()
	c, err := p.dock.cli.ContainerInspect(p.t.Context(), container)
	return err == nil && c.State.Running && c.State.FinishedAt == "0001-01-01T00:00:00Z"
}

// daemon is the pid of one, in its container.
func (p *potted) daemon(name string) int {
	p.t.Helper()
	var st bottle.InitStatus
	if err := bottle.ReadJSON(p.dir.InitStatus(), 0, &st); err != nil {
		p.t.Fatal(err)
	}
	return st.Daemons[name].PID
}

// editAllowlist adds lines to pipelock.yaml at a terminal.
func (p *potted) editAllowlist(lines string) {
	p.t.Helper()
	editor := filepath.Join(p.t.TempDir(), "editor")
	if err := os.WriteFile(editor, []byte("#!/bin/sh\nprintf '%s' '"+lines+"' >>\"$1\"\n"), 0o700); err != nil {
		p.t.Fatal(err)
	}
	out, err := p.dialogue("? put this in force\\? y/n > $\n< y\n", "allowlist", "edit", "--bottle", p.name, "--editor", editor)
	if err != nil {
		p.t.Fatalf("%v\n%s", err, out)
	}
	says(p.t, out, "confirmed in force")
}

// dialogue runs a command at a terminal; see stepDialogue.
func (p *potted) dialogue(script string, args ...string) (string, error) {
	p.t.Helper()
	cmd := p.command(args...)
	cmd.SysProcAttr = nil
	f, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 50, Cols: 200})
	if err != nil {
		p.t.Fatal(err)
	}
	defer f.Close()
	d := &dialogue{f: f, env: p.env, printed: make(chan string)}
	go d.read()
	if err = d.play(script); err == nil {
		err = d.drain()
	}
	if err != nil {
		_ = cmd.Process.Kill()
		for range d.printed {
		}
	}
	if exit := cmd.Wait(); err == nil {
		err = exit
	}
	return d.all, err
}
