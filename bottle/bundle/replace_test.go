package bundle_test

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bottle/bottle"
)

// hop is the pipelock that egress is pointed at.
func (b *bed) hop() string {
	var h bottle.Hop
	_ = bottle.ReadJSON(b.dir.HopFile(), 0, &h)
	return h.Pipelock
}

// reach talks to the pipelock in use as egress does: if it is turned away before an answer,
// it looks again who is in use, for 2 s.
func (b *bed) reach(text string) (*talk, int, error) {
	var last error
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); <-tick.C {
		c, err := dial("tcp", b.hop())
		if err != nil {
			last = err
			continue
		}
		pid, err := c.say(text)
		if err == nil {
			return c, pid, nil
		}
		_ = c.Close()
		last = err
	}
	return nil, 0, last
}

func (b *bed) mustReach(text string) (*talk, int) {
	b.t.Helper()
	c, pid, err := b.reach(text)
	if err != nil {
		b.t.Fatalf("pipelock can't be reached: %v", err)
	}
	b.t.Cleanup(func() { _ = c.Close() })
	return c, pid
}

func (b *bed) pipelock() bottle.ChildStatus {
	var st bottle.InitStatus
	_ = bottle.ReadJSON(b.dir.InitStatus(), 0, &st)
	return st.Daemons[bottle.DaemonPipelock]
}

// replaced waits for a pipelock other than pid, on the revision.
func (b *bed) replaced(pid int, rev bottle.Hash) int {
	b.t.Helper()
	var now int
	eventually(b.t, "another pipelock serves "+rev.Short(), func() bool {
		now = b.pipelock().PID
		d := b.daemonStatus(bottle.DaemonPipelock)
		return now != 0 && now != pid && d.PID == now && d.Revision == rev
	})
	return now
}

func TestReplacementDrainsTheOld(t *testing.T) {
	b := newBed(t)
	b.start()
	before := b.ready()
	held, old := b.mustReach("before")
	first := b.hop()
	rev := b.write(bottle.PipelockFile, "mode: strict # 2\n")
	b.signal(bottle.SignalReplacePipelock)
	pid := b.replaced(old, rev)
	if b.hop() == first || b.daemonStatus(bottle.DaemonEgress).Hop != b.hop() {
		t.Errorf("egress uses %s, and is told to use %s; the first was %s", b.daemonStatus(bottle.DaemonEgress).Hop, b.hop(), first)
	}
	if _, got := b.mustReach("after"); got != pid {
		t.Errorf("process %d answers, want %d", got, pid)
	}
	// One who had looked up the address a moment before the switch is served too.
	late, err := dial("tcp", first)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := late.say("late"); err != nil || got != old {
		t.Errorf("a straggler: %d %v", got, err)
	}
	_ = late.Close()
	if got, err := held.say("still there"); err != nil || got != old {
		t.Errorf("the held connection: %d %v", got, err)
	}
	eventually(t, "the old one takes the new file", func() bool { return strings.Contains(b.output(), "took over") && b.pipelock().Draining == 1 })
	if runs, _ := alive(old); !runs {
		t.Error("the old one is gone while somebody is connected to it")
	}
	_ = held.Close()
	eventually(t, "the old one ends", func() bool { _, gone := alive(old); return gone && b.pipelock().Draining == 0 })
	after := b.ready()
	for _, name := range []string{bottle.DaemonEgress, bottle.DaemonSupervise} {
		if after.Daemons[name].PID != before.Daemons[name].PID {
			t.Errorf("%s was restarted too", name)
		}
	}
}

// What can't start leaves the old one serving, and its words reach the host.
func TestFailedReplacement(t *testing.T) {
	for _, tt := range []struct{ how, want string }{
		{"badport", `a new one did not come up: exit code 7: listen tcp 127.0.0.1:1: \u001b[31mpermission denied`},
		{"mute", "a new one was not healthy in time"},
	} {
		t.Run(tt.how, func(t *testing.T) {
			b := newBed(t)
			b.start()
			b.ready()
			held, old := b.mustReach("before")
			hop := b.hop()
			b.behave(bottle.DaemonPipelock, tt.how)
			rev := b.write(bottle.PipelockFile, "mode: strict # bad\n")
			b.signal(bottle.SignalReplacePipelock)
			eventually(t, "the refusal", func() bool {
				r := b.daemonStatus(bottle.DaemonPipelock).Refused
				return r != nil && r.Revision == rev && strings.Contains(r.Error, tt.want)
			})
			if got := b.pipelock(); got.PID != old || b.hop() != hop {
				t.Errorf("pipelock is %d at %s, want %d at %s", got.PID, b.hop(), old, hop)
			}
			if got, err := held.say("still there"); err != nil || got != old {
				t.Errorf("the held connection: %d %v", got, err)
			}
			if st := b.ready(); !st.Ready {
				t.Error("not ready")
			}
			b.behave(bottle.DaemonPipelock, "")
			rev = b.write(bottle.PipelockFile, "mode: strict # good\n")
			b.signal(bottle.SignalReplacePipelock)
			b.replaced(old, rev)
			if r := b.daemonStatus(bottle.DaemonPipelock).Refused; r != nil {
				t.Errorf("still refused: %+v", r)
			}
		})
	}
}

