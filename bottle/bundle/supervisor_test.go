package bundle_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bottle/bottle"
)

func TestReady(t *testing.T) {
	b := newBed(t)
	rev := b.write(bottle.RoutesFile, "routes: [] # one\n")
	b.start()
	st := b.ready()
	if len(st.Daemons) != 3 {
		t.Fatalf("daemons: %v", st.Daemons)
	}
	for name, d := range st.Daemons {
		if got := b.daemonStatus(name); got.PID != d.PID || got.Error != "" {
			t.Errorf("%s: init says pid %d, the daemon %d (%s)", name, d.PID, got.PID, got.Error)
		}
	}
	var want unix.Stat_t
	if err := unix.Stat(b.dir.Routes(), &want); err != nil {
		t.Fatal(err)
	}
	f := st.Files[bottle.RoutesFile]
	if f.Ino != want.Ino || f.Dev != want.Dev || f.Published != rev || f.Refused != nil {
		t.Errorf("routes.yaml: %+v, want inode %d of %d at %s", f, want.Ino, want.Dev, rev)
	}
	if code, took := b.stop(); code != 0 || took > 2*time.Second {
		t.Errorf("TERM: code %d in %v", code, took)
	}
	var last bottle.InitStatus
	if err := bottle.ReadJSON(b.dir.InitStatus(), 0, &last); err != nil || last.Ready {
		t.Errorf("after the end: %+v %v", last, err)
	}
}

func TestUnreadyDaemonIsReported(t *testing.T) {
	b := newBed(t)
	b.behave(bottle.DaemonSupervise, "mute")
	b.start()
	b.until("the others serve", func(st bottle.InitStatus) bool {
		return st.Daemons[bottle.DaemonSupervise].PID != 0 && b.daemonStatus(bottle.DaemonEgress).PID == st.Daemons[bottle.DaemonEgress].PID
	})
	if b.until("status", func(bottle.InitStatus) bool { return true }).Ready {
		t.Error("ready, though supervise does not serve")
	}
}

func TestOrphansAreReaped(t *testing.T) {
	b := newBed(t)
	b.behave(bottle.DaemonSupervise, "orphan")
	b.start()
	b.ready()
	pid := b.orphan()
	eventually(t, "the orphan is reaped, not a zombie", func() bool { _, gone := alive(pid); return gone })
}

func (b *bed) orphan() (pid int) {
	b.t.Helper()
	eventually(b.t, "orphan's pid", func() bool {
		out, _ := os.ReadFile(b.dir.Path("orphan"))
		pid, _ = strconv.Atoi(strings.TrimSpace(string(out)))
		return pid > 0
	})
	return pid
}

func TestNothingIsLeftBehind(t *testing.T) {
	b := newBed(t)
	b.behave(bottle.DaemonSupervise, "escape")
	b.start()
	b.ready()
	pid := b.orphan()
	if code, took := b.stop(); code != 0 || took > 2*time.Second {
		t.Errorf("TERM: code %d in %v", code, took)
	}
	if runs, _ := alive(pid); runs {
		_ = unix.Kill(pid, unix.SIGKILL)
		t.Error("a process that left its session outlives the bundle")
	}
}

func TestCrashIsRestartedWithBackoff(t *testing.T) {
	b := newBed(t)
	b.behave(bottle.DaemonSupervise, "crash")
	b.start()
	first := b.until("first start", func(st bottle.InitStatus) bool { return st.Daemons[bottle.DaemonSupervise].PID != 0 })
	// More crashes than an unproven daemon is allowed: it has served, so the bundle stays.
	st := b.until("six restarts", func(st bottle.InitStatus) bool { return st.Daemons[bottle.DaemonSupervise].Restarts >= 6 })
	if got := st.Daemons[bottle.DaemonSupervise].LastExit; got != "exit code 3" {
		t.Errorf("last exit %q", got)
	}
	// 50 + (50..100) + (100..200) + (200..400) + (400..800) + (800..1600) ms at the least.
	if took := time.Since(first.Daemons[bottle.DaemonSupervise].StartedAt); took < 1600*time.Millisecond {
		t.Errorf("six restarts in %v: no backoff", took)
	}
	if st.Daemons[bottle.DaemonEgress].PID != first.Daemons[bottle.DaemonEgress].PID && first.Daemons[bottle.DaemonEgress].PID != 0 {
		t.Error("a crash of supervise restarted egress")
	}
	b.behave(bottle.DaemonSupervise, "")
	b.ready()
}

