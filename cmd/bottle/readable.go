package main

import (
	"context"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"bottle/bottle"
	"bottle/bottle/launch"
)

// readable looks for all that a start will read, before anything is made for it or asked: the
// agent's variables, the extra roots, and the images.
func readable(ctx context.Context, dir *bottle.Dir, m *bottle.Manifest, at place, argv []string) error {
	if len(argv) > 0 {
		if _, err := m.Agent.Environ(os.LookupEnv); err != nil {
			return err
		}
	}
	if _, err := m.ReadUpstreamCA(os.ReadFile); err != nil {
		return err
	}
	if at.backend != backendDocker {
		return nil
	}
	d, err := launch.NewDocker(launch.DockerConfig{Dir: dir, Logger: quiet(), Manifest: m, Image: bundleImage})
	if err != nil {
		return err
	}
	defer d.Close()
	return d.CheckImages(ctx)
}

// unwritable says why the agent, which runs as us but without any capability, can't write in its
// workspace; empty if it can. That may be meant so.
func unwritable(workspace string) string {
	if err := unix.Access(workspace, unix.W_OK|unix.X_OK); err != nil {
		return err.Error()
	}
	st, err := os.Stat(workspace)
	if err != nil {
		return err.Error()
	}
	owner, ok := st.Sys().(*syscall.Stat_t)
	if !ok || os.Geteuid() != 0 {
		return "" // the kernel has said it already; of root it permits all, which the agent is not
	}
	groups, _ := os.Getgroups() // without them it is one of the others
	need := os.FileMode(0o003)
	switch {
	case owner.Uid == 0:
		need <<= 6
	case owner.Gid == 0, slices.Contains(groups, int(owner.Gid)):
		need <<= 3
	}
	if st.Mode().Perm()&need != need {
		return "it belongs to " + userName(int(owner.Uid)) + ", with mode " + st.Mode().Perm().String()
	}
	return ""
}