// The one that serves dies while its successor comes up: that one takes over, or, if it fails
// too, the old one is started again.
func TestCrashInTheMiddleOfAReplacement(t *testing.T) {
	for _, how := range []string{"slow", "slowbad"} {
		t.Run(how, func(t *testing.T) {
			b := newBed(t)
			b.start()
			b.ready()
			_, old := b.mustReach("before")
			b.behave(bottle.DaemonPipelock, how)
			rev := b.write(bottle.PipelockFile, "mode: strict # 2\n")
			b.signal(bottle.SignalReplacePipelock)
			eventually(t, "a new one comes up", func() bool { return strings.Count(b.output(), "msg=\"daemon started\" daemon=pipelock") == 2 })
			if err := unix.Kill(old, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if how == "slowbad" {
				eventually(t, "the new one fails", func() bool { return strings.Contains(b.output(), "a new pipelock did not come up") })
				b.behave(bottle.DaemonPipelock, "")
			}
			// Who comes now waits for whichever it will be.
			if _, pid := b.mustReach("in between"); pid == old {
				t.Errorf("process %d answers, which was killed", pid)
			}
			b.replaced(old, rev)
			b.ready()
		})
	}
}

func TestTwoReplacementsInARow(t *testing.T) {
	b := newBed(t)
	b.behave(bottle.DaemonPipelock, "slow")
	b.start()
	old := b.ready().Daemons[bottle.DaemonPipelock].PID
	b.write(bottle.PipelockFile, "mode: strict # 2\n")
	b.signal(bottle.SignalReplacePipelock)
	eventually(t, "a new one comes up", func() bool { return strings.Count(b.output(), "msg=\"daemon started\" daemon=pipelock") == 2 })
	rev := b.write(bottle.PipelockFile, "mode: strict # 3\n")
	b.signal(bottle.SignalReplacePipelock)
	b.replaced(old, rev)
	b.signal(bottle.SignalReplacePipelock) // the same file again: a new process all the same
	b.replaced(b.pipelock().PID, rev)
	eventually(t, "one is left", func() bool { return b.pipelock().Draining == 0 && len(children(b.cmd.Process.Pid)) == 3 })
}

// At most three drain; the oldest makes room.
func TestAtMostThreeDrain(t *testing.T) {
	b := newBed(t)
	b.start()
	b.ready()
	var held []*talk
	pid := 0
	for n := range 5 {
		var c *talk
		c, pid = b.mustReach("hold")
		held = append(held, c)
		rev := b.write(bottle.PipelockFile, fmt.Sprintf("mode: strict # %d\n", n))
		b.signal(bottle.SignalReplacePipelock)
		b.replaced(pid, rev)
		if d := b.pipelock().Draining; d > 3 {
			t.Fatalf("%d drain", d)
		}
	}
	for n, c := range held {
		if n < 2 { // TERM has its grace
			eventually(t, "the oldest are cut", func() bool { _, err := c.say("there?"); return err != nil })
		} else if _, err := c.say("there?"); err != nil {
			t.Errorf("connection %d: %v", n, err)
		}
	}
}

// New connections find a pipelock at every moment of a storm of replacements.
func TestReplacementsLoseNoConnection(t *testing.T) {
	b := newBed(t)
	b.start()
	b.ready()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				c, _, err := b.reach(fmt.Sprint("n", n))
				if err != nil {
					t.Errorf("connection %d: %v", n, err)
					return
				}
				_ = c.Close()
			}
		})
	}
	var rev bottle.Hash
	for n := range 20 {
		rev = b.write(bottle.PipelockFile, fmt.Sprintf("mode: strict # %d\n", n))
		for range 3 {
			b.signal(bottle.SignalReplacePipelock)
		}
		pid := b.pipelock().PID
		eventually(t, "in force", func() bool { return b.daemonStatus(bottle.DaemonPipelock).Revision == rev || b.pipelock().PID != pid })
	}
	eventually(t, "the last one is in force", func() bool { return b.daemonStatus(bottle.DaemonPipelock).Revision == rev })
	close(stop)
	wg.Wait()
	eventually(t, "one is left", func() bool { return b.pipelock().Draining == 0 && len(children(b.cmd.Process.Pid)) == 3 })
}

