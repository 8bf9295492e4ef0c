package launch

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// A tree of plain files stands for one of cgroups: this machine may have none that is delegated.
func TestDelegatedCgroup(t *testing.T) {
	root := t.TempDir()
	put := func(dir, controllers string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Join(root, dir), 0o700),
			os.WriteFile(filepath.Join(root, dir, "cgroup.subtree_control"), []byte(controllers), 0o600),
			os.WriteFile(filepath.Join(root, dir, "cgroup.procs"), nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	put("", "cpu memory pids")
	put("user", "cpu memory pids\n")
	put("user/app", "memory")
	put("user/app/scope", "memory pids")
	put("bare", "")
	for own, want := range map[string]string{
		"/user/app/scope": "user", // not its own, which has processes, nor app, which bounds memory alone
		"/user/app":       "user",
		"/bare/x":         "",
		"/":               "none",
	} {
		got := nearestDelegated(root, own)
		if want != "none" {
			want = filepath.Join(root, want)
		} else {
			want = ""
		}
		if got != want {
			t.Errorf("%s: %q; want %q", own, got, want)
		}
	}

	g, err := limiter{parent: filepath.Join(root, "user")}.newGroup("box", 1<<30, 7)
	if err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{"memory.max": "1073741824", "memory.swap.max": "0", "pids.max": "7"} {
		if b, err := os.ReadFile(filepath.Join(g.path, file)); err != nil || string(b) != want {
			t.Errorf("%s: %q %v", file, b, err)
		}
	}
	// Of a real one its directory alone is removed.
	left, _ := filepath.Glob(filepath.Join(g.path, "*"))
	for _, f := range left {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(g.path); err != nil {
		t.Fatal(err)
	}
	if err := g.remove(); err != nil {
		t.Errorf("one that is gone already: %v", err)
	}
	if _, err := (limiter{parent: filepath.Join(root, "none")}).newGroup("box", 1, 1); err == nil {
		t.Error("a parent that is not there")
	}
}
