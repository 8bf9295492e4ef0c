package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/mark3labs/mcp-go/client"
	"github.com/mark3labs/mcp-go/mcp"
	"github.com/spf13/cobra"

	"bottle/bottle"
	"bottle/bottle/allow"
)

// A demoEvent is what the demo's agent tells the demo, a JSON line each on its stdout.
type demoEvent struct {
	Who  string `json:"who"`            // agent or download
	Text string `json:"text"`           // for the timeline
	Step string `json:"step,omitempty"` // what the demo waits for
	OK   *bool  `json:"ok,omitempty"`   // a verified claim
}

// demoAgentCmd is the scripted agent: a real MCP client and a real HTTPS client, which
// knows nothing but the environment that a bottle gives to any agent.
func (a *app) demoAgentCmd() *cobra.Command {
	return &cobra.Command{
		Use: "demo-agent BOTTLE-MCP PORT", Hidden: true, Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			port, err := strconv.Atoi(args[1])
			if err != nil {
				return usagef("PORT %q: %w", args[1], err)
			}
			d := &demoAgent{out: json.NewEncoder(a.out), port: port, client: &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment}}}
			return d.run(cmd.Context(), args[0], a.in)
		},
	}
}

type demoAgent struct {
	out    *json.Encoder
	port   int
	client *http.Client
	mcp    *client.Client
	// events are written by the script and by the download beside it.
	events chan demoEvent
}

func (d *demoAgent) say(format string, args ...any) {
	d.events <- demoEvent{Who: "agent", Text: fmt.Sprintf(format, args...)}
}

func (d *demoAgent) check(ok bool, format string, args ...any) {
	d.events <- demoEvent{Who: "agent", Text: fmt.Sprintf(format, args...), OK: &ok}
}

func (d *demoAgent) step(name, format string, args ...any) {
	d.events <- demoEvent{Who: "agent", Text: fmt.Sprintf(format, args...), Step: name}
}

func (d *demoAgent) run(ctx context.Context, bridge string, in io.Reader) error {
	d.events = make(chan demoEvent)
	written := make(chan error, 1)
	go func() {
		var err error
		for e := range d.events {
			err = errors.Join(err, d.out.Encode(e))
		}
		written <- err
	}()
	err := d.script(ctx, bridge, in)
	switch {
	case err == nil:
	case ctx.Err() != nil: // what was under way has failed by that, and says so in words of its own
		d.say("is interrupted")
		err = silentExit(exitFailed)
	default:
		d.check(false, "stopped: %v", err)
	}
	close(d.events)
	return errors.Join(err, <-written)
}

func (d *demoAgent) script(ctx context.Context, bridge string, in io.Reader) error {
	commands := bufio.NewScanner(in)
	download := make(chan error, 1)
	started := make(chan struct{})
	go func() { download <- d.download(ctx, started) }()
	select {
	case <-started:
		d.say("its long download from %s runs (allowed from the start)", demoFiles)
	case err := <-download:
		return fmt.Errorf("the download did not start: %w", err)
	}
	if err := d.connect(ctx, bridge); err != nil {
		return err
	}
	before, err := bridgeSockets(bridge)
	if err != nil {
		return err
	}

	d.step("blocked", "GET https://%s/v1/hello", demoAPI)
	refusal, err := d.get(ctx, "GET", demoAPI, "/v1/hello")
	if err != nil {
		return err
	}
	ask, reason, err := refusal.ask()
	if err != nil {
		return err
	}
	d.check(refusal.status == http.StatusForbidden, "refused with %d: %s", refusal.status, reason)
	ask.Reason = "the build needs the greeting of " + demoAPI
	granted, err := d.request(ctx, ask)
	if err != nil {
		return err
	}
	if err := d.within(ctx, granted, []probe{{"GET", demoAPI, "/v1/hello"}}); err != nil {
		return err
	}

	d.step("counter", "needs %s, and asks for the whole host", demoData)
	granted, err = d.request(ctx, bottle.Ask{
		Add: []bottle.Entry{{Host: demoData, Ports: []int{d.port}}}, Reason: "I would like all of " + demoData,
	})
	if err != nil {
		return err
	}
	if err := d.within(ctx, granted, []probe{
		{"GET", demoData, "/public/report"}, {"POST", demoData, "/public/report"}, {"GET", demoData, "/private/report"},
	}); err != nil {
		return err
	}
	if err := d.revoked(ctx, granted); err != nil {
		return err
	}

	if _, err := d.call(ctx, "list_routes", map[string]any{}); err != nil {
		return err
	}
	after, err := bridgeSockets(bridge)
	if err != nil {
		return err
	}
	d.check(len(before) > 0 && slices.Equal(before, after), "its MCP connection is the one it opened at first (socket %s)", strings.Join(after, " "))
	d.step("finish", "waits for the end of its download")
	if err := <-download; err != nil {
		d.check(false, "the download broke: %v", err)
		return nil
	}
	d.check(true, "the unrelated download is whole, every byte of it (sha256 equal)")
	d.step("done", "is done")
	commands.Scan() // until the demo lets go
	return d.mcp.Close()
}

