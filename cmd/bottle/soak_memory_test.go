package main_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"bottle/bottle"
)

// A soakGauge is what the processes of one role use together. Replaced pipelocks that drain
// count with the one that serves.
type soakGauge struct {
	at  time.Time
	kib int // proportional set size
	fds int
	n   int // processes
}

// A soakMeter samples the bundle's processes and the keeper.
type soakMeter struct {
	bottle *soakBottle
	roles  map[string][]soakGauge
	before map[string]soakGauge // when nothing was used yet
	after  map[string]soakGauge // when nothing was used any more
}

func (m *soakMeter) run(ctx context.Context, every time.Duration) {
	m.roles = map[string][]soakGauge{}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		for role, g := range m.sample() {
			m.roles[role] = append(m.roles[role], g)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// rest waits until each role has closed what it opened, but for what it keeps for later.
func (m *soakMeter) rest(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, soakPatience)
	defer cancel()
	_ = poll(ctx, func() bool { // or the verdict tells
		m.after = m.sample()
		for role := range m.after {
			if !m.closed(role) {
				return false
			}
		}
		return true
	})
}

// restSlackFDs is above what egress and pipelock keep for hosts that they have been to.
const restSlackFDs = 200

func (m *soakMeter) closed(role string) bool {
	return m.after[role].fds <= m.before[role].fds+restSlackFDs
}

// sample leaves out a role of which a process ends meanwhile: half a sum is none.
func (m *soakMeter) sample() map[string]soakGauge {
	out := map[string]soakGauge{}
	meta, err := m.bottle.dir.LoadMetadata()
	if err != nil {
		return out
	}
	pids := map[string][]int{"init": {meta.Init.PID}, "keeper": {meta.Keeper.PID}}
	for _, pid := range children(meta.Init.PID) {
		if role := roleOf(pid); role != "" {
			pids[role] = append(pids[role], pid)
		}
	}
	for role, list := range pids {
		g := soakGauge{at: time.Now(), n: len(list)}
		for _, pid := range list {
			kib, fds, err := resources(pid)
			if err != nil {
				g.n = 0
				break
			}
			g.kib, g.fds = g.kib+kib, g.fds+fds
		}
		if g.n > 0 {
			out[role] = g
		}
	}
	return out
}

func children(pid int) []int {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	var out []int
	for _, t := range tasks {
		b, err := os.ReadFile(t)
		if err != nil {
			continue // the thread has ended
		}
		for _, f := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(f); err == nil {
				out = append(out, n)
			}
		}
	}
	return out
}

func roleOf(pid int) string {
	line := cmdline(pid)
	for _, d := range []string{bottle.DaemonEgress, bottle.DaemonPipelock, bottle.DaemonSupervise} {
		if strings.Contains(line, "bottle-"+d+" ") || strings.Contains(line, " "+d+" ") {
			return d
		}
	}
	return ""
}

func resources(pid int) (kib, fds int, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "Pss:" {
			if kib, err = strconv.Atoi(f[1]); err != nil {
				return 0, 0, err
			}
		}
	}
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	return kib, len(open), err
}

// What a process of a role may use more in the last third of the run than in the third after
// warming up: half as much again, since Go's collector lets a heap double between two
// collections, a slack, and what connections need that are in flight on a machine that was
// less busy before: buffers, and TLS at both ends. In ten minutes a leak of 10 KiB at each
// apply, or of anything at each connection, is more. The least of each third is compared,
// since a leak lifts that too, and what is in flight for a moment does not; and that of one
// process, because one to four pipelocks run. Thirds of half a minute tell nothing, so there
// only the descriptors count, which are held against those before: see restSlackFDs.
const (
	flatSpan     = 2 * time.Minute
	flatFactor   = 1.5
	flatSlackKiB = 8 << 10
	flightKiB    = 100 // for each descriptor more

	// One that serves, one that comes up, those that drain, and one that is being ended.
	maxProcesses = 3 + maxOldPipelocks
)

// A soakTrend is the least memory that a process of a role used, early and late, and the most
// of all together; and the descriptors of all before anything was used, and after.
type soakTrend struct {
	role                             string
	firstKiB, lastKiB, mostKiB       int
	firstFDs, lastFDs, mostFDs, most int
	flat                             bool
}

// trends compares what was used between 10 and 40 % of the run with its last 30 %.
func (m *soakMeter) trends(from, to time.Time) []soakTrend {
	at := func(part float64) time.Time { return from.Add(time.Duration(part * float64(to.Sub(from)))) }
	var out []soakTrend
	for _, role := range []string{"init", bottle.DaemonEgress, bottle.DaemonPipelock, bottle.DaemonSupervise, "keeper"} {
		var early, late []soakGauge
		t := soakTrend{role: role}
		for _, g := range m.roles[role] {
			if g.at.After(at(0.1)) && g.at.Before(at(0.4)) {
				early = append(early, g)
			}
			if g.at.After(at(0.7)) {
				late = append(late, g)
			}
			t.mostKiB, t.mostFDs, t.most = max(t.mostKiB, g.kib), max(t.mostFDs, g.fds), max(t.most, g.n)
		}
		if len(early) == 0 || len(late) == 0 {
			continue // not ours to read, or hardly ever up
		}
		kib, fds := func(g soakGauge) int { return g.kib / g.n }, func(g soakGauge) int { return g.fds / g.n }
		t.firstKiB, t.lastKiB = leastOf(early, kib), leastOf(late, kib)
		t.firstFDs, t.lastFDs = m.before[role].fds, m.after[role].fds
		flight := float64(flightKiB * max(0, leastOf(late, fds)-leastOf(early, fds)))
		t.flat = m.closed(role) && t.most <= maxProcesses &&
			(to.Sub(from) < flatSpan || float64(t.lastKiB) < flatFactor*float64(t.firstKiB)+flatSlackKiB+flight)
		out = append(out, t)
	}
	return out
}

func leastOf(g []soakGauge, value func(soakGauge) int) int {
	least := value(g[0])
	for _, x := range g {
		least = min(least, value(x))
	}
	return least
}
