package audit_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"bottle/bottle/audit"
)

// files is the state of a log at one instant, as a power cut leaves it.
type files struct{ log, head string }

func load(t *testing.T, dir string) files {
	t.Helper()
	var f files
	for name, text := range map[string]*string{config(dir).Path: &f.log, config(dir).HeadPath: &f.head} {
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		*text = string(raw)
	}
	return f
}

func (f files) store(t *testing.T, dir string) {
	t.Helper()
	for name, text := range map[string]string{config(dir).Path: f.log, config(dir).HeadPath: f.head} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// history returns the files after each of n appends, from none on.
func history(t *testing.T, n int) []files {
	t.Helper()
	dir := t.TempDir()
	log := open(t, dir)
	states := []files{load(t, dir)}
	for i := range n {
		write(t, log, audit.Entry{Event: audit.Applied, Change: string(rune('a' + i)), Detail: "détail"})
		states = append(states, load(t, dir))
	}
	return states
}

func TestCrashAtEveryByteOfALine(t *testing.T) {
	states := history(t, 2)
	for seq := 1; seq <= 2; seq++ {
		before, after := states[seq-1], states[seq]
		for size := len(before.log); size <= len(after.log); size++ {
			dir := t.TempDir()
			files{log: after.log[:size], head: before.head}.store(t, dir)

			report := verify(t, dir)
			wantNotes := 1
			if size == len(before.log) {
				wantNotes = 0
			}
			if len(report.Faults) > 0 || len(report.Notes) != wantNotes || report.Lines != uint64(seq-1) {
				t.Fatalf("line %d cut at %d: %+v", seq, size, report)
			}

			// A whole line is kept, any part of one goes; and either way the change is recorded once.
			whole := size == len(after.log)
			_, written, err := open(t, dir).AppendOnce(t.Context(), audit.Entry{Event: audit.Applied, Change: string(rune('a' + seq - 1))})
			if err != nil || written == whole {
				t.Fatalf("line %d cut at %d: written %v, %v", seq, size, written, err)
			}
			verifySound(t, dir, uint64(seq))
		}
	}
}

// Blocks that never reached the disk read as zeros, even where the file's size and its last block did.
func TestCrashLeavesAHole(t *testing.T) {
	states := history(t, 2)
	dir := t.TempDir()
	cut := len(states[1].log) + 10
	files{
		log:  states[1].log + strings.Repeat("\x00", 10) + states[2].log[cut:],
		head: states[1].head,
	}.store(t, dir)
	if report := verify(t, dir); len(report.Faults) > 0 || len(report.Notes) != 1 {
		t.Errorf("report %+v", report)
	}
	write(t, open(t, dir), audit.Entry{Event: audit.Failed})
	verifySound(t, dir, 2)
}

func TestCrashBeforeTheFirstHead(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(config(dir).Path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	verifySound(t, dir, 0)
	write(t, open(t, dir), audit.Entry{Event: audit.Started})
	verifySound(t, dir, 1)
}

// When the head cannot be replaced the entry is not acknowledged, so the line must go as well.
func TestFailedHeadTakesTheLineBack(t *testing.T) {
	dir := t.TempDir()
	log := open(t, dir)
	write(t, log, audit.Entry{Event: audit.Approved})
	before := load(t, dir)

	block := config(dir).HeadPath + ".tmp"
	if err := os.Mkdir(block, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := log.Append(t.Context(), audit.Entry{Event: audit.ApplyStarted}); err == nil {
		t.Fatal("Append: no error")
	}
	if load(t, dir) != before {
		t.Error("the failed append left something")
	}
	if err := os.Remove(block); err != nil {
		t.Fatal(err)
	}
	write(t, log, audit.Entry{Event: audit.ApplyStarted})
	verifySound(t, dir, 2)
}

// What no crash explains is refused by Append, and told by Verify.
func TestAppendRefusesATamperedEnd(t *testing.T) {
	s := history(t, 4)
	third := strings.TrimPrefix(s[3].log, s[2].log)
	for name, f := range map[string]files{
		"last line cut off":       {s[2].log, s[3].head},
		"last line cut in half":   {s[3].log[:len(s[3].log)-40], s[3].head},
		"last line changed":       {s[2].log + strings.Replace(third, "applied", "ailppad", 1), s[3].head},
		"emptied":                 {"", s[3].head},
		"head of another log":     {s[3].log, history(t, 3)[3].head},
		"head is garbage":         {s[3].log, "{"},
		"head is empty":           {s[3].log, ""},
		"head gives another size": {s[3].log, strings.Replace(s[3].head, `"size":`, `"size":1`, 1)},
		"head without a line":     {s[3].log, strings.Replace(s[3].head, `"seq":3`, `"seq":0`, 1)},
		"line put in at the end":  {s[3].log + "{}\n", s[3].head},
		"two lines past the head": {s[4].log, s[2].head},
		"much past the head":      {s[3].log + strings.Repeat("x", audit.MaxLine+1), s[3].head},
		"last line twice":         {s[3].log + third, s[3].head},
		"whole line and a half":   {s[3].log + strings.TrimPrefix(s[4].log, s[3].log)[:30], s[2].head},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			f.store(t, dir)
			if _, err := audit.Open(config(dir)); !errors.Is(err, audit.ErrTampered) {
				t.Errorf("Open: %v, want %v", err, audit.ErrTampered)
			}
			if report := verify(t, dir); len(report.Faults) == 0 {
				t.Errorf("Verify: no fault in %+v", report)
			}
			if load(t, dir) != f {
				t.Error("the evidence was changed")
			}
		})
	}
}

func TestMissingFile(t *testing.T) {
	for name, pick := range map[string]func(audit.Config) string{
		"log":  func(c audit.Config) string { return c.Path },
		"head": func(c audit.Config) string { return c.HeadPath },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			log := open(t, dir)
			write(t, log, audit.Entry{Event: audit.Approved})
			if err := os.Remove(pick(config(dir))); err != nil {
				t.Fatal(err)
			}
			if _, err := log.Append(t.Context(), audit.Entry{Event: audit.Approved}); !errors.Is(err, audit.ErrTampered) {
				t.Errorf("Append: %v, want %v", err, audit.ErrTampered)
			}
			if report := verify(t, dir); len(report.Faults) != 1 {
				t.Errorf("Verify: %+v, want one fault", report)
			}
		})
	}
}

func TestNewerSchemaIsRefused(t *testing.T) {
	s := history(t, 2)
	for name, f := range map[string]files{
		"head": {s[2].log, strings.Replace(s[2].head, `"schema":1`, `"schema":2`, 1)},
		"line": {s[1].log + strings.Replace(strings.TrimPrefix(s[2].log, s[1].log), `"schema":1`, `"schema":2`, 1), s[2].head},
		"rest": {s[1].log + strings.Replace(strings.TrimPrefix(s[2].log, s[1].log), `"schema":1`, `"schema":2`, 1), s[1].head},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			f.store(t, dir)
			if _, err := audit.Open(config(dir)); !errors.Is(err, audit.ErrNewer) {
				t.Errorf("Open: %v, want %v", err, audit.ErrNewer)
			}
			if _, err := audit.Verify(config(dir).Path, config(dir).HeadPath); !errors.Is(err, audit.ErrNewer) {
				t.Errorf("Verify: %v, want %v", err, audit.ErrNewer)
			}
			if name != "head" {
				got, err := audit.Read(config(dir).Path, 1, 0)
				if !errors.Is(err, audit.ErrNewer) || len(got) != 1 {
					t.Errorf("Read: %d entries, %v", len(got), err)
				}
			}
		})
	}
}