// An egress that does not turn to the new one keeps the old one in use.
func TestReplacementWithAHungEgress(t *testing.T) {
	b := newBed(t)
	b.start()
	st := b.ready()
	egress, old := st.Daemons[bottle.DaemonEgress].PID, st.Daemons[bottle.DaemonPipelock].PID
	if err := unix.Kill(egress, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	rev := b.write(bottle.PipelockFile, "mode: strict # 2\n")
	b.signal(bottle.SignalReplacePipelock)
	eventually(t, "the refusal", func() bool {
		r := b.daemonStatus(bottle.DaemonPipelock).Refused
		return r != nil && r.Revision == rev && strings.Contains(r.Error, "egress did not turn to the new one in time")
	})
	if now := b.pipelock().PID; now != old {
		t.Errorf("pipelock is %d, want %d", now, old)
	}
	if err := unix.Kill(egress, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "egress is on the one that serves", func() bool {
		d := b.daemonStatus(bottle.DaemonPipelock)
		return d.PID == old && b.daemonStatus(bottle.DaemonEgress).Hop == b.hop()
	})
	b.signal(bottle.SignalReplacePipelock)
	b.replaced(old, rev)
}

func TestReplacementWithoutEgress(t *testing.T) {
	b := newBed(t)
	b.start()
	st := b.ready()
	b.behave(bottle.DaemonEgress, "slow")
	if err := unix.Kill(st.Daemons[bottle.DaemonEgress].PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	rev := b.write(bottle.PipelockFile, "mode: strict # 2\n")
	b.signal(bottle.SignalReplacePipelock)
	b.replaced(st.Daemons[bottle.DaemonPipelock].PID, rev)
	b.ready()
	eventually(t, "egress reads whom to use at its start", func() bool { return b.daemonStatus(bottle.DaemonEgress).Hop == b.hop() })
}

func TestTermInTheMiddleOfAReplacement(t *testing.T) {
	b := newBed(t)
	b.start()
	b.ready()
	b.mustReach("hold")
	b.signal(bottle.SignalReplacePipelock)
	eventually(t, "one drains", func() bool { return b.pipelock().Draining == 1 })
	b.behave(bottle.DaemonPipelock, "mute")
	b.signal(bottle.SignalReplacePipelock)
	eventually(t, "another comes up", func() bool { return strings.Count(b.output(), "msg=\"daemon started\" daemon=pipelock") == 3 })
	all := children(b.cmd.Process.Pid)
	if code, took := b.stop(); code != 0 || took > 2*time.Second {
		t.Errorf("code %d in %v", code, took)
	}
	for _, pid := range all {
		if runs, _ := alive(pid); runs {
			t.Errorf("process %d outlives init", pid)
		}
	}
}

// A kill for a narrowing that was not confirmed reaches those that drain, and the egress that they have passed connections to.
func TestRestartPipelock(t *testing.T) {
	b := newBed(t)
	b.start()
	egress := b.ready().Daemons[bottle.DaemonEgress].PID
	held, old := b.mustReach("hold")
	b.signal(bottle.SignalReplacePipelock)
	eventually(t, "one drains", func() bool { return b.pipelock().Draining == 1 })
	pid := b.pipelock().PID
	rev := b.write(bottle.PipelockFile, "mode: strict # narrower\n")
	b.signal(bottle.SignalRestartPipelock)
	b.replaced(pid, rev)
	if _, err := held.say("there?"); err == nil {
		t.Error("a connection by the draining one lives on")
	}
	if runs, _ := alive(old); runs {
		t.Error("the draining one lives on")
	}
	if runs, _ := alive(egress); runs {
		t.Error("the egress that has what they passed lives on")
	}
	b.ready()
}

func children(pid int) (pids []int) {
	threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, th := range threads {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, th.Name()))
		for _, f := range strings.Fields(string(b)) {
			var n int
			if _, err := fmt.Sscan(f, &n); err == nil {
				pids = append(pids, n)
			}
		}
	}
	return pids
}

// The loop rests when nothing is due: a deadline that was left behind would have it turn for ever.
func TestInitRestsAfterAReplacement(t *testing.T) {
	b := newBed(t)
	b.start()
	pid := b.ready().Daemons[bottle.DaemonPipelock].PID
	rev := b.write(bottle.PipelockFile, "mode: strict # 2\n")
	b.signal(bottle.SignalReplacePipelock)
	b.replaced(pid, rev)
	eventually(t, "the old one ends", func() bool { return b.pipelock().Draining == 0 })
	before := cpuTicks(t, b.cmd.Process.Pid)
	<-time.After(time.Second)
	if used := cpuTicks(t, b.cmd.Process.Pid) - before; used > 30 { // of a hundred
		t.Errorf("init used %d ms of a second with nothing to do", 10*used)
	}
}

func cpuTicks(t *testing.T, pid int) int {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	var user, sys int
	if f := strings.Fields(rest); len(f) > 12 {
		_, _ = fmt.Sscan(f[11], &user)
		_, _ = fmt.Sscan(f[12], &sys)
	}
	return user + sys
}
