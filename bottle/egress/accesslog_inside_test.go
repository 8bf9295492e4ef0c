package egress

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bottle/bottle"
)

func asIs(s string) string { return s }

func decodeLog(t *testing.T, text string) (lines []bottle.AccessLine) {
	t.Helper()
	for line := range strings.Lines(text) {
		var l bottle.AccessLine
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		lines = append(lines, l)
	}
	return lines
}

// In a flood the log says how many lines are missing, and what was refused has its lines all
// the same.
func TestAccessLogIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		var dropped atomic.Uint64
		l := newAccessLog(&out, time.Now, asIs, &dropped)
		stop := l.start()
		for range 10 { // seconds
			for range 5 * accessAllowed {
				l.put(&entry{host: "a.example"})
			}
			l.put(&entry{refusal: &refusal{host: "b.example", reason: "no"}})
			synctest.Wait()
			time.Sleep(time.Second)
		}
		stop()
		allowed, refused, missing := 0, 0, uint64(0)
		for _, line := range decodeLog(t, out.String()) {
			switch {
			case line.LeftOut > 0 && line.Verdict == bottle.AccessAllowed:
				missing += line.LeftOut
			case line.Verdict == bottle.AccessAllowed:
				allowed++
			case line.Host == "b.example":
				refused++
			}
		}
		if refused != 10 || allowed != 10*accessAllowed || missing != 10*4*accessAllowed || dropped.Load() != missing {
			t.Errorf("%d refused, %d allowed, %d missing, %d dropped", refused, allowed, missing, dropped.Load())
		}
	})
}

// Who waits for a line needs to wait no longer than a second.
func TestAccessLogIsFlushed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		l := newAccessLog(&out, time.Now, asIs, new(atomic.Uint64))
		stop := l.start()
		l.put(&entry{host: "a.example"})
		time.Sleep(accessFlush)
		synctest.Wait()
		if out.Len() == 0 {
			t.Error("not written")
		}
		l.put(&entry{host: "b.example"})
		stop() // at once
		if n := len(decodeLog(t, out.String())); n != 2 {
			t.Errorf("%d lines", n)
		}
	})
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("gone") }

func TestAccessLogOfABrokenPipe(t *testing.T) {
	var dropped atomic.Uint64
	l := newAccessLog(broken{}, time.Now, asIs, &dropped)
	stop := l.start()
	for range 3 {
		l.put(&entry{host: "a.example"})
	}
	stop()
	if dropped.Load() != 3 {
		t.Errorf("%d dropped", dropped.Load())
	}
}
