package apply_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"bottle/apply"
	"bottle/bottle"
	"bottle/bottle/audit"
	"bottle/bottle/pipelock"
	"bottle/bottle/queue"
)

// A crashRound is one kill and what is made of it.
type crashRound struct {
	t     *testing.T
	rnd   *rand.Rand
	tm    template
	chunk int
	root  string
	name  string
	kill  int    // before which step
	step  string // its name; empty if the change came to its end
}

// A crashJournal is as much of the journal as the test needs.
type crashJournal struct {
	Outcome string `json:"outcome"`
	Steps   []struct {
		Files []struct {
			File     string
			Old, New []byte
		}
	}
}

// run returns how the request ended, in each of the worlds that came of the kill.
func (r *crashRound) run() (ended []string) {
	live, cut := r.root+"/live", r.root+"/cut"
	if err := copyTree(r.tm.root, live); err != nil {
		r.errorf("%v", err)
		return nil
	}
	b := newBed(r.t, bedConfig{root: live, noInit: true, adjust: r.adjust(nil)})
	defer b.close()
	if f := r.tm.kind.refuse; f != "" {
		b.bundle.set(func(u *bundle) { u.refuse[f] = "no" })
	}
	if r.tm.kind.mute {
		b.bundle.mute()
	}
	if err := r.runChild(b); err != nil {
		r.errorf("%v", err)
		return nil
	}
	if err := copyTree(live, cut); err != nil {
		r.errorf("%v", err)
		return nil
	}
	journal := r.journal(cut)
	// The kill: the bundle runs on, and somebody recovers.
	ended = append(ended, r.recover(b, live, journal, true))

	// The power cut: what was not synced may be there or not, and nothing runs.
	for i := range 3 {
		root := fmt.Sprintf("%s/%d", r.root, i)
		if err := copyTree(cut, root); err != nil {
			r.errorf("%v", err)
			return ended
		}
		how := "as it was"
		if i > 0 {
			how = r.tear(root, journal)
		}
		dark := newBed(r.t, bedConfig{root: root, noInit: true, down: true, adjust: r.adjust(nil)})
		was := r.name
		r.name += ", power cut, " + how
		ended = append(ended, r.recover(dark, root, journal, false))
		r.name = was
		dark.close()
	}
	return ended
}

func (r *crashRound) adjust(fault func(string)) func(*apply.Config) {
	return func(c *apply.Config) {
		c.Now = func() time.Time { return time.Now().Add(r.tm.kind.later) }
		if fault != nil {
			c.Fault = fault
		}
		if r.tm.kind.mute {
			c.ConfirmTimeout = muteTimeout
		}
	}
}

func (r *crashRound) errorf(format string, args ...any) {
	r.t.Errorf("%s: %s", r.name, fmt.Sprintf(format, args...))
}

func (r *crashRound) journal(root string) *crashJournal {
	names, err := filepath.Glob(filepath.Join(root, "journal", "*.json"))
	if err != nil || len(names) == 0 {
		return nil
	}
	content, err := os.ReadFile(names[0])
	if err != nil {
		r.errorf("%v", err)
		return nil
	}
	j := &crashJournal{}
	if err := json.Unmarshal(content, j); err != nil || len(names) > 1 {
		r.errorf("journals %v: %v", names, err)
	}
	return j
}

// tear makes of a file that was being written what a power cut can: any mixture of what it was and was to be.
func (r *crashRound) tear(root string, j *crashJournal) string {
	words := strings.Fields(r.step)
	if j == nil || !slices.Contains([]string{"pwrite", "ftruncate", "fsync"}, words[0]) {
		return "whole"
	}
	var versions [][]byte
	for _, s := range j.Steps {
		for _, f := range s.Files {
			if f.File == words[1] {
				versions = append(versions, f.Old, f.New)
			}
		}
	}
	a, b := versions[r.rnd.IntN(len(versions))], versions[r.rnd.IntN(len(versions))]
	long := max(len(a), len(b))
	size := []int{len(a), len(b), r.rnd.IntN(long + 1)}[r.rnd.IntN(3)]
	out := make([]byte, long)
	copy(out, a)
	how := "mixed pages"
	switch r.rnd.IntN(3) {
	case 0:
		n := r.rnd.IntN(len(b) + 1)
		copy(out, b[:n])
		how = fmt.Sprintf("%d of %d bytes over the other version", n, len(b))
	case 1:
		const page = 64
		for off := 0; off < len(b); off += page {
			if r.rnd.IntN(2) == 0 {
				copy(out[off:], b[off:min(off+page, len(b))])
			}
		}
	case 2:
		from := r.rnd.IntN(long + 1)
		copy(out, b)
		clear(out[from:])
		how = fmt.Sprintf("zeros from %d on", from)
	}
	how = fmt.Sprintf("%s: %s, cut to %d", words[1], how, size)
	if err := os.WriteFile(filepath.Join(root, "etc", words[1]), out[:size], 0o600); err != nil {
		r.errorf("%v", err)
	}
	return how
}

