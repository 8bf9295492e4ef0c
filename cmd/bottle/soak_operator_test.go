package main_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"github.com/creack/pty"

	"bottle/bottle"
)

// soakEditor is the operator's editor: editor WHAT FILE. Each edit is one line, which can be
// put in and taken out over and over. It is in already, or out, where the edit before failed.
const soakEditor = `#!/bin/sh
set -e
put() { grep -qF "$1" "$2" || echo "$1" >>"$2"; }
case $1 in
+path) put '  - {host: open.corp.example, ports: [%[1]d], matches: [{path: {type: PathPrefix, value: /edited}}]}' "$2" ;;
+host) put '  - {host: edited.corp.example, ports: [%[1]d]}' "$2" ;;
+key)  put 'trusted_domains: [trusted.corp.example]' "$2" ;;
-path) sed -i '\,value: /edited,d' "$2" ;;
-host) sed -i /edited.corp.example/d "$2" ;;
-key)  sed -i /^trusted_domains/d "$2" ;;
esac
`

// The kinds of applies.
const (
	applyRoutes  = "routes.yaml alone"
	applyBoth    = "both files"
	applyReplace = "pipelock replaced"
)

// A soakDecision is what the operator decided of a request, and did later.
type soakDecision struct {
	short   string
	status  bottle.Status // what the operator's command said: applied, denied or failed
	revoked bool
}

// A soakOperator decides what agents ask for, and edits, without a pause.
type soakOperator struct {
	bottle *soakBottle
	book   *soakBook
	ledger *soakLedger
	age    *soakAge
	port   int // of the upstream
	pace   time.Duration

	decided map[string]*soakDecision // by request
	grants  []string                 // requests whose grant holds, oldest first
	took    map[string][]time.Duration
	done    int // applies that came to be in force
	probes  sync.WaitGroup
}

// run decides and edits until ctx ends, alternately widening and narrowing, and waits for
// the probes of what it revoked.
func (o *soakOperator) run(ctx context.Context) {
	defer o.probes.Wait()
	last := context.WithoutCancel(ctx) // what is begun is finished
	for next := time.Now(); ctx.Err() == nil; {
		if !time.Now().Before(next) { // agents may file thirty requests a minute, no more
			next = time.Now().Add(o.pace)
			o.decide(last)
			o.revokeAllBut(last, 1)
		}
		for _, e := range [][3]string{{"path", "routes", applyRoutes}, {"host", "routes", applyBoth}, {"key", "allowlist", applyReplace}} {
			for _, way := range []string{"+", "-"} {
				o.edit(last, e[1], way+e[0], e[2])
			}
		}
	}
}

// decide decides the oldest request that waits: every sixth is denied, the others approved.
func (o *soakOperator) decide(ctx context.Context) {
	wait, err := o.waiting(ctx)
	if err != nil {
		o.book.fault("%v", err)
		return
	}
	if len(wait) == 0 {
		o.book.count("nothing waits")
		return
	}
	if len(o.decided)%6 == 5 {
		o.deny(ctx, wait[0])
		return
	}
	o.approve(ctx, wait[0])
}

type soakWaiting struct {
	ID      string         `json:"id"`
	Short   string         `json:"short"`
	Digest  bottle.Hash    `json:"digest"`
	Problem string         `json:"problem"`
	Entries []bottle.Entry `json:"entries"`
}

// waiting lists the requests, oldest first.
func (o *soakOperator) waiting(ctx context.Context) ([]soakWaiting, error) {
	out, err := o.bottle.cli(ctx, "requests", "--json")
	if err != nil {
		return nil, err
	}
	var list []soakWaiting
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return nil, fmt.Errorf("bottle requests --json: %w: %s", err, out)
	}
	return list, nil
}

var tookText = regexp.MustCompile(` in ([0-9.]+(?:µs|ms|s|m[0-9.]+s))`)

// applied writes down how an apply went: what its command printed, and how it ended.
func (o *soakOperator) applied(kind string, began time.Time, out string, err error) bool {
	if err != nil {
		o.book.lost(kindApply, began, fmt.Errorf("%s: %w", kind, err))
		return false
	}
	m := tookText.FindStringSubmatch(out)
	if m == nil {
		o.book.fault("%s: the command does not say how long it took: %s", kind, out)
		return true
	}
	d, err := time.ParseDuration(m[1])
	if err != nil {
		o.book.fault("%s: %v", kind, err)
	}
	o.took[kind] = append(o.took[kind], d)
	o.done++
	return true
}

