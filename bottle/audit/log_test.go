package audit_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"bottle/bottle/audit"
)

// childEnv makes the test binary append a few entries and end: another process that shares the log.
const childEnv = "BOTTLE_AUDIT_TEST_CHILD"

func TestMain(m *testing.M) {
	dir := os.Getenv(childEnv)
	if dir == "" {
		os.Exit(m.Run())
	}
	if err := appendMany(context.Background(), dir, fmt.Sprint("child ", os.Getpid())); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

const perWriter = 15

func appendMany(ctx context.Context, dir, who string) error {
	log, err := audit.Open(config(dir))
	if err != nil {
		return err
	}
	defer log.Close()
	for i := range perWriter {
		if _, err := log.Append(ctx, audit.Entry{Event: audit.Approved, Detail: fmt.Sprint(who, " ", i)}); err != nil {
			return err
		}
		// All writers try to record the same change.
		if _, _, err := log.AppendOnce(ctx, audit.Entry{Event: audit.Applied, Change: fmt.Sprint("c", i)}); err != nil {
			return err
		}
	}
	return nil
}

func config(dir string) audit.Config {
	return audit.Config{
		Path:     filepath.Join(dir, "audit.jsonl"),
		HeadPath: filepath.Join(dir, "audit.head"),
		Bottle:   "implementer",
	}
}

func open(t *testing.T, dir string) *audit.Log {
	t.Helper()
	log, err := audit.Open(config(dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.Close() })
	return log
}

func write(t *testing.T, log *audit.Log, e audit.Entry) audit.Entry {
	t.Helper()
	got, err := log.Append(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func verify(t *testing.T, dir string) audit.Report {
	t.Helper()
	report, err := audit.Verify(config(dir).Path, config(dir).HeadPath)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func verifySound(t *testing.T, dir string, lines uint64) audit.Report {
	t.Helper()
	report := verify(t, dir)
	if len(report.Faults) > 0 || len(report.Notes) > 0 || report.Lines != lines {
		t.Fatalf("want %d sound lines, got %+v", lines, report)
	}
	return report
}

func TestAppendReadsBack(t *testing.T) {
	dir := t.TempDir()
	cfg := config(dir)
	at := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.FixedZone("CET", 3600))
	cfg.Now = func() time.Time { return at }
	log, err := audit.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	first := write(t, log, audit.Entry{Event: audit.Started})
	second := write(t, log, audit.Entry{
		Event: audit.Applied, Request: "0198-x", Short: "r7", Change: "c1",
		Actor:  &audit.Actor{UID: 0, Name: "root"},
		Digest: "sha256:aa", Edited: []string{"only api.example.com"},
		Before:   map[string][]string{"routes.yaml": {"a"}},
		After:    map[string][]string{"routes.yaml": {"a", "b"}, "pipelock.yaml": {"b"}},
		Revision: map[string]string{"routes.yaml": "sha256:bb"},
		Outcome:  "in force", Detail: "x",
	})
	if second.Prev != first.Hash || second.Seq != 2 || second.Bottle != "implementer" || !second.Time.Equal(at) ||
		second.Time.Location() != time.UTC {
		t.Errorf("entry as written: %+v", second)
	}
	got, err := audit.Read(cfg.Path, 2, 0)
	if err != nil || len(got) != 1 {
		t.Fatalf("Read: %v, %v", got, err)
	}
	want, _ := json.Marshal(second)
	if have, _ := json.Marshal(got[0]); string(have) != string(want) {
		t.Errorf("read %s\nwrote %s", have, want)
	}
	if report := verifySound(t, dir, 2); report.Head != second.Hash {
		t.Errorf("report.Head = %s, want %s", report.Head, second.Hash)
	}
	for _, name := range []string{cfg.Path, cfg.HeadPath} {
		info, err := os.Stat(name)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
}

func TestReadPages(t *testing.T) {
	dir := t.TempDir()
	log := open(t, dir)
	for range 5 {
		write(t, log, audit.Entry{Event: audit.Denied})
	}
	page, err := audit.Read(config(dir).Path, 2, 2)
	if err != nil || len(page) != 2 || page[0].Seq != 2 || page[1].Seq != 3 {
		t.Errorf("Read(2, 2) = %+v, %v", page, err)
	}
	page, err = audit.Read(config(dir).Path, 6, 2)
	if err != nil || len(page) != 0 {
		t.Errorf("Read past the end = %+v, %v", page, err)
	}
}

// What the agent wrote reaches the log; looking at the log with cat must do nothing to a terminal.
func TestLineIsPrintableASCII(t *testing.T) {
	dir := t.TempDir()
	hostile := "\x1b]0;x\a\u202e\u200b\u009b\x7f\n\r\xff\U0001f600é<&"
	got := write(t, open(t, dir), audit.Entry{Event: audit.RequestSeen, Detail: hostile})
	if want := strings.ReplaceAll(hostile, "\xff", "\ufffd"); got.Detail != want {
		t.Errorf("Detail = %q, want %q", got.Detail, want)
	}
	raw, err := os.ReadFile(config(dir).Path)
	if err != nil {
		t.Fatal(err)
	}
	for i, b := range raw[:len(raw)-1] {
		if b < ' ' || b > '~' {
			t.Fatalf("byte %d is %#x", i, b)
		}
	}
	verifySound(t, dir, 1)
}

func TestLongEntryIsShortened(t *testing.T) {
	dir := t.TempDir()
	log := open(t, dir)
	lines := make([]string, 500)
	files := make(map[string][]string)
	for i := range lines {
		lines[i] = strings.Repeat("\U0001f600", 100)
		files[fmt.Sprintf("%s-%04d", strings.Repeat("f", 200), i)] = lines[:20]
	}
	for name, e := range map[string]audit.Entry{
		"detail": {Event: audit.Failed, Change: "c1", Detail: strings.Repeat("é", mebibyte)},
		"edited": {Event: audit.Failed, Change: "c1", Edited: lines},
		"all":    {Event: audit.Failed, Change: "c1", Edited: lines, Before: files, After: files, Detail: strings.Repeat("\x00", mebibyte)},
	} {
		got := write(t, log, e)
		text, _ := json.Marshal(got)
		if !strings.Contains(string(text), "[cut: ") || got.Change != "c1" {
			t.Errorf("%s: no mark in %.200s", name, text)
		}
	}
	raw, err := os.ReadFile(config(dir).Path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if len(line) > audit.MaxLine {
			t.Errorf("a line of %d bytes", len(line))
		}
	}
	verifySound(t, dir, 3)
}

const mebibyte = 1 << 20

func TestAppendRefuses(t *testing.T) {
	dir := t.TempDir()
	log := open(t, dir)
	long := strings.Repeat("x", 257)
	for name, tt := range map[string]struct {
		entry audit.Entry
		want  string
	}{
		"no event":    {audit.Entry{}, "event"},
		"odd event":   {audit.Entry{Event: "Applied\n"}, "event"},
		"long change": {audit.Entry{Event: audit.Applied, Change: long}, "change has 257 bytes"},
		"long actor":  {audit.Entry{Event: audit.Applied, Actor: &audit.Actor{Name: long}}, "actor name"},
	} {
		if _, err := log.Append(t.Context(), tt.entry); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, tt.want)
		}
	}
	if _, _, err := log.AppendOnce(t.Context(), audit.Entry{Event: audit.Applied}); err == nil {
		t.Error("AppendOnce without a change: no error")
	}
	verifySound(t, dir, 0)
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	for name, cfg := range map[string]audit.Config{
		"no path":      {HeadPath: filepath.Join(dir, "h")},
		"no head path": {Path: filepath.Join(dir, "l")},
		"same":         {Path: filepath.Join(dir, "l"), HeadPath: filepath.Join(dir, ".", "l")},
		"no directory": {Path: filepath.Join(dir, "none", "l"), HeadPath: filepath.Join(dir, "h")},
	} {
		if _, err := audit.Open(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestOpenRefusesWhatIsNotAFile(t *testing.T) {
	for _, name := range []string{"audit.jsonl", "audit.head", "audit.jsonl.lock"} {
		for kind, plant := range map[string]func(string) error{
			"link":      func(p string) error { return os.Symlink(os.DevNull, p) },
			"fifo":      func(p string) error { return syscall.Mkfifo(p, 0o600) },
			"directory": func(p string) error { return os.Mkdir(p, 0o700) },
		} {
			if name == "audit.jsonl.lock" && kind != "link" {
				continue // nothing is read from it or written to it
			}
			t.Run(name+" "+kind, func(t *testing.T) {
				dir := t.TempDir()
				if err := plant(filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
				if _, err := audit.Open(config(dir)); err == nil {
					t.Error("Open: no error")
				}
			})
		}
	}
}

func TestAppendOnce(t *testing.T) {
	dir := t.TempDir()
	log, other := open(t, dir), open(t, dir)
	e := audit.Entry{Event: audit.Applied, Change: "c1", Detail: "first"}
	first, written, err := log.AppendOnce(t.Context(), e)
	if err != nil || !written {
		t.Fatalf("first: %v, %v", written, err)
	}
	e.Detail = "second"
	for _, l := range []*audit.Log{log, other, open(t, dir)} {
		again, written, err := l.AppendOnce(t.Context(), e)
		if err != nil || written || again.Hash != first.Hash {
			t.Errorf("again: %+v, %v, %v", again, written, err)
		}
	}
	// Written by another log, since this one read.
	write(t, other, audit.Entry{Event: audit.Failed, Change: "c2"})
	if _, written, err = log.AppendOnce(t.Context(), audit.Entry{Event: audit.Failed, Change: "c2"}); err != nil || written {
		t.Errorf("of another process: %v, %v", written, err)
	}
	if _, written, err = log.AppendOnce(t.Context(), audit.Entry{Event: audit.Applied, Change: "c2"}); err != nil || !written {
		t.Errorf("another event of the same change: %v, %v", written, err)
	}
	verifySound(t, dir, 3)

	// Both files moved away, as an operator does to begin anew: so does the index.
	for _, name := range []string{config(dir).Path, config(dir).HeadPath} {
		if err := os.Rename(name, name+".old"); err != nil {
			t.Fatal(err)
		}
	}
	if _, written, err = log.AppendOnce(t.Context(), audit.Entry{Event: audit.Applied, Change: "c2"}); err != nil || !written {
		t.Errorf("in a new log: %v, %v", written, err)
	}
	verifySound(t, dir, 1)
}

func TestConcurrentAppenders(t *testing.T) {
	dir := t.TempDir()
	const handles, children = 3, 2
	var running sync.WaitGroup
	for i := range handles {
		running.Go(func() {
			if err := appendMany(t.Context(), dir, fmt.Sprint("handle ", i)); err != nil {
				t.Error(err)
			}
		})
	}
	for range children {
		running.Go(func() {
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), childEnv+"="+dir)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("child: %v\n%s", err, out)
			}
		})
	}
	running.Wait()
	verifySound(t, dir, (handles+children)*perWriter+perWriter)
}

func TestAppendGivesUpWaiting(t *testing.T) {
	dir := t.TempDir()
	log := open(t, dir)
	lock, err := os.Open(config(dir).Path + ".lock")
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := log.Append(ctx, audit.Entry{Event: audit.Applied}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want a deadline", err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	write(t, log, audit.Entry{Event: audit.Applied})
	verifySound(t, dir, 1)
}

func TestAppendAfterClose(t *testing.T) {
	log := open(t, t.TempDir())
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := log.Append(t.Context(), audit.Entry{Event: audit.Applied}); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("error %v, want %v", err, fs.ErrClosed)
	}
}

func BenchmarkAppend(b *testing.B) {
	log, err := audit.Open(config(b.TempDir()))
	if err != nil {
		b.Fatal(err)
	}
	defer log.Close()
	for b.Loop() {
		if _, err := log.Append(b.Context(), audit.Entry{Event: audit.Applied, Change: "c1"}); err != nil {
			b.Fatal(err)
		}
	}
}
