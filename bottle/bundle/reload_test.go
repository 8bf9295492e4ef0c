package bundle_test

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"bottle/bottle"
)

func TestReloadGoesToItsDaemonAlone(t *testing.T) {
	for _, tt := range []struct {
		sig             bottle.Signal
		file, daemon, n string
	}{
		{bottle.SignalReload, bottle.RoutesFile, bottle.DaemonEgress, "SIGHUP"},
		{bottle.SignalReloadPipelock, bottle.PipelockFile, bottle.DaemonPipelock, "SIGUSR2"},
	} {
		t.Run(tt.n, func(t *testing.T) {
			b := newBed(t)
			b.start()
			before := b.ready()
			rev := b.write(tt.file, "new: 1\n")
			b.signal(tt.sig)
			eventually(t, "the new revision is in force", func() bool { return b.daemonStatus(tt.daemon).Revision == rev })
			// The same bytes again: the signal still reaches the daemon.
			seen := b.daemonStatus(tt.daemon).Counters[tt.n]
			b.signal(tt.sig)
			eventually(t, "it is signalled again", func() bool { return b.daemonStatus(tt.daemon).Counters[tt.n] > seen })
			after := b.ready()
			for name, d := range before.Daemons {
				if after.Daemons[name].PID != d.PID {
					t.Errorf("%s was restarted", name)
				}
				if n := len(b.daemonStatus(name).Counters); name != tt.daemon && n != 0 {
					t.Errorf("%s was signalled too", name)
				}
			}
		})
	}
}

func TestEarlyReload(t *testing.T) {
	b := newBed(t)
	b.start("BOTTLE_TEST_EARLY=1") // HUP right after Notify, before anything else
	b.ready()
}

// A signal that is forwarded to a daemon which has not installed its handler must
// neither kill it nor be lost.
func TestReloadOfADaemonOnItsWayUp(t *testing.T) {
	b := newBed(t)
	b.behave(bottle.DaemonEgress, "slow")
	b.start()
	st := b.until("egress' process", func(st bottle.InitStatus) bool { return st.Daemons[bottle.DaemonEgress].PID != 0 })
	rev := b.write(bottle.RoutesFile, "routes: [] # 2\n")
	b.signal(bottle.SignalReload)
	eventually(t, "egress handles the early HUP", func() bool {
		d := b.daemonStatus(bottle.DaemonEgress)
		return d.Counters["SIGHUP"] == 1 && d.Revision == rev
	})
	if now := b.ready(); now.Daemons[bottle.DaemonEgress].PID != st.Daemons[bottle.DaemonEgress].PID {
		t.Error("the early HUP killed it")
	}
}

func TestReplacePipelockAlone(t *testing.T) {
	b := newBed(t)
	b.start()
	before := b.ready()
	rev := b.write(bottle.PipelockFile, "mode: strict # 2\n")
	b.signal(bottle.SignalReplacePipelock)
	after := b.until("a new pipelock", func(st bottle.InitStatus) bool {
		return st.Ready && st.Daemons[bottle.DaemonPipelock].PID != before.Daemons[bottle.DaemonPipelock].PID
	})
	if got := b.daemonStatus(bottle.DaemonPipelock).Revision; got != rev {
		t.Errorf("it runs on %s, want %s", got, rev)
	}
	for _, name := range []string{bottle.DaemonEgress, bottle.DaemonSupervise} {
		if after.Daemons[name].PID != before.Daemons[name].PID {
			t.Errorf("%s was restarted too", name)
		}
	}
}

func TestTornFileKeepsTheOld(t *testing.T) {
	for _, tt := range []struct {
		name string
		raw  []byte
		sig  bottle.Signal
		want string
	}{
		{"empty", nil, bottle.SignalReloadPipelock, "not a revision line"},
		{"mixed", []byte("mode: balanced\n# revision: sha256:" + strings.Repeat("0", 64) + "\n"), bottle.SignalReloadPipelock, "but the content is"},
		{"replace", []byte("mode: balanced\n"), bottle.SignalReplacePipelock, "not a revision line"},
		{"huge", make([]byte, 4<<20+1), bottle.SignalReloadPipelock, "over its bound"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t)
			old := b.write(bottle.PipelockFile, "mode: strict # old\n")
			b.start()
			before := b.ready()
			b.writeRaw(bottle.PipelockFile, tt.raw)
			b.signal(tt.sig)
			st := b.until("the refusal", func(st bottle.InitStatus) bool { return st.Files[bottle.PipelockFile].Refused != nil })
			f := st.Files[bottle.PipelockFile]
			if f.Published != old || !strings.Contains(f.Refused.Error, tt.want) {
				t.Errorf("%+v (%s)", f, f.Refused.Error)
			}
			if tt.name == "mixed" && f.Refused.Revision != bottle.Hash("sha256:"+strings.Repeat("0", 64)) {
				t.Errorf("claimed revision %q", f.Refused.Revision)
			}
			live, err := os.ReadFile(b.dir.Live(bottle.PipelockFile))
			if rev, serr := bottle.CheckSeal(live); err != nil || serr != nil || rev != old {
				t.Errorf("published: %s %v %v", rev, err, serr)
			}
			if !st.Ready || st.Daemons[bottle.DaemonPipelock].PID != before.Daemons[bottle.DaemonPipelock].PID {
				t.Error("pipelock was touched")
			}
			rev := b.write(bottle.PipelockFile, "mode: strict # new\n")
			b.signal(tt.sig)
			b.until("the mended file", func(st bottle.InitStatus) bool {
				f := st.Files[bottle.PipelockFile]
				return st.Ready && f.Published == rev && f.Refused == nil
			})
		})
	}
}