// A probe is a request that the agent tries after a decision.
type probe struct{ method, host, path string }

// within tries the probes and checks each outcome against what was granted, by the rules
// that egress goes by.
func (d *demoAgent) within(ctx context.Context, granted []bottle.Entry, probes []probe) error {
	var routes []bottle.Route
	for _, e := range granted {
		routes = append(routes, bottle.Route{Host: e.Host, Ports: e.Ports, Matches: e.Matches})
	}
	table, err := allow.Compile(routes)
	if err != nil {
		return err
	}
	for _, p := range probes {
		want := table.Decide(allow.Query{Host: bottle.Host(p.host), Port: d.port, Method: p.method, Path: p.path, TLS: true},
			func(*bottle.Grant) bool { return true }).Allowed
		got, err := d.get(ctx, p.method, p.host, p.path)
		if err != nil {
			return err
		}
		verdict := "allowed"
		if !want {
			verdict = "still refused"
		}
		d.check((got.status == http.StatusOK) == want, "%s https://%s%s is %s (%d)", p.method, p.host, p.path, verdict, got.status)
	}
	return nil
}

// revoked holds a stream open until it is cut, if the grant allows one.
func (d *demoAgent) revoked(ctx context.Context, granted []bottle.Entry) error {
	if len(granted) == 0 {
		d.step("nothing-to-revoke", "was granted nothing there, so there is no stream to cut")
		return nil
	}
	resp, err := demoRequest(ctx, d.client, http.MethodGet, d.url(demoData, "/public/stream"))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		d.step("nothing-to-revoke", "its stream is not within what was granted (%d)", resp.StatusCode)
		return nil
	}
	r := bufio.NewReader(resp.Body)
	if _, err := r.ReadString('\n'); err != nil {
		return fmt.Errorf("the stream did not start: %w", err)
	}
	d.step("streaming", "reads a stream of events from https://%s/public/stream", demoData)
	n := 0
	for err == nil {
		_, err = r.ReadString('\n')
		n++
	}
	d.step("cut", "its stream was cut after %d lines (%v)", n, err)
	again, err := d.get(ctx, "GET", demoData, "/public/report")
	if err != nil {
		return err
	}
	d.check(again.status == http.StatusForbidden, "GET https://%s/public/report is refused again (%d)", demoData, again.status)
	return nil
}

func (d *demoAgent) url(host, path string) string {
	return fmt.Sprintf("https://%s:%d%s", host, d.port, path)
}

type demoReply struct {
	status int
	body   []byte
}

