package main_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
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
}

func (m *soakMeter) run(ctx context.Context, every time.Duration) {
	m.roles = map[string][]soakGauge{}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		m.sample()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// sample leaves out a role of which a process ends meanwhile: half a sum is none.
func (m *soakMeter) sample() {
	meta, err := m.bottle.dir.LoadMetadata()
	if err != nil {
		return
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
			m.roles[role] = append(m.roles[role], g)
		}
	}
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

// What a process of a role may use more in the last fifth of the run than in the fifth after
// warming up: half as much again, since Go's collector lets a heap double between two
// collections, and a slack for what is in flight when the machine is busy. In ten minutes a
// leak of 10 KiB or a descriptor at each apply, or of anything at each connection, is more.
// Medians, because a single sample may fall on a collection or a kill; and of one process,
// because one to four pipelocks run, which is bounded by maxProcesses.
const (
	flatFactor   = 1.5
	flatSlackKiB = 8 << 10
	flatSlackFDs = 512

	// One that serves, one that comes up, those that drain, and one that is being ended.
	maxProcesses = 3 + maxOldPipelocks
)

// A soakTrend is a role's medians of a process, early and late, and the most of all together.
type soakTrend struct {
	role                             string
	firstKiB, lastKiB, mostKiB       int
	firstFDs, lastFDs, mostFDs, most int
	flat                             bool
}

// trends compares what was used between 10 and 30 % of the run with its last fifth.
func (m *soakMeter) trends(from, to time.Time) []soakTrend {
	at := func(part float64) time.Time { return from.Add(time.Duration(part * float64(to.Sub(from)))) }
	var out []soakTrend
	for _, role := range []string{"init", bottle.DaemonEgress, bottle.DaemonPipelock, bottle.DaemonSupervise, "keeper"} {
		var early, late []soakGauge
		t := soakTrend{role: role}
		for _, g := range m.roles[role] {
			if g.at.After(at(0.1)) && g.at.Before(at(0.3)) {
				early = append(early, g)
			}
			if g.at.After(at(0.8)) {
				late = append(late, g)
			}
			t.mostKiB, t.mostFDs, t.most = max(t.mostKiB, g.kib), max(t.mostFDs, g.fds), max(t.most, g.n)
		}
		if len(early) == 0 || len(late) == 0 {
			continue // not ours to read, or hardly ever up
		}
		kib, fds := func(g soakGauge) int { return g.kib / g.n }, func(g soakGauge) int { return g.fds / g.n }
		t.firstKiB, t.lastKiB = medianOf(early, kib), medianOf(late, kib)
		t.firstFDs, t.lastFDs = medianOf(early, fds), medianOf(late, fds)
		t.flat = float64(t.lastKiB) < flatFactor*float64(t.firstKiB)+flatSlackKiB && float64(t.lastFDs) < flatFactor*float64(t.firstFDs)+flatSlackFDs && t.most <= maxProcesses
		out = append(out, t)
	}
	return out
}

func medianOf(g []soakGauge, value func(soakGauge) int) int {
	v := make([]int, 0, len(g))
	for _, x := range g {
		v = append(v, value(x))
	}
	slices.Sort(v)
	return v[len(v)/2]
}
