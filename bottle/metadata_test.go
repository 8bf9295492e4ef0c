package bottle_test

import (
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"bottle/bottle"
)

func TestMetadata(t *testing.T) {
	d := newDir(t)
	if _, err := d.LoadMetadata(); !errors.Is(err, bottle.ErrNotFound) {
		t.Errorf("before the first start: %v", err)
	}
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for range 2 {
		err := d.UpdateMetadata(func(m *bottle.Metadata) error {
			m.NextShort++
			m.StartedAt = at
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	stop := errors.New("stop")
	if err := d.UpdateMetadata(func(m *bottle.Metadata) error { m.NextShort = 99; return stop }); !errors.Is(err, stop) {
		t.Errorf("a change that fails: %v", err)
	}
	m, err := d.LoadMetadata()
	if err != nil || m.Schema != bottle.Schema || m.Name != "b" || m.NextShort != 2 || !m.StartedAt.Equal(at) {
		t.Errorf("%+v, %v", m, err)
	}
	for content, want := range map[string]error{`{"schema":99}`: bottle.ErrNewer, `{"schema":1`: bottle.ErrCorrupt} {
		if err := os.WriteFile(d.Metadata(), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := d.UpdateMetadata(func(*bottle.Metadata) error { return nil }); !errors.Is(err, want) {
			t.Errorf("over %s: %v, want %v", content, err, want)
		}
		if b, err := os.ReadFile(d.Metadata()); err != nil || string(b) != content {
			t.Errorf("what could not be read was overwritten with %s, %v", b, err)
		}
	}
}

func TestProcessID(t *testing.T) {
	self, err := bottle.ProcessOf(os.Getpid())
	if err != nil || !self.Alive() {
		t.Fatalf("this process: %+v, %v", self, err)
	}
	if reused := (bottle.ProcessID{PID: self.PID, Start: self.Start - 1}); reused.Alive() {
		t.Error("another process of the same pid counts as alive")
	}
	for _, pid := range []int{0, -1} {
		if (bottle.ProcessID{PID: pid}).Alive() {
			t.Errorf("pid %d counts as alive", pid)
		}
	}
	cmd := exec.CommandContext(t.Context(), "cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	child, err := bottle.ProcessOf(cmd.Process.Pid)
	if err != nil || !child.Alive() || child.Start < self.Start {
		t.Errorf("child %+v, %v", child, err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if child.Alive() {
		t.Error("alive after its end")
	}
}

func TestSignalString(t *testing.T) {
	for s, want := range map[bottle.Signal]string{
		bottle.SignalReload: "HUP", bottle.SignalReloadPipelock: "USR2", bottle.SignalReplacePipelock: "USR1",
		bottle.SignalRestartEgress: "RTMIN+1", 15: "terminated",
	} {
		if got := s.String(); got != want {
			t.Errorf("signal %d is %s, want %s", int(s), got, want)
		}
	}
}
