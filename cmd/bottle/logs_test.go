package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bottle/bottle"
)

// A log is read on through all that happens to it: each line once, in order.
func TestLogTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	older := path + ".1"
	put := func(path, text string) {
		t.Helper()
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	l := newLogTail(path, older)
	defer l.Close()
	more := func(want string) {
		t.Helper()
		if got, err := l.more(); err != nil || string(got) != want {
			t.Errorf("%q %v, want %q", got, err, want)
		}
	}
	more("") // there is none
	put(older, "a\nb\n")
	put(path, "c\nd")
	more("a\nb\nc\n")
	more("")
	put(path, "d\ne\n")
	more("dd\ne\n")
	put(path, "f\n")
	if err := os.Rename(path, older); err != nil {
		t.Fatal(err)
	}
	more("f\n")
	put(older, "g\n")
	put(path, "h\n")
	more("g\nh\n")
	if err := os.Truncate(path, 0); err != nil { // cut in place
		t.Fatal(err)
	}
	more("")
	put(path, "i\n")
	more("i\n")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(older, path); err != nil {
		t.Fatal(err)
	}
	if got, err := l.more(); err == nil || len(got) > 0 {
		t.Errorf("followed a link: %q", got)
	}
}

func TestSinceTime(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"": {}, "10m": now.Add(-10 * time.Minute), "2026-01-01T00:00:00+01:00": time.Date(2025, 12, 31, 23, 0, 0, 0, time.UTC),
	} {
		if got, err := sinceTime(text, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v %v", text, got, err)
		}
	}
	for _, text := range []string{"-5m", "yesterday", "2026-01-01", "10"} {
		if _, err := sinceTime(text, now); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}

// What an agent wrote can't act on the terminal that shows it, and a refusal stands out there.
func TestAccessPrinter(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.Local)
	evil := "\x1b[2Ja\u202eb\n"
	lines := []accessLine{
		{AccessLine: bottle.AccessLine{
			Time: at, Verdict: "allowed", Status: 200, Host: "api.example.com", Port: 443, Method: "GET", Path: "/v1", Query: 2, Protocol: "h2",
			Route: "api.example.com  GET /v1/*", Grant: "r7", BytesUp: 999, BytesDown: 12345, Millis: 41.26, RequestID: "id-1", End: "cut",
		}},
		{AccessLine: bottle.AccessLine{Time: at, Verdict: "refused", Layer: "egress", Status: 403, Host: evil, Port: 80, Method: evil, Path: evil, Reason: evil, Millis: 12_345}},
		{AccessLine: bottle.AccessLine{Time: at.Add(24 * time.Hour), Verdict: "failed", Layer: evil, Status: 502, Host: "x.example", Port: 443, Method: "CONNECT", Protocol: "tunnel", Millis: 700_000}},
		{AccessLine: bottle.AccessLine{Time: at, Verdict: "allowed", LeftOut: 312}},
	}
	var out bytes.Buffer
	p := accessPrinter{color: true}
	for i := range lines {
		p.line(&out, &lines[i])
	}
	for _, want := range []string{
		"-- 2026-01-02\n",
		"03:04:05.678 200 allowed              41ms     999   12.3k  GET api.example.com/v1?2 h2  [cut]  (api.example.com  GET /v1/*  r7)  id id-1\n",
		"\x1b[31m03:04:05.678 403 REFUSED egress      12.3s       -       -  <U+001B>[2Ja<U+202E>b<U+000A> <U+001B>[2Ja<U+202E>b<U+000A>:80<U+001B>[2Ja<U+202E>b<U+000A>\x1b[0m\n             <U+001B>[2Ja<U+202E>b<U+000A>\n",
		"-- 2026-01-03\n",
		"  CONNECT x.example\x1b[0m\n",
		"03:04:05.678 ... 312 lines of what was allowed are missing here: there were too many a second\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%q", want, out.String())
		}
	}
	if n := strings.Count(out.String(), "\x1b"); n != 4 {
		t.Errorf("%d escapes, 4 are for two refusals: %q", n, out.String())
	}
}