func TestStuckDaemonsAreKilledInTime(t *testing.T) {
	for _, how := range []string{"stuck", "stopped"} {
		t.Run(how, func(t *testing.T) {
			b := newBed(t)
			b.behave(bottle.DaemonEgress, how)
			b.start()
			st := b.ready()
			code, took := b.stop()
			if code != 0 || took > 2*time.Second {
				t.Errorf("code %d in %v", code, took)
			}
			for name, d := range st.Daemons {
				if runs, _ := alive(d.PID); runs {
					t.Errorf("%s outlives init", name)
				}
			}
		})
	}
}

func TestDaemonsDieWithInit(t *testing.T) {
	b := newBed(t)
	b.start()
	st := b.ready()
	b.signal(bottle.Signal(unix.SIGKILL))
	b.wait()
	for name, d := range st.Daemons {
		eventually(t, name+" dies with init", func() bool { runs, _ := alive(d.PID); return !runs })
	}
	b.start() // nothing of the dead one is in the way
	b.ready()
}

func TestDaemonThatNeverComesUp(t *testing.T) {
	b := newBed(t)
	b.behave(bottle.DaemonEgress, "badport")
	b.start()
	if code := b.wait(); code != 7 {
		t.Errorf("exit code %d, want the daemon's 7", code)
	}
	want := `daemon egress does not come up (5 tries): exit code 7: listen tcp 127.0.0.1:1: \u001b[31mpermission denied`
	if out := b.output(); !strings.Contains(out, want) {
		t.Errorf("no line %q", want)
	}
	var st bottle.InitStatus
	if err := bottle.ReadJSON(b.dir.InitStatus(), 0, &st); err != nil || st.Ready || st.Error != want {
		t.Errorf("status: %+v %v", st, err)
	}
}

func TestSecondInitIsRefused(t *testing.T) {
	b := newBed(t)
	b.start()
	st := b.ready()
	second := &bed{t: t, dir: b.dir}
	second.start()
	if code := second.wait(); code != 1 {
		t.Errorf("exit code %d", code)
	}
	if !strings.Contains(b.output(), "another init runs on") {
		t.Error("it does not say why")
	}
	if now := b.ready(); now.Daemons[bottle.DaemonEgress].PID != st.Daemons[bottle.DaemonEgress].PID {
		t.Error("the first one was disturbed")
	}
}

func TestEnvironmentIsPicked(t *testing.T) {
	b := newBed(t)
	b.config(bottle.BundleConfig{
		Egress:      "127.0.0.1:0",
		Credentials: map[string]bottle.Credential{"x": {Header: "Authorization", TokenEnv: "BOTTLE_X"}},
	})
	b.start("EXAMPLE_TOKEN=s3cret1", "BOTTLE_X=s3cret2", "BOTTLE_LOG_LEVEL=debug")
	b.ready()
	out := b.output()
	if strings.Contains(out, "s3cret") {
		t.Error("a token reached a daemon")
	}
	if !strings.Contains(out, "BOTTLE_LOG_LEVEL=debug") || !strings.Contains(out, "PATH=") {
		t.Error("what should have passed did not")
	}
}

func TestDaemonsArePicked(t *testing.T) {
	for _, tt := range []struct {
		env  string
		want []string
		code int
	}{
		{env: "egress", want: []string{bottle.DaemonEgress, bottle.DaemonPipelock}},
		{env: "supervise", want: []string{bottle.DaemonSupervise}},
		{env: "egres", code: 1},
	} {
		t.Run(tt.env, func(t *testing.T) {
			b := newBed(t)
			b.start("BOTTLE_SIDECAR_DAEMONS=" + tt.env)
			if tt.code != 0 {
				if code := b.wait(); code != tt.code || !strings.Contains(b.output(), `no daemon "egres"; known are`) {
					t.Errorf("exit code %d", code)
				}
				return
			}
			st := b.ready()
			if len(st.Daemons) != len(tt.want) {
				t.Errorf("runs %v, want %v", st.Daemons, tt.want)
			}
			for _, n := range tt.want {
				if st.Daemons[n].PID == 0 {
					t.Errorf("%s does not run", n)
				}
			}
		})
	}
}