func (d *demoAgent) get(ctx context.Context, method, host, path string) (demoReply, error) {
	resp, err := demoRequest(ctx, d.client, method, d.url(host, path))
	if err != nil {
		return demoReply{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	return demoReply{resp.StatusCode, body}, err
}

// ask returns the request that the refusal itself offers to make.
func (r demoReply) ask() (bottle.Ask, string, error) {
	var body struct {
		Reason string `json:"reason"`
		Ask    struct {
			Tool      string     `json:"tool"`
			Arguments bottle.Ask `json:"arguments"`
		} `json:"ask"`
	}
	if err := json.Unmarshal(r.body, &body); err != nil {
		return bottle.Ask{}, "", fmt.Errorf("the refusal (%d) is not the expected JSON: %w", r.status, err)
	}
	if body.Ask.Tool != "request_allowlist_change" {
		return bottle.Ask{}, "", fmt.Errorf("the refusal offers the tool %q", body.Ask.Tool)
	}
	return body.Ask.Arguments, body.Reason, nil
}

// download reads to the end and compares the digest in the last line.
func (d *demoAgent) download(ctx context.Context, started chan<- struct{}) error {
	resp, err := demoRequest(ctx, d.client, http.MethodGet, d.url(demoFiles, "/download"))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	r, sum := bufio.NewReader(resp.Body), sha256.New()
	for first := true; ; first = false {
		line, err := r.ReadString('\n')
		if err != nil {
			return fmt.Errorf("cut before its end: %w", err)
		}
		if first {
			close(started)
		}
		if want, ok := strings.CutPrefix(line, "sha256 "); ok {
			if got := fmt.Sprintf("%x\n", sum.Sum(nil)); got != want {
				return errors.New("the digest differs")
			}
			return nil
		}
		sum.Write([]byte(line))
	}
}

func (d *demoAgent) connect(ctx context.Context, bridge string) error {
	c, err := client.NewStdioMCPClient(bridge, os.Environ())
	if err != nil {
		return fmt.Errorf("start %s: %w", bridge, err)
	}
	var init mcp.InitializeRequest
	init.Params.ProtocolVersion = "2025-11-25"
	init.Params.ClientInfo = mcp.Implementation{Name: "demo-agent", Version: "1"}
	res, err := c.Initialize(ctx, init)
	if err != nil {
		return fmt.Errorf("initialize over %s: %w", bridge, err)
	}
	d.mcp = c
	d.say("speaks MCP with %s %s", res.ServerInfo.Name, res.ServerInfo.Version)
	return nil
}

func (d *demoAgent) call(ctx context.Context, tool string, args any) (map[string]any, error) {
	var req mcp.CallToolRequest
	req.Params.Name, req.Params.Arguments = tool, args
	res, err := d.mcp.CallTool(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", tool, err)
	}
	if res.IsError {
		text := "no text"
		if len(res.Content) > 0 {
			text = fmt.Sprint(res.Content[0])
		}
		return nil, fmt.Errorf("%s: %s", tool, text)
	}
	out, ok := res.StructuredContent.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("%s: no structured result", tool)
	}
	return out, nil
}

// request asks, waits for the decision, and returns what was granted.
func (d *demoAgent) request(ctx context.Context, ask bottle.Ask) ([]bottle.Entry, error) {
	args, err := asMap(ask)
	if err != nil {
		return nil, err
	}
	delete(args, "kind")
	ticket, err := d.call(ctx, "request_allowlist_change", args)
	if err != nil {
		return nil, err
	}
	id, ok := ticket["id"].(string)
	if !ok {
		return nil, errors.New("request_allowlist_change: no id in the result")
	}
	d.step("asked", "asked over MCP, and waits")
	for {
		res, err := d.call(ctx, "wait_for_decision", map[string]any{"id": id, "timeout_seconds": 60})
		if err != nil {
			return nil, err
		}
		status, _ := res["status"].(string)
		switch bottle.Status(status) {
		case bottle.Pending, bottle.Approved:
			continue
		case bottle.Applied:
		case bottle.Failed, bottle.Denied, bottle.Cancelled, bottle.Expired, bottle.Revoked:
			d.step("decided", "is told: %s (%v)", status, res["note"])
			return nil, nil
		}
		var got struct {
			Granted struct {
				Add []bottle.Entry `json:"add"`
			} `json:"granted"`
			Note     string `json:"note"`
			Duration string `json:"duration"`
		}
		b, err := json.Marshal(res)
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(b, &got); err != nil {
			return nil, fmt.Errorf("wait_for_decision: %w", err)
		}
		var lines []string
		for _, e := range got.Granted.Add {
			lines = append(lines, e.Lines()...)
		}
		d.step("decided", "is told: applied: %s", strings.Join(lines, "; "))
		if got.Note != "" {
			d.say("reads the operator's note: %s", got.Note)
		}
		return got.Granted.Add, nil
	}
}

func asMap(v any) (map[string]any, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	var m map[string]any
	return m, json.Unmarshal(b, &m)
}

// bridgeSockets lists the sockets of our own bottle-mcp, by inode: a connection that was
// made anew has another one.
func bridgeSockets(bridge string) ([]string, error) {
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		return nil, err
	}
	var out []string
	for _, t := range tasks {
		b, err := os.ReadFile(t)
		if err != nil {
			continue // the thread has ended
		}
		for _, pid := range strings.Fields(string(b)) {
			if exe, err := os.Readlink("/proc/" + pid + "/exe"); err != nil || filepath.Base(exe) != filepath.Base(bridge) {
				continue
			}
			fds, err := filepath.Glob("/proc/" + pid + "/fd/*")
			if err != nil {
				return nil, err
			}
			for _, fd := range fds {
				if to, err := os.Readlink(fd); err == nil && strings.HasPrefix(to, "socket:") {
					out = append(out, to)
				}
			}
		}
	}
	slices.Sort(out)
	return out, nil
}
