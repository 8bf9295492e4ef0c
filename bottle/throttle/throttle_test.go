package throttle_test

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bottle/bottle/throttle"
)

func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := slog.New(throttle.New(slog.NewTextHandler(&out, nil)))
		flood := func(n int) (lines string) {
			out.Reset()
			for range n {
				log.With("who", "agent").Info("refused")
			}
			return out.String()
		}
		count := func(s string) int { return strings.Count(s, "msg=refused") }
		if got := flood(1000); count(got) != throttle.PerSecond || strings.Contains(got, "left_out") {
			t.Errorf("at once: %s", got)
		}
		time.Sleep(500 * time.Millisecond)
		if got := flood(1000); count(got) != throttle.PerSecond/2 || strings.Count(got, "left_out") != 1 || !strings.Contains(got, "left_out=990\n") {
			t.Errorf("half a second later: %s", got)
		}
		time.Sleep(time.Hour)
		if got := flood(1000); count(got) != throttle.PerSecond || !strings.Contains(got, "left_out=995\n") {
			t.Errorf("an hour later: %s", got)
		}
		log.Debug("nothing that isn't logged anyway is counted")
		time.Sleep(time.Second)
		if got := flood(1); !strings.Contains(got, "left_out=990\n") {
			t.Errorf("a debug line was counted: %s", got)
		}
		if got := flood(1); count(got) != 1 || strings.Contains(got, "left_out") {
			t.Errorf("told twice: %s", got)
		}
	})
}

func TestConcurrentUse(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(throttle.New(slog.NewTextHandler(&out, nil)))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				log.WithGroup("g").Info("refused", "a", 1)
			}
		})
	}
	wg.Wait()
	if n := strings.Count(out.String(), "msg=refused"); n < throttle.PerSecond || n > 5*throttle.PerSecond {
		t.Errorf("%d lines", n)
	}
}
