package logfile_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"bottle/bottle/logfile"
)

func open(t *testing.T, path string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|flags, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func read(t *testing.T, path string) []string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > logfile.Max+4096 {
		t.Fatalf("%d bytes", len(b))
	}
	if bytes.IndexByte(b, 0) >= 0 {
		t.Fatal("the file has a hole")
	}
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}

// Whatever is written, the file stays within its bound, holds whole lines in their order,
// ends with the newest, and says what is missing.
func TestBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	w := logfile.Bound(open(t, path, os.O_APPEND))
	const lines = 30_000 // of 1 KiB: more than three times the bound
	for n := range lines {
		if _, err := fmt.Fprintf(w, "%08d %s\n", n, strings.Repeat("x", 1014)); err != nil {
			t.Fatal(err)
		}
	}
	got := read(t, path)
	if !strings.Contains(got[0], "bytes of older lines are gone") {
		t.Errorf("it begins with %.80q", got[0])
	}
	if len(got) < logfile.Kept>>10 {
		t.Errorf("%d lines are left", len(got))
	}
	for i, line := range got[1:] {
		if want := fmt.Sprintf("%08d x", lines-len(got)+1+i); len(line) != 1023 || line[:10] != want {
			t.Fatalf("line %d: %.20q, want %q", i, line, want)
		}
	}
}

// A process that is started anew finds the file as its predecessor left it.
func TestFoundTooLarge(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, bytes.Repeat([]byte("old\n"), 5<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	w := logfile.Bound(open(t, path, os.O_APPEND))
	if _, err := io.WriteString(w, "new\n"); err != nil {
		t.Fatal(err)
	}
	got := read(t, path)
	if n := len(got); n > logfile.Kept/4+2 || got[n-1] != "new" || got[n-2] != "old" {
		t.Errorf("%d lines, the last is %q", n, got[n-1])
	}
}

// A line that never ends is no reason to keep it.
func TestOneEndlessLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, bytes.Repeat([]byte("x"), logfile.Max+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(logfile.Bound(open(t, path, os.O_APPEND)), "new\n"); err != nil {
		t.Fatal(err)
	}
	if got := read(t, path); len(got) != 2 || got[1] != "new" {
		t.Errorf("%d lines", len(got))
	}
}

func TestConcurrent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	w := logfile.Bound(open(t, path, os.O_APPEND))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			line := []byte(strings.Repeat("y", 4095) + "\n")
			for range 1000 {
				if _, err := w.Write(line); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for i, line := range read(t, path)[1:] {
		if len(line) != 4095 {
			t.Fatalf("line %d has %d bytes", i, len(line))
		}
	}
}

func TestOthersAreLeftAlone(t *testing.T) {
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pr.Close()
	defer pw.Close()
	for name, w := range map[string]io.Writer{
		"no file":      &bytes.Buffer{},
		"a pipe":       pw,
		"not O_APPEND": open(t, filepath.Join(t.TempDir(), "log"), 0),
	} {
		if got := logfile.Bound(w); got != w {
			t.Errorf("%s: %T", name, got)
		}
	}
}
