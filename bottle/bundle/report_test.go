package bundle_test

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"bottle/bottle"
)

// What a hijacked daemon says of itself is believed of itself alone.
func TestForgedReport(t *testing.T) {
	h := hijack(t)
	before := map[string]bottle.DaemonStatus{}
	for _, name := range h.names() {
		before[name] = h.daemonStatus(name)
	}
	hop := h.hop()
	h.order(bottle.DaemonSupervise, order{Report: forged(t, bottle.DaemonStatus{
		Schema: 99, Daemon: "../egress", PID: 1, Instance: "x", Listen: "127.0.0.1:1", Hop: "127.0.0.1:1", Error: "forged",
		Revision: bottle.Hash("sha256:" + strings.Repeat("0", 64)),
	})})
	eventually(t, "its own status", func() bool { return h.daemonStatus(bottle.DaemonSupervise).Error == "forged" })
	st := h.daemonStatus(bottle.DaemonSupervise)
	if st.Schema != bottle.Schema || st.Daemon != bottle.DaemonSupervise || st.PID != h.daemons[bottle.DaemonSupervise].PID {
		t.Errorf("it passes for another: %+v", st)
	}
	for _, name := range []string{bottle.DaemonEgress, bottle.DaemonPipelock} {
		if now := h.daemonStatus(name); fmt.Sprint(now) != fmt.Sprint(before[name]) {
			t.Errorf("%s: %+v, was %+v", name, now, before[name])
		}
	}
	if h.hop() != hop {
		t.Errorf("egress is pointed at %s", h.hop())
	}
	h.untouched()
	h.serves()
	entries, err := os.ReadDir(h.dir.Path("status"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		switch strings.TrimSuffix(e.Name(), ".json") {
		case "init", bottle.DaemonEgress, bottle.DaemonPipelock, bottle.DaemonSupervise:
		default:
			t.Errorf("status/%s", e.Name())
		}
	}
}

// A daemon whose reports make no sense is not listened to any more. What it said before stays.
func TestBrokenReports(t *testing.T) {
	for _, tt := range []struct{ name, report, log string }{
		{"garbage", "\x00\xff\x1b[31m{\n", "one is not a status"},
		{"another type", `{"pid": "one", "counters": [[[[]]]]}` + "\n", "one is not a status"},
		{"deep", strings.Repeat("[", 60<<10) + "\n", "one is not a status"},
		{"too long", strings.Repeat(" ", 70<<10) + "\n", "one is too long"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := hijack(t)
			before := h.daemonStatus(bottle.DaemonSupervise)
			_, _ = h.ask(bottle.DaemonSupervise, order{Report: tt.report}) // init may close the pipe meanwhile
			eventually(t, "the warning", func() bool { return strings.Contains(h.output(), tt.log) })
			_, _ = h.ask(bottle.DaemonSupervise, order{Report: forged(t, bottle.DaemonStatus{Listen: "x", Error: "forged"})})
			h.serves()
			if now := h.daemonStatus(bottle.DaemonSupervise); fmt.Sprint(now) != fmt.Sprint(before) {
				t.Errorf("%+v, was %+v", now, before)
			}
			if strings.Contains(h.output(), "\x1b") {
				t.Error("an escape in the log")
			}
			h.untouched()
		})
	}
}

// A flood of reports, each unlike the one before, costs neither init's attention nor memory.
func TestFloodOfReports(t *testing.T) {
	h := hijack(t)
	pad := strings.Repeat("x", 1800)
	two := forged(t, bottle.DaemonStatus{Listen: "x", Error: "one" + pad}) + forged(t, bottle.DaemonStatus{Listen: "x", Error: "two" + pad})
	h.serves()
	was := memory(t, h.init)
	var wg sync.WaitGroup
	over := make(chan struct{})
	wg.Go(func() {
		defer close(over)
		if got, err := h.ask(bottle.DaemonSupervise, order{Report: two, For: 2 * time.Second}); err != nil || got["report"] != "ok" {
			t.Errorf("the flood: %v %v", got, err)
		}
	})
	eventually(t, "it has begun", func() bool { return h.daemonStatus(bottle.DaemonSupervise).Error != "" })
	var slowest time.Duration
	for more := true; more; {
		select {
		case <-over:
			more = false
		default:
			slowest = max(slowest, h.serves())
		}
	}
	wg.Wait()
	if slowest > time.Second {
		t.Errorf("a reload took %v meanwhile", slowest)
	}
	if is := memory(t, h.init); is > was+64<<20 {
		t.Errorf("init has %d KiB, had %d", is>>10, was>>10)
	}
}

// serves has init publish a new revision, and returns how long it takes until it is in force.
func (h *hijacked) serves() time.Duration {
	h.t.Helper()
	start := time.Now()
	rev := h.write(bottle.RoutesFile, fmt.Sprintf("routes: [] # %d\n", start.UnixNano()))
	h.signal(bottle.SignalReload)
	eventually(h.t, "a reload", func() bool { return h.daemonStatus(bottle.DaemonEgress).Revision == rev })
	return time.Since(start)
}

func forged(t *testing.T, st bottle.DaemonStatus) string {
	t.Helper()
	b, err := json.Marshal(st)
	if err != nil {
		t.Fatal(err)
	}
	return string(b) + "\n"
}

// memory is what the process has resident, in bytes.
func memory(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	var size, resident int
	if _, err := fmt.Sscan(string(b), &size, &resident); err != nil {
		t.Fatal(err)
	}
	return resident * os.Getpagesize()
}
