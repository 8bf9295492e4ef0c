package main_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// inNamespace is set in a run of these tests that may mount.
const inNamespace = "BOTTLE_TEST_IN_NAMESPACE"

// TestFullDisk is a script on a small tmpfs. Whoever may not mount one gets a user and a
// mount namespace for it.
func TestFullDisk(t *testing.T) {
	if canMount(t) {
		runScripts(t, "testdata/disk")
		return
	}
	if os.Getenv(inNamespace) != "" {
		t.Fatal("no tmpfs can be mounted, even in a user namespace of its own")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "unshare", "--user", "--map-root-user", "--mount", self, "-test.run=^TestFullDisk$")
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	out, err := cmd.CombinedOutput()
	if err == nil {
		return
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 1 || os.Getenv("CI")+os.Getenv("BOTTLE_REQUIRE_DOCKER") != "" {
		t.Fatalf("%v: %s\nrun as root, or permit user namespaces", err, out)
	}
	t.Skipf("this machine permits no mounts: %v: %s", err, out)
}

func canMount(t *testing.T) bool {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=64k"); err != nil {
		return false
	}
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	return true
}

// stepTmpfs mounts a small file system, for as long as the script runs.
func stepTmpfs(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 2, "tmpfs DIR SIZE")
	dir := ts.MkAbs(args[0])
	ts.Check(unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700,size="+args[1]))
	worldOf(ts).mounted = dir
}

// stepFill writes DIR/fill until nothing more fits.
func stepFill(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 1, "fill DIR")
	f, err := os.OpenFile(filepath.Join(ts.MkAbs(args[0]), "fill"), os.O_WRONLY|os.O_CREATE, 0o600)
	ts.Check(err)
	defer f.Close()
	for _, size := range []int{64 << 10, 4 << 10, 1} {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
		if !errors.Is(err, unix.ENOSPC) {
			ts.Check(fmt.Errorf("fill: %w", err))
		}
	}
}
