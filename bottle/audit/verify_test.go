package audit_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"bottle/bottle/audit"
)

// forge changes a line as somebody would who knows the format: its hash is right again.
func forge(line, from, to string) string {
	body, _, _ := strings.Cut(strings.Replace(line, from, to, 1), `,"hash":`)
	return fmt.Sprintf("%s,\"hash\":\"sha256:%x\"}\n", body, sha256.Sum256([]byte(body+"}")))
}

func TestVerifyFinds(t *testing.T) {
	s := history(t, 5)
	sound := slices.Collect(strings.Lines(s[5].log))
	long := strings.Repeat("x", 3*audit.MaxLine) + "\n"
	for name, tt := range map[string]struct {
		tamper func(l []string) []string
		want   map[int]string // line -> part of the problem, of every fault
	}{
		"nothing": {func(l []string) []string { return l }, nil},
		"a changed line": {
			func(l []string) []string { l[2] = strings.Replace(l[2], "applied", "denied", 1); return l },
			map[int]string{3: "changed", 5: "ends elsewhere"},
		},
		"a changed line of the same length": {
			func(l []string) []string { l[2] = strings.Replace(l[2], `"change":"c"`, `"change":"x"`, 1); return l },
			map[int]string{3: "changed"},
		},
		"a forged line": {
			func(l []string) []string { l[2] = forge(l[2], `"change":"c"`, `"change":"x"`); return l },
			map[int]string{4: "does not follow"},
		},
		"a forged last line": {
			func(l []string) []string { l[4] = forge(l[4], `"change":"e"`, `"change":"x"`); return l },
			map[int]string{5: "not the one"},
		},
		"a dropped line": {
			func(l []string) []string { return slices.Delete(l, 1, 2) },
			map[int]string{2: "entries 2 to 2 are missing", 4: "ends elsewhere"},
		},
		"dropped first lines": {
			func(l []string) []string { return l[2:] },
			map[int]string{1: "entries 1 to 2 are missing", 3: "ends elsewhere"},
		},
		"two lines exchanged": {
			func(l []string) []string { l[1], l[2] = l[2], l[1]; return l },
			map[int]string{2: "missing before it", 3: "out of order", 4: "missing before it"},
		},
		"a line put in twice": {
			func(l []string) []string { return slices.Insert(l, 2, l[1]) },
			map[int]string{3: "out of order", 6: "ends elsewhere"},
		},
		"a forged line put in": {
			func(l []string) []string { return slices.Insert(l, 2, forge(l[1], `"seq":2`, `"seq":3`)) },
			map[int]string{3: "does not follow", 4: "out of order", 6: "ends elsewhere"},
		},
		"cut off": {
			func(l []string) []string { return l[:3] },
			map[int]string{4: "entries 4 to 5 are missing at the end"},
		},
		"cut within a line": {
			func(l []string) []string { l[4] = l[4][:20]; return l },
			map[int]string{5: "entries 5 to 5 are missing at the end"},
		},
		"emptied": {
			func([]string) []string { return nil },
			map[int]string{1: "entries 1 to 5 are missing at the end"},
		},
		"an empty line": {
			func(l []string) []string { return slices.Insert(l, 2, "\n") },
			map[int]string{3: "not an audit entry", 4: "out of order", 6: "ends elsewhere"},
		},
		"a line in place of another": {
			func(l []string) []string { l[2] = "{}\n"; return l },
			map[int]string{3: "not an audit entry", 5: "ends elsewhere"},
		},
		"a huge line": {
			func(l []string) []string { l[2] = long; return l },
			map[int]string{3: "longer than", 5: "ends elsewhere"},
		},
		"a line put in at the end": {
			func(l []string) []string { return append(l, l[0]) },
			map[int]string{6: "put in"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			files{strings.Join(tt.tamper(slices.Clone(sound)), ""), s[5].head}.store(t, dir)
			report := verify(t, dir)
			if len(report.Faults) != len(tt.want) {
				t.Errorf("%d faults, want %d: %+v", len(report.Faults), len(tt.want), report.Faults)
			}
			for _, fault := range report.Faults {
				if want, ok := tt.want[fault.Line]; !ok || !strings.Contains(fault.Problem, want) {
					t.Errorf("fault %+v, want %q", fault, want)
				}
			}
		})
	}
}

func TestVerifyFindsEveryByte(t *testing.T) {
	s := history(t, 3)
	dir := t.TempDir()
	for i := range s[3].log {
		changed := []byte(s[3].log)
		changed[i] ^= 1
		files{string(changed), s[3].head}.store(t, dir)
		report, err := audit.Verify(config(dir).Path, config(dir).HeadPath)
		if err == nil && len(report.Faults) == 0 {
			t.Fatalf("byte %d changed, and not found", i)
		}
	}
}

func TestVerifyNothing(t *testing.T) {
	dir := t.TempDir()
	if _, err := audit.Verify(config(dir).Path, config(dir).HeadPath); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v, want %v", err, fs.ErrNotExist)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) > 0 {
		t.Errorf("Verify left %v, %v", entries, err)
	}
}

// Verify reads one moment, though another process goes on appending.
func TestVerifyDuringAppends(t *testing.T) {
	dir := t.TempDir()
	_ = open(t, dir)
	done := make(chan error, 1)
	go func() { done <- appendMany(t.Context(), dir, "writer") }()
	for {
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
			verifySound(t, dir, 2*perWriter)
			return
		default:
			if report := verify(t, dir); len(report.Faults) > 0 || len(report.Notes) > 0 {
				t.Errorf("report %+v", report)
			}
		}
	}
}
