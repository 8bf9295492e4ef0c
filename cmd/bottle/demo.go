package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"bottle/bottle"
	"bottle/bottle/prompt"
	"bottle/bottle/queue"
)

func (a *app) demoCmd() *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use: "demo", Short: "see it work: a blocked agent asks, you decide, it goes on",
		Long: `demo starts a bottle, an HTTPS server with a private CA on loopback, and a scripted agent,
which is a real MCP client and a real HTTPS client. The agent is refused, asks, and
waits; you decide in this terminal. Without a terminal, or with --yes, the demo decides
by itself and says so. It exits with 0 only if every step was verified.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			signal.Ignore(syscall.SIGPIPE) // a reader that goes away (| head) must not leave the bottle behind
			return a.demo(cmd.Context(), yes)
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "decide by itself")
	return c
}

// demoTimeout bounds a demo that decides by itself.
const demoTimeout = 2 * time.Minute

// A demo is one run of it.
type demo struct {
	a        *app
	con      *prompt.Console // nil: it decides by itself
	upstream *demoUpstream
	dir      *bottle.Dir
	began    time.Time

	mu     sync.Mutex // the screen
	failed []string
	pids   map[string]int
}

func (a *app) demo(ctx context.Context, yes bool) (err error) {
	d := &demo{a: a, began: time.Now()}
	if !yes {
		con, done, err := a.console(ctx, "")
		if err == nil {
			defer done()
			d.con = con
		}
	}
	if d.con == nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, demoTimeout)
		defer cancel()
		d.print("demo", "there is no operator (--yes, or no terminal): the demo decides by itself, and says what")
	}
	root, err := os.MkdirTemp("", "bottle-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	a.set.StateDir, a.bottle = filepath.Join(root, "state"), "demo"
	if d.upstream, err = startDemoUpstream(); err != nil {
		return err
	}
	defer d.upstream.stop()
	if d.dir, err = bottle.NewDir(filepath.Join(a.set.StateDir, "demo")); err != nil {
		return err
	}
	if err := d.run(ctx, root); err != nil {
		return err
	}
	if len(d.failed) > 0 {
		return fmt.Errorf("%d steps were not verified: %s", len(d.failed), strings.Join(d.failed, "; "))
	}
	d.print("demo", "every step was verified")
	return nil
}

// manifest allows the download alone, and lets pipelock reach the upstream on loopback.
func (d *demo) manifest(root string) (string, error) {
	if err := os.Mkdir(filepath.Join(root, "work"), 0o700); err != nil {
		return "", err
	}
	ca := filepath.Join(root, "upstream-ca.pem")
	if err := os.WriteFile(ca, d.upstream.caPEM, 0o600); err != nil {
		return "", err
	}
	text := fmt.Sprintf(`name: demo
agent: {workspace: %s}
egress:
  routes:
    - host: %s
      ports: [%d]
      matches: [{path: {type: Exact, value: /download}, method: GET}]
  resolve: {%s: 127.0.0.1, %s: 127.0.0.1, %s: 127.0.0.1}
  allow_cidrs: [127.0.0.0/8]
  upstream_ca: %s