// errCrash is the end of a recovery that is itself cut short.
var errCrash = errors.New("crash")

// recover cuts a recovery short, most times, then lets one come to its end, and checks what is there afterwards.
func (r *crashRound) recover(b *bed, root string, j *crashJournal, live bool) string {
	ctx := context.Background()
	before, err := b.desk.Find(ctx, r.tm.id)
	if err != nil {
		r.errorf("%v", err)
		return "lost"
	}
	for range r.rnd.IntN(3) {
		left := r.rnd.IntN(12)
		r.crashing(b, func(string) {
			if left == 0 {
				panic(errCrash)
			}
			left--
		})
	}
	if _, err := b.applier.Recover(ctx); err != nil {
		r.errorf("recovery: %v", err)
		return "not recovered"
	}
	if r.tm.kind.mute { // it was stopped, or killed by the signals; the keeper starts it
		b.bundle.restart()
	}
	r.checkFiles(b, j, live)
	rec := r.checkRequest(b, j, before)
	r.checkAudit(b)

	// A second recovery finds nothing to do.
	was := r.fingerprint(root)
	found, err := b.applier.Recover(ctx)
	if err != nil || len(found) > 0 || was != r.fingerprint(root) {
		r.errorf("the second recovery found %+v (%v)", found, err)
	}
	return string(rec.State.Status())
}

// crashing runs a recovery that dies at some step. A panic leaves the files as a kill does: what runs on the way out
// closes files and the lock, and nothing else.
func (r *crashRound) crashing(b *bed, fault func(string)) {
	cfg := crashConfig(b.dir, b.desk, queue.AuditTrail{Log: b.log}, b.bundle, r.tm.kind.later)
	cfg.Fault = fault
	if r.tm.kind.mute {
		cfg.ConfirmTimeout = muteTimeout
	}
	a, err := apply.New(cfg)
	if err != nil {
		r.errorf("%v", err)
		return
	}
	a.SetChunk(r.chunk)
	defer func() {
		if p := recover(); p != nil && p != any(errCrash) {
			panic(p)
		}
	}()
	_, err = a.Recover(context.Background())
	if err != nil {
		r.errorf("recovery: %v", err)
	}
}

func (r *crashRound) checkFiles(b *bed, j *crashJournal, live bool) {
	if left, err := filepath.Glob(filepath.Join(b.dir.Journal(), "*")); err != nil || len(left) > 0 {
		r.errorf("journal left: %v %v", left, err)
	}
	for _, file := range []string{bottle.RoutesFile, bottle.PipelockFile} {
		now := b.read(file)
		rev, err := bottle.CheckSeal(now)
		if err != nil {
			r.errorf("%s: %v\n%q", file, err, now)
			continue
		}
		if live && b.bundle.inForce(file) != rev {
			r.errorf("%s: %s is in force, not %s", file, b.bundle.inForce(file).Short(), rev.Short())
		}
		if j == nil {
			continue // what is sealed is whole
		}
		known := false
		touched := false
		for _, s := range j.Steps {
			for _, f := range s.Files {
				if f.File == file {
					touched = true
					known = known || bytes.Equal(now, f.Old) || bytes.Equal(now, f.New)
				}
			}
		}
		if touched && !known {
			r.errorf("%s is neither old nor new:\n%s", file, now)
		}
	}
	list, err := pipelock.Codec{}.Allowlist(b.read(bottle.PipelockFile))
	want := bottle.Allowlist(b.routes())
	if err != nil || !slices.EqualFunc(list, want, func(x, y bottle.AllowEntry) bool { return x.Host == y.Host && slices.Equal(x.Ports, y.Ports) }) {
		r.errorf("pipelock allows %v and the routes need %v (%v)", list, want, err)
	}
}

