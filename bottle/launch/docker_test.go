package launch_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"

	"bottle/bottle"
)

func TestDockerBundle(t *testing.T) {
	t.Parallel()
	d := engine(t)
	if d == nil {
		return
	}
	p := newPot(t, d)
	st := p.up(t)
	ids := p.ids(t)

	t.Run("a reload is confirmed", func(t *testing.T) {
		f := p.files(t, append(p.m.Egress.Routes, bottle.Route{Host: "more.test"})...)
		want, err := bottle.CheckSeal(f.Routes)
		if err != nil {
			t.Fatal(err)
		}
		overwrite(t, p.dir.Routes(), f.Routes)
		began := time.Now()
		if err := p.Signal(t.Context(), bottle.SignalReload); err != nil {
			t.Fatal(err)
		}
		took := time.Since(began)
		eventually(t, func() string {
			var st bottle.DaemonStatus
			if err := bottle.ReadJSON(p.dir.DaemonStatus(bottle.DaemonEgress), 0, &st); err != nil || st.Revision != want {
				return "egress has not the new revision"
			}
			return ""
		})
		t.Logf("the engine took the signal in %v, in force after %v", took, time.Since(began))
	})

	t.Run("pipelock is replaced", func(t *testing.T) {
		if err := p.Signal(t.Context(), bottle.SignalReplacePipelock); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() string {
			now := p.status(t)
			if now.Daemons["pipelock"].PID == st.Daemons["pipelock"].PID || now.Daemons["egress"].PID != st.Daemons["egress"].PID {
				return "the same pipelock"
			}
			return ""
		})
	})

	t.Run("real-time signals arrive by number", func(t *testing.T) {
		for daemon, s := range map[string]bottle.Signal{bottle.DaemonEgress: bottle.SignalRestartEgress, bottle.DaemonPipelock: bottle.SignalRestartPipelock} {
			before := p.status(t).Daemons[daemon].PID
			if err := p.Signal(t.Context(), s); err != nil {
				t.Fatal(err)
			}
			eventually(t, func() string {
				if pid := p.status(t).Daemons[daemon].PID; pid == 0 || pid == before {
					return daemon + " was not restarted"
				}
				return ""
			})
		}
	})

	t.Run("killed from outside, it comes back", func(t *testing.T) {
		if err := d.cli.ContainerKill(t.Context(), ids.Sidecars, "KILL"); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() string {
			if running, err := p.Running(t.Context()); running || err != nil {
				return "it still runs"
			}
			return ""
		})
		if err := p.Signal(t.Context(), bottle.SignalReload); err == nil {
			t.Error("a signal to a dead bundle is no error")
		}
		short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if st, err := p.WaitReady(short); err == nil {
			t.Errorf("ready by what the dead one left: %+v", st)
		}
		began := time.Now()
		if started, err := p.Ensure(t.Context()); err != nil || !started {
			t.Fatalf("%v, %v", started, err)
		}
		if _, err := p.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Logf("ready again after %v", time.Since(began))
		if now := p.ids(t); now.Agent != ids.Agent {
			t.Error("the agent's container was made anew")
		}
		if started, err := p.Ensure(t.Context()); err != nil || started {
			t.Errorf("Ensure of what runs: %v, %v", started, err)
		}
	})

	t.Run("restarted under a running agent", func(t *testing.T) {
		old := p.ids(t)
		if err := p.StopBundle(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Ensure(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := p.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		now := p.ids(t)
		if now.Sidecars == old.Sidecars || now.Agent != old.Agent {
			t.Errorf("from %+v to %+v", old, now)
		}
		c, err := d.cli.ContainerInspect(t.Context(), now.Agent)
		if err != nil || c.State.Status != container.StateRunning || c.RestartCount != 0 {
			t.Errorf("%+v, %v", c.State, err)
		}
	})

	if err := p.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := p.onEngine(t); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	if st, err := os.Stat(p.dir.Path("compose.log")); err != nil || st.Size() == 0 || st.Mode().Perm() != 0o600 {
		t.Errorf("compose.log: %+v, %v", st, err)
	}
	if err := p.Stop(t.Context()); err != nil {
		t.Errorf("a second stop: %v", err)
	}
}

func (p *pot) status(t testing.TB) bottle.InitStatus {
	t.Helper()
	var st bottle.InitStatus
	if err := bottle.ReadJSON(p.dir.InitStatus(), 0, &st); err != nil {
		t.Fatal(err)
	}
	return st
}

// overwrite changes a file in place, as apply does.
func overwrite(t testing.TB, path string, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(int64(len(b))); err != nil {
		t.Fatal(err)
	}
}

// From the first byte written to the word that egress has it in force.
func BenchmarkDockerReload(b *testing.B) {
	d := engine(b)
	if d == nil {
		return
	}
	p := newPot(b, d)
	p.up(b)
	var took []time.Duration
	for i := 0; b.Loop(); i++ {
		f := p.files(b, append(p.m.Egress.Routes, bottle.Route{Host: bottle.Host(fmt.Sprintf("h%d.test", i))})...)
		want, err := bottle.CheckSeal(f.Routes)
		if err != nil {
			b.Fatal(err)
		}
		began := time.Now()
		overwrite(b, p.dir.Routes(), f.Routes)
		if err := p.Signal(b.Context(), bottle.SignalReload); err != nil {
			b.Fatal(err)
		}
		eventually(b, func() string {
			var st bottle.DaemonStatus
			if err := bottle.ReadJSON(p.dir.DaemonStatus(bottle.DaemonEgress), 0, &st); err != nil || st.Revision != want {
				return "egress has not the new revision"
			}
			return ""
		})
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
}