func (o *soakOperator) approve(ctx context.Context, w soakWaiting) {
	d := &soakDecision{short: w.Short, status: bottle.Applied}
	o.decided[w.ID] = d
	kind := applyBoth
	if len(w.Entries) == 1 && string(w.Entries[0].Host) == soakOpen {
		kind = applyRoutes
	}
	began := time.Now()
	out, err := o.bottle.cli(ctx, "approve", w.Short, "--digest", string(w.Digest))
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == exitChanged {
		// It has not been decided: the files moved under it. It is looked at again.
		delete(o.decided, w.ID)
		o.book.count("changed since you looked")
		return
	}
	if !o.applied(kind, began, out, err) {
		d.status = bottle.Failed
		return
	}
	o.grants = append(o.grants, w.ID)
}

// exitChanged is bottle's exit code for "changed since you looked".
const exitChanged = 4

func (o *soakOperator) deny(ctx context.Context, w soakWaiting) {
	if _, err := o.bottle.cli(ctx, "deny", w.Short, "--reason", "the soak says no"); err != nil {
		o.book.fault("%v", err)
		return
	}
	o.decided[w.ID] = &soakDecision{short: w.Short, status: bottle.Denied}
}

// revokeAllBut revokes the oldest grants until n are left. Each is used before.
func (o *soakOperator) revokeAllBut(ctx context.Context, n int) {
	for len(o.grants) > n {
		id := o.grants[0]
		o.grants = o.grants[1:]
		d := o.decided[id]
		ask, ok := o.ledger.find(id)
		if !ok {
			o.book.fault("%s was granted, but no agent knows of it", d.short)
			continue
		}
		p := newSoakProbe(o, ask)
		p.begin(ctx)
		began := time.Now()
		out, err := o.bottle.cli(ctx, "revoke", d.short)
		kind := applyBoth
		if ask.host == soakOpen {
			kind = applyRoutes
		}
		d.revoked = o.applied(kind, began, out, err)
		p.revoked(time.Now())
	}
}

var askedText = regexp.MustCompile(`put this in force\? y/n > |nothing changed`)

// edit has a file edited, and says yes to the change.
func (o *soakOperator) edit(ctx context.Context, file, what, kind string) {
	if kind == applyReplace {
		if err := o.age.replace(ctx, 1); err != nil {
			o.book.fault("before a replacement: %v", err)
		}
	}
	began := time.Now()
	out, err := o.bottle.dialogue(ctx, what, file, "edit", "--bottle", "soak")
	if kind == applyReplace {
		o.book.replacement(began, time.Now())
	}
	switch {
	case err == nil && askedText.FindString(out) == "nothing changed": // an edit before it failed
		o.book.count("nothing changed")
	case !o.applied(kind, began, out, err) && kind == applyReplace:
		if err := o.age.replace(ctx, 1); err != nil { // the way back was one, too
			o.book.fault("after a failed replacement: %v", err)
		}
	}
}

// dialogue runs a command that asks at a terminal, and says yes.
func (b *soakBottle) dialogue(ctx context.Context, edit string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(programs, "bottle"), args...)
	cmd.Env = append(b.env(), "BOTTLE_EDITOR="+filepath.Join(b.state, "editor")+" "+edit)
	f, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 50, Cols: 200})
	if err != nil {
		return "", err
	}
	defer f.Close()
	d := &dialogue{f: f, printed: make(chan string)}
	go d.read()
	err = d.expect(askedText)
	if err == nil && askedText.FindString(d.all) != "nothing changed" {
		_, err = f.WriteString("y\n")
	}
	if err == nil {
		err = d.drain()
	}
	if err != nil {
		_ = cmd.Process.Kill()
		for range d.printed { // until read has ended
		}
	}
	if exit := cmd.Wait(); exit != nil || err != nil {
		return d.all, fmt.Errorf("bottle %v (%s): %w: %s", args, edit, errors.Join(err, exit), d.all)
	}
	return d.all, nil
}