func (r *crashRound) checkRequest(b *bed, j *crashJournal, before *bottle.Record) *bottle.Record {
	recs, problems, err := b.desk.Records(context.Background())
	if err != nil || len(problems) > 0 {
		r.errorf("records: %v %v", problems, err)
	}
	asked, err := filepath.Glob(filepath.Join(b.dir.Requests(), "*.json"))
	if err != nil || len(asked) != len(recs) {
		r.errorf("%d requests and %d records (%v)", len(asked), len(recs), err)
	}
	rec := b.record(r.tm.id)
	granted := slices.ContainsFunc(b.routes(), func(x bottle.Route) bool { return x.Grant != nil && x.Grant.Request == rec.Short })
	removed := !slices.ContainsFunc(b.routes(), func(x bottle.Route) bool { return x.Host == "b.example.com" })
	status := rec.State.Status()
	ok := map[bottle.Status]bool{}
	switch r.tm.kind.name {
	case "widening", "routes only", "refused", "grant without a reserve":
		ok[bottle.Applied], ok[bottle.Failed] = granted && r.tm.kind.refuse == "", !granted
		ok[bottle.Pending] = !granted && j == nil
	case "mixed":
		ok[bottle.Applied], ok[bottle.Failed] = granted && removed, !granted && removed
		ok[bottle.Pending] = !granted && !removed && j == nil
	case "narrowing":
		ok[bottle.Applied] = removed
		ok[bottle.Pending] = !removed && j == nil
	case "revoke", "revoke on a full disk", "revoke from a mute bundle":
		ok[bottle.Revoked] = !granted
		ok[bottle.Applied] = granted && j == nil
	case "expire":
		ok[bottle.Expired] = !granted
		ok[bottle.Applied] = granted && j == nil
	case "edit":
		ok[bottle.Applied], ok[bottle.Revoked] = granted, !granted // it leaves nothing of the grant
	}
	if !ok[status] {
		r.errorf("request is %s (was %s), granted %v, removed %v, journal %v", status, before.State.Status(), granted, removed, j != nil)
	}
	if status != bottle.Pending {
		var a bottle.Answer
		if err := bottle.ReadJSON(filepath.Join(b.dir.Decisions(), rec.Request.ID+".json"), 0, &a); err != nil || a.Status != status {
			r.errorf("the agent was told %q of a request that is %s (%v)", a.Status, status, err)
		}
	}
	return rec
}

// checkAudit holds the log to its chain, each line of a change to once, and each change to one end.
func (r *crashRound) checkAudit(b *bed) {
	report, err := audit.Verify(b.dir.Audit(), b.dir.AuditHead())
	if err != nil || len(report.Faults) > 0 {
		r.errorf("audit: %+v %v", report.Faults, err)
	}
	lines, err := audit.Read(b.dir.Audit(), 1, 0)
	if err != nil {
		r.errorf("audit: %v", err)
	}
	ends := map[string]int{}
	seen := map[string]bool{}
	for _, l := range lines {
		key := l.Change + " " + string(l.Event)
		if l.Change != "" && seen[key] {
			r.errorf("audited twice: %s", key)
		}
		seen[key] = true
		switch l.Event {
		case audit.ApplyStarted:
			ends[l.Change] += 0
		case audit.Applied, audit.Failed, audit.Revoked, audit.Expired, audit.Edited:
			ends[l.Change]++
		}
	}
	for c, n := range ends {
		if n != 1 {
			r.errorf("change %s has %d ends: %s", c, n, b.events())
		}
	}
}

// fingerprint is the content of all that recovery may change.
func (r *crashRound) fingerprint(root string) bottle.Hash {
	var all []byte
	for _, glob := range []string{"etc/*", "records/*", "decisions/*", "journal/*", "kept/*", "audit.jsonl", "audit.head"} {
		names, err := filepath.Glob(filepath.Join(root, glob))
		if err != nil {
			r.errorf("%v", err)
		}
		for _, n := range names {
			content, err := os.ReadFile(n)
			if err != nil {
				r.errorf("%v", err)
			}
			all = append(append(all, n...), content...)
		}
	}
	return bottle.Sum(all)
}
