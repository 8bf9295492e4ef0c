package main_test

import (
	"fmt"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"bottle/bottle"
)

// shownFaults is how many faults of a sort are told; the others are counted.
const shownFaults = 3

// A soakTable has a column for the bottle and one for what it is compared with.
type soakTable struct{ w *tabwriter.Writer }

func (t soakTable) row(name string, bottle, plain any) {
	fmt.Fprintf(t.w, "%s\t%v\t%v\n", name, bottle, plain)
}

func (t soakTable) head(name string) { t.row(name, "", "") }

const none = "-"

func ms(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
}

// report prints the table, and fails the test for each thing that must not be.
func (s *soak) report(t *testing.T, plain *soakPlain) {
	t.Helper()
	v, pv := s.book.settle(), plain.book.settle()
	trends := s.meter.trends(s.from, s.to)
	for _, tr := range trends {
		if !tr.flat {
			v.faults = append(v.faults, soakFault{s.to, "", fmt.Sprintf("%s grows: from %d KiB and %d descriptors to %d KiB and %d, in up to %d processes", tr.role, tr.firstKiB, tr.firstFDs, tr.lastKiB, tr.lastFDs, tr.most)})
		}
	}
	if s.plan.span >= 10*time.Minute && !soakRace && s.operator.done < 1000 {
		v.faults = append(v.faults, soakFault{s.to, "", fmt.Sprintf("%d applies came to be in force; the soak is for over 1,000", s.operator.done)})
	}
	var out strings.Builder
	tab := soakTable{tabwriter.NewWriter(&out, 0, 0, 3, ' ', 0)}
	tab.row("", "bottle", "SIGTERM and start again")
	s.runRows(tab, plain)
	s.lossRows(tab, v, plain, pv)
	s.applyRows(tab, v)
	for _, tr := range trends {
		tab.row(tr.role+": memory of one early, late, most of all", fmt.Sprintf("%.1f, %.1f, %.1f MiB", mib(tr.firstKiB), mib(tr.lastKiB), mib(tr.mostKiB)), none)
		tab.row(tr.role+": descriptors before, after, most", fmt.Sprintf("%d, %d, %d (%d processes at most)", tr.firstFDs, tr.lastFDs, tr.mostFDs, tr.most), none)
	}
	if len(trends) == 0 {
		tab.row("memory", "can't be read by this user", none)
	}
	_ = tab.w.Flush()
	t.Logf("the soak\n%s", out.String())
	told := map[string]int{}
	for _, f := range v.faults {
		if told[f.of]++; told[f.of] <= shownFaults {
			t.Errorf("%s, after %.3f s: %s (%s)", f.at.UTC().Format("15:04:05.000"), f.at.Sub(s.book.start).Seconds(), strings.Join(strings.Fields(f.text), " "), s.book.near(f.at))
		}
	}
	if n := len(v.faults); n > 0 {
		t.Errorf("%d things went wrong; at most %d of a sort are told", n, shownFaults)
	}
}

func mib(kib int) float64 { return float64(kib) / 1024 }

func (s *soak) runRows(tab soakTable, plain *soakPlain) {
	pace := fmt.Sprintf("%d a second", s.plan.perSecond)
	if soakRace {
		pace += " (reduced from 200: race detector)"
	}
	tab.row("run", s.to.Sub(s.from).Round(time.Second), fmt.Sprintf("%d rounds", plain.rounds))
	tab.row("applies in force", s.operator.done, none)
	kills := map[string]int{}
	for _, k := range s.book.kills {
		kills[k.daemon]++
	}
	tab.row("kill -9 of egress, pipelock, supervise", fmt.Sprintf("%d, %d, %d", kills[bottle.DaemonEgress], kills[bottle.DaemonPipelock], kills[bottle.DaemonSupervise]), none)
	tab.row("longest until back and ready, served again", ms(s.book.most["back after a kill"]), ms(centile(plain.away, 100)))
	tab.row("new connections", pace, pace)
	tab.row("new connections, made", s.book.counts[kindConn], plain.book.counts[kindConn])
}

func (s *soak) lossRows(tab soakTable, v soakVerdict, plain *soakPlain, pv soakVerdict) {
	tab.row("  refused", v.lostOtherwise(kindConn, classRefused), pv.lostOtherwise(kindConn, classRefused))
	for _, class := range []string{classReset, classEOF, classTimeout, classStatus, classOther} {
		tab.row("  "+class, v.lostOtherwise(kindConn, class), pv.lostOtherwise(kindConn, class))
	}
	tab.row("  lost in each round", none, fmt.Sprintf("%.1f", float64(pv.lostOtherwise(kindConn, ""))/float64(plain.rounds)))
	tab.row("  under way through a killed daemon", v.byKill[kindConn], none)
	took, plainTook := s.load.took(), plain.load.took()
	three := func(d []time.Duration) string {
		return fmt.Sprintf("%s, %s, %s", ms(centile(d, 50)), ms(centile(d, 99)), ms(centile(d, 100)))
	}
	tab.row("  to the first byte: p50, p99, slowest", three(took), three(plainTook))
	slowest, n := s.load.during(s.book.replaced)
	tab.row("  slowest during a replacement", fmt.Sprintf("%s (of %d)", ms(slowest), n), none)
	for _, k := range []struct{ kind, held string }{
		{kindTunnel, fmt.Sprint(s.plan.tunnels)}, {kindStream, "1"}, {kindUpload, "1"}, {kindMCP, fmt.Sprintf("%d, each with a call waiting", s.plan.agents)},
	} {
		plainHeld, plainOpened, plainCut := none, any(none), any(none)
		if k.kind == kindTunnel {
			plainHeld, plainOpened, plainCut = k.held, plain.book.counts[k.kind], pv.lostOtherwise(k.kind, "")
		}
		tab.row(k.kind+"s, held", k.held, plainHeld)
		tab.row("  opened", s.book.counts[k.kind], plainOpened)
		if k.kind == kindMCP {
			tab.row("  refused", v.lostOtherwise(k.kind, classRefused), none)
		}
		tab.row("  cut by an apply, or without a cause", v.lostOtherwise(k.kind, "")-v.lostOtherwise(k.kind, classRefused), plainCut)
		tab.row("  cut by a kill", v.byKill[k.kind], none)
	}
	tab.row("held ones, renewed by their clients", s.book.counts["renewed"], none)
	tab.row("  not reopened at once", v.lostOtherwise(kindAgain, ""), pv.lostOtherwise(kindAgain, ""))
	tab.row("  not reopened at a kill", v.byKill[kindAgain], none)
}

func (s *soak) applyRows(tab soakTable, v soakVerdict) {
	tab.row("decisions accounted for", s.book.counts["decisions accounted for"], none)
	tab.row("applies that failed: at a kill, otherwise", fmt.Sprintf("%d, %d", v.byKill[kindApply], v.lostOtherwise(kindApply, "")), none)
	tab.row("hosts probed after their revocation", s.book.counts["probed after a revocation"], none)
	tab.row("  latest reached", ms(s.book.most["reached after a revocation"]), none)
	tab.row("  their streams, latest cut", fmt.Sprintf("%s (of %d)", ms(s.book.most["stream cut after a revocation"]), s.book.counts["streams cut by a revocation"]), none)
	tab.head("decision to in force: p50, p99 (applies)")
	for _, kind := range []string{applyRoutes, applyBoth, applyReplace} {
		d := s.operator.took[kind]
		tab.row("  "+kind, fmt.Sprintf("%s, %s (%d)", ms(centile(d, 50)), ms(centile(d, 99)), len(d)), none)
	}
}
