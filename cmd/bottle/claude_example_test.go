package main_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Every manifest of the examples starts as it is, with a command in the place of its agent. What
// this version can say but not do would be refused.
func TestExamplesStart(t *testing.T) {
	examples := filepath.Join("..", "..", "examples")
	var manifests []string
	for _, pattern := range []string{"*.yaml", "*/*.yaml"} {
		found, err := filepath.Glob(filepath.Join(examples, pattern))
		if err != nil {
			t.Fatal(err)
		}
		manifests = append(manifests, found...)
	}
	if len(manifests) < 3 {
		t.Fatalf("found only %q", manifests)
	}
	for _, path := range manifests {
		name, err := filepath.Rel(examples, path)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(name, func(t *testing.T) {
			state, err := os.MkdirTemp("/tmp", "b") //nolint:usetesting // t.TempDir is too long for a socket's path
			if err != nil {
				t.Fatal(err)
			}
			w := &world{state: state}
			t.Cleanup(func() {
				for _, left := range w.clear() {
					t.Error(left)
				}
				_ = os.RemoveAll(state)
			})
			ctx, cancel := context.WithTimeout(t.Context(), stepTimeout)
			defer cancel()
			// No image is there to be named, and a machine may permit no sandbox.
			cmd := exec.CommandContext(ctx, filepath.Join(programs, "bottle"), "start", "-f", path, "--backend", "local", "--unconfined", "--", "true")
			cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "BOTTLE_STATE_DIR="+state)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}