func TestNoStartOnAnUnverifiedFile(t *testing.T) {
	b := newBed(t)
	b.start()
	b.ready()
	b.stop()
	// What an earlier init published is no substitute: the host may have narrowed it since.
	b.writeRaw(bottle.RoutesFile, []byte("routes: []\n"))
	b.start()
	st := b.until("the reason", func(st bottle.InitStatus) bool {
		return strings.Contains(st.Error, "egress is not started until routes.yaml is valid")
	})
	if st.Ready || st.Daemons[bottle.DaemonEgress].PID != 0 {
		t.Errorf("egress runs: %+v", st)
	}
	if _, err := os.Stat(b.dir.Live(bottle.RoutesFile)); !os.IsNotExist(err) {
		t.Errorf("the earlier file is still published: %v", err)
	}
	b.until("pipelock runs all the same", func(st bottle.InitStatus) bool { return st.Daemons[bottle.DaemonPipelock].PID != 0 })
	b.write(bottle.RoutesFile, "routes: []\n") // without a signal: it is looked at now and then
	b.ready()
}

func TestRestartEgress(t *testing.T) {
	b := newBed(t)
	b.behave(bottle.DaemonEgress, "stopped") // hung, so that it confirms nothing
	b.start()
	before := b.ready()
	b.behave(bottle.DaemonEgress, "")
	rev := b.write(bottle.RoutesFile, "routes: [] # narrower\n")
	b.signal(bottle.SignalRestartEgress)
	after := b.until("a new egress", func(st bottle.InitStatus) bool {
		return st.Ready && st.Daemons[bottle.DaemonEgress].PID != before.Daemons[bottle.DaemonEgress].PID
	})
	if got := b.daemonStatus(bottle.DaemonEgress).Revision; got != rev {
		t.Errorf("it runs on %s, want %s", got, rev)
	}
	if after.Daemons[bottle.DaemonPipelock].PID != before.Daemons[bottle.DaemonPipelock].PID {
		t.Error("pipelock was restarted too")
	}
}

// The published revision is wider than what the host has written since; coming back on it
// would undo a revocation.
func TestRestartEgressStaysDownOnATornFile(t *testing.T) {
	b := newBed(t)
	b.start()
	before := b.ready()
	b.writeRaw(bottle.RoutesFile, []byte("routes: [] # torn\n"))
	b.signal(bottle.SignalRestartEgress)
	b.until("egress is down, with the reason", func(st bottle.InitStatus) bool {
		return st.Daemons[bottle.DaemonEgress].PID == 0 && strings.Contains(st.Error, "egress is not started until routes.yaml is valid")
	})
	rev := b.write(bottle.RoutesFile, "routes: [] # narrower\n")
	b.signal(bottle.SignalReload)
	b.until("egress is back", func(st bottle.InitStatus) bool {
		return st.Ready && st.Daemons[bottle.DaemonEgress].PID != before.Daemons[bottle.DaemonEgress].PID && st.Files[bottle.RoutesFile].Published == rev
	})
}

// egress may remove files of run/bundle; that must not put pipelock on anything but the
// verified bytes.
func TestPublishedFileIsRestored(t *testing.T) {
	b := newBed(t)
	b.start()
	before := b.ready()
	if err := os.Remove(b.dir.Live(bottle.PipelockFile)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(before.Daemons[bottle.DaemonPipelock].PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	st := b.until("a new pipelock", func(st bottle.InitStatus) bool {
		return st.Ready && st.Daemons[bottle.DaemonPipelock].PID != before.Daemons[bottle.DaemonPipelock].PID
	})
	d := b.daemonStatus(bottle.DaemonPipelock)
	if d.Error != "" || d.Revision != st.Files[bottle.PipelockFile].Published {
		t.Errorf("%+v", d)
	}
	if got := st.Daemons[bottle.DaemonPipelock].LastExit; got != "killed by SIGKILL" {
		t.Errorf("last exit %q", got)
	}
}

func TestSignalsDuringShutdown(t *testing.T) {
	b := newBed(t)
	b.behave(bottle.DaemonEgress, "stuck")
	b.start()
	before := b.ready()
	if err := b.cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	b.until("pipelock is down", func(st bottle.InitStatus) bool { return st.Daemons[bottle.DaemonPipelock].PID == 0 })
	b.signal(bottle.SignalReplacePipelock)
	b.signal(bottle.SignalRestartEgress)
	if code := b.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	var st bottle.InitStatus
	if err := bottle.ReadJSON(b.dir.InitStatus(), 0, &st); err != nil || st.Daemons[bottle.DaemonPipelock].Restarts != before.Daemons[bottle.DaemonPipelock].Restarts {
		t.Errorf("%+v %v", st, err)
	}
}