`, filepath.Join(root, "work"), demoFiles, d.upstream.port, demoFiles, demoAPI, demoData, ca)
	path := filepath.Join(root, "demo.yaml")
	return path, os.WriteFile(path, []byte(text), 0o600)
}

// run starts the bottle with the agent in it, as an operator would, and plays the operator.
func (d *demo) run(ctx context.Context, root string) (err error) {
	manifest, err := d.manifest(root)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	bridge := findBinary("bottle-mcp")
	if bridge == "" {
		return errors.New("bottle-mcp was not found beside bottle or in PATH; make build makes it")
	}
	running, end := context.WithCancel(ctx)
	defer end()
	args := []string{"start", "--state-dir", d.a.set.StateDir, "--backend", backendLocal, "-f", manifest}
	confined := checkConfinement(ctx)
	if confined != nil {
		args = append(args, "--unconfined")
	}
	args = append(args, "--", self, "demo-agent", bridge, strconv.Itoa(d.upstream.port))
	cmd := exec.CommandContext(running, self, args...) //nolint:gosec // G204: ourselves
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	cmd.Stderr = prompt.LineWriter(demoScreen{d, "start"})
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	d.print("demo", "starting a bottle that allows GET https://%s/download and nothing else", demoFiles)
	if confined == nil {
		d.print("demo", "the agent runs in a sandbox of its own (bubblewrap)")
	} else {
		d.print("demo", "the agent runs unconfined: %v", confined)
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	playErr := d.play(ctx, stdout)
	if playErr != nil { // the agent waits for an answer that nobody will give
		end()
	}
	_ = stdin.Close()
	_, _ = io.Copy(io.Discard, stdout)
	if err := cmd.Wait(); err != nil && playErr == nil {
		playErr = fmt.Errorf("bottle start: %w", err)
	}
	return playErr
}

// play follows the agent and does the operator's part at each of its steps.
func (d *demo) play(ctx context.Context, agent io.Reader) error {
	scan := bufio.NewScanner(agent)
	done := false
	var revokedAt time.Time
	for scan.Scan() {
		var e demoEvent
		if err := json.Unmarshal(scan.Bytes(), &e); err != nil {
			return fmt.Errorf("the agent said %q: %w", prompt.Clip(scan.Text(), 200), err)
		}
		if e.OK != nil {
			d.verify(e.Who, *e.OK, "%s", e.Text)
			continue
		}
		d.print(e.Who, "%s", e.Text)
		var err error
		switch e.Step {
		case "blocked":
			err = d.pidsBefore()
		case "asked":
			err = d.decide(ctx)
		case "streaming":
			revokedAt, err = d.revoke(ctx)
		case "cut":
			took := time.Since(revokedAt)
			d.verify("demo", took < time.Second, "the stream was cut %d ms after the revocation began", took.Milliseconds())
		case "finish":
			close(d.upstream.finish)
		case "done":
			done = true
			err = d.pidsAfter()
		}
		if err != nil {
			return err
		}
		if done {
			return nil
		}
	}
	if err := errors.Join(scan.Err(), ctx.Err()); err != nil {
		return err
	}
	return errors.New("the agent ended before its last step")
}

// waiting finds the request that the agent has just made, once the keeper has taken it in.
func (d *demo) waiting(ctx context.Context) (*cell, *bottle.Record, error) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		recs, _, err := queue.NewReader(d.dir).Records(ctx)
		if err != nil {
			return nil, nil, err
		}
		i := slices.IndexFunc(recs, func(r *bottle.Record) bool { return r.State.Status() == bottle.Pending })
		if i >= 0 {
			c, err := d.a.open("demo", quiet())
			return c, recs[i], err
		}
		select {
		case <-ctx.Done():
			return nil, nil, fmt.Errorf("wait for the request: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

// decide lets the operator decide, or does it: the first request as asked, the second by
// a counter-offer.
func (d *demo) decide(ctx context.Context) error {
	c, rec, err := d.waiting(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	d.print("operator", "sees %s: %s", rec.Short, summary(rec.Request.Ask))
	o := c.offer(rec)
	counter := rec.Request.Ask.Add[0].Host == demoData && len(rec.Request.Ask.Add[0].Matches) == 0
	if counter {
		o = d.counterOffer(o)
	}
	if d.con != nil {
		if counter {
			d.print("demo", "the agent asked for the whole host; a counter-offer is filled in below: GET below /public, for a minute")
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		for verdict := prompt.Skipped; verdict == prompt.Skipped; {
			if verdict, err = d.con.Review(ctx, &deskFor{c, rec}, o); err != nil && verdict != prompt.Quit {
				return err
			}
			if verdict == prompt.Quit {
				return errors.New("the demo was stopped at its question; nothing was decided")
			}
			if verdict == prompt.Skipped {
				d.con.Say("the agent waits for you; approve, edit or deny it, or quit")
			}
		}
		return nil
	}
	v, plan := c.view(ctx, rec, o)
	if plan == nil {
		return errors.New(v.Problem)
	}
	msg, err := c.approve(ctx, rec, o, plan.Proposal.Digest())
	if err != nil {
		return err
	}
	what := "as asked"
	if counter {
		what = "with a counter-offer: GET below /public, for a minute"
	}
	d.print("operator", "approved %s %s (--yes)", rec.Short, what)
	for _, l := range strings.Split(msg, "\n") {
		d.print("apply", "%s", strings.TrimSpace(l))
	}
	return nil
}

func (d *demo) counterOffer(o prompt.Offer) prompt.Offer {
	o.Add = []bottle.Entry{{
		Host: demoData, Ports: []int{d.upstream.port},
		Matches: []bottle.Match{{Path: &bottle.PathMatch{Type: bottle.PathPrefix, Value: "/public"}, Method: "GET"}},
	}}
	o.Duration = bottle.Duration{Kind: bottle.TTL, TTL: time.Minute}
	o.Note = "reading below /public is enough for a report"
	return o
}

// revoke takes the counter-offer's grant back while its stream runs.
func (d *demo) revoke(ctx context.Context) (time.Time, error) {
	recs, _, err := queue.NewReader(d.dir).Records(ctx)
	if err != nil {
		return time.Time{}, err
	}
	i := slices.IndexFunc(recs, func(r *bottle.Record) bool {
		return r.State.Status() == bottle.Applied && r.Request.Ask.Add[0].Host == demoData
	})
	if i < 0 {
		return time.Time{}, errors.New("the stream runs, but no grant for it is there")
	}
	c, err := d.a.open("demo", quiet())
	if err != nil {
		return time.Time{}, err
	}
	defer c.Close()
	if d.con != nil {
		d.mu.Lock()
		err := d.con.Wait(fmt.Sprintf("press return to revoke %s while the agent's stream runs", recs[i].Short))
		d.mu.Unlock()
		if err != nil {
			return time.Time{}, err
		}
	}
	began := time.Now()
	msg, err := c.revoke(ctx, recs[i])
	if err != nil {
		return began, err
	}
	for _, l := range strings.Split(msg, "\n") {
		d.print("apply", "%s", strings.TrimSpace(l))
	}
	return began, nil
}

func (d *demo) readPIDs() (map[string]int, error) {
	var st bottle.InitStatus
	if err := bottle.ReadJSON(d.dir.InitStatus(), 0, &st); err != nil {
		return nil, err
	}
	pids := map[string]int{"init": st.PID}
	for name, c := range st.Daemons {
		pids[name] = c.PID
	}
	return pids, nil
}

func (d *demo) pidsBefore() (err error) {
	if d.pids, err = d.readPIDs(); err != nil {
		return err
	}
	d.print("demo", "processes before: %s", pidText(d.pids))
	return nil
}

func (d *demo) pidsAfter() error {
	pids, err := d.readPIDs()
	if err != nil {
		return err
	}
	d.print("demo", "processes after:  %s", pidText(pids))
	same := len(pids) == len(d.pids)
	for name, pid := range pids {
		same = same && d.pids[name] == pid
	}
	d.verify("demo", same, "they are the same: nothing was restarted")
	f := readFileState(d.dir, bottle.RoutesFile)
	d.verify("demo", f.Problem == "" && f.Revision == f.InForce, "routes.yaml is at %s, in force", f.Revision.Short())
	f = readFileState(d.dir, bottle.PipelockFile)
	d.verify("demo", f.Problem == "" && f.Revision == f.InForce, "pipelock.yaml is at %s, in force", f.Revision.Short())
	return nil
}

func pidText(pids map[string]int) string {
	var s []string
	for _, name := range slices.Sorted(keysOf(pids)) {
		s = append(s, fmt.Sprintf("%s %d", name, pids[name]))
	}
	return strings.Join(s, ", ")
}

func (d *demo) verify(who string, ok bool, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if ok {
		d.print(who, "verified: %s", text)
		return
	}
	d.print(who, "FAILED: %s", text)
	d.failed = append(d.failed, text)
}

// print adds a line to the timeline.
func (d *demo) print(who, format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fmt.Fprintf(d.a.out, "%6d ms  %-9s %s\n", time.Since(d.began).Milliseconds(), prompt.Text(who), prompt.Text(fmt.Sprintf(format, args...)))
}

// demoScreen puts the lines of another process into the timeline.
type demoScreen struct {
	d   *demo
	who string
}

func (s demoScreen) Write(p []byte) (int, error) {
	if l := strings.TrimPrefix(strings.TrimSpace(string(p)), "bottle: "); l != "" { // who says it stands before it
		s.d.print(s.who, "%s", l)
	}
	return len(p), nil
}