func TestOutputIsBoundedAndEscaped(t *testing.T) {
	b := newBed(t)
	b.behave(bottle.DaemonEgress, "noisy")
	b.start()
	b.ready()
	eventually(t, "the line after the long one", func() bool { return strings.Contains(b.output(), "egress | after the long line\n") })
	for line := range strings.Lines(b.output()) {
		if len(line) > 9<<10 {
			t.Errorf("a line of %d bytes", len(line))
		}
	}
}

func TestBadStartConfig(t *testing.T) {
	for _, tt := range []struct {
		name string
		c    bottle.BundleConfig
		want string
	}{
		{"binary", bottle.BundleConfig{Egress: "127.0.0.1:0", Binary: "pipelock"}, `binary "pipelock": not an absolute path`},
		{"port", bottle.BundleConfig{Egress: "127.0.0.1:70000"}, `egress "127.0.0.1:70000": port "70000" is not a number up to 65535`},
		{"address", bottle.BundleConfig{Egress: "127.0.0.1:0", Pipelock: []string{"x"}}, `pipelock: "x" is not a loopback address (IPv4) and a port`},
		{"not loopback", bottle.BundleConfig{Egress: "127.0.0.1:0", Pipelock: []string{"0.0.0.0:0"}}, "is not a loopback address"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t)
			b.config(tt.c)
			b.start()
			if code := b.wait(); code != 1 {
				t.Errorf("exit code %d", code)
			}
			if !strings.Contains(b.output(), tt.want) {
				t.Errorf("no %q in %s", tt.want, b.output())
			}
		})
	}
}

func TestSignalStorm(t *testing.T) {
	b := newBed(t)
	b.start()
	b.ready()
	kinds := []bottle.Signal{bottle.SignalReload, bottle.SignalReloadPipelock, bottle.SignalReplacePipelock, bottle.SignalRestartEgress}
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 500 {
		if i%10 == 0 {
			b.write(bottle.RoutesFile, fmt.Sprintf("routes: [] # %d\n", i))
			b.write(bottle.PipelockFile, fmt.Sprintf("mode: strict # %d\n", i))
		}
		b.signal(kinds[rng.IntN(len(kinds))])
	}
	routes := b.write(bottle.RoutesFile, "routes: [] # last\n")
	pipelock := b.write(bottle.PipelockFile, "mode: strict # last\n")
	b.signal(bottle.SignalReload)
	b.signal(bottle.SignalReloadPipelock)
	b.until("the last revisions are in force", func(st bottle.InitStatus) bool {
		e, p := b.daemonStatus(bottle.DaemonEgress), b.daemonStatus(bottle.DaemonPipelock)
		if e.Error != "" || p.Error != "" {
			t.Fatalf("a daemon saw an unverified file: %q %q", e.Error, p.Error)
		}
		return st.Ready && st.Files[bottle.RoutesFile].Published == routes && st.Files[bottle.PipelockFile].Published == pipelock &&
			e.Revision == routes && p.Revision == pipelock
	})
}

// What a daemon says is the agent's to provoke: a flood is cut, told of, and hides neither
// the reason for the daemon's end nor what the others say.
func TestFloodIsCut(t *testing.T) {
	b := newBed(t)
	b.behave(bottle.DaemonEgress, "flood")
	b.start()
	if code := b.wait(); code != 9 {
		t.Errorf("exit code %d, want egress' 9", code)
	}
	out := b.output()
	if n := strings.Count(out, "egress | flood"); n > 5*3000 { // five tries of 50,000 lines
		t.Errorf("%d lines of the flood", n)
	}
	if !strings.Contains(out, "lines dropped: more than") || !strings.Contains(out, "5 tries): exit code 9: why it ends") {
		t.Errorf("no note, or no reason: %.2000s", out[max(0, len(out)-2000):])
	}
}
