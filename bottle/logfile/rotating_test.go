package logfile_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bottle/bottle/logfile"
)

func TestRotating(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := logfile.OpenRotating(path, 100)
	if err != nil {
		t.Fatal(err)
	}
	for n := range 25 { // of 10 bytes
		if _, err := fmt.Fprintf(r, "line %04d\n", n); err != nil {
			t.Fatal(err)
		}
	}
	var all string
	for _, p := range []string{path + logfile.OlderSuffix, path} {
		b, err := os.ReadFile(p)
		if err != nil || len(b) > 100 {
			t.Errorf("%s: %d bytes, %v", p, len(b), err)
		}
		all += string(b)
	}
	if !strings.HasSuffix(all, "line 0023\nline 0024\n") || strings.Count(all, "\n")*10 != len(all) || len(all) <= 100 {
		t.Errorf("%q", all)
	}
	// Whoever removes it finds the next line in a new one.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	for n := range 12 {
		if _, err := fmt.Fprintf(r, "more %04d\n", n); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := os.ReadFile(path); err != nil || !strings.HasSuffix(string(b), "more 0011\n") {
		t.Errorf("%q %v", b, err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Write([]byte("late\n")); err == nil {
		t.Error("written to a closed log")
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

func TestRotatingKeepsTornLinesApart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte("whole\ntor"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := logfile.OpenRotating(path, 100)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.Write([]byte("next\n")); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "whole\ntor\nnext\n" {
		t.Errorf("%q %v", b, err)
	}
}

func TestRotatingRefusesWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Join(dir, "elsewhere"), link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{link, dir, "/dev/null", filepath.Join(dir, "no", "where")} {
		if r, err := logfile.OpenRotating(path, 100); err == nil {
			_ = r.Close()
			t.Errorf("%s was opened", path)
		}
	}
}
