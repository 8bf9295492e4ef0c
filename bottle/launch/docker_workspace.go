package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/docker/docker/api/types/container"
	"golang.org/x/sys/unix"

	"bottle/bottle"
)

// The engine looks a mount's source up by its path, as root, at each start of a container. A workspace that lies where an
// agent can write (another bottle's, or an earlier run's) may be another directory by then, or a link to one. So it is
// resolved once, when the start is accepted, and each mount is held against that before an agent runs in it.

// pinWorkspace resolves the links in a workspace's path, and says which directory it is.
func pinWorkspace(path string) (string, bottle.MountedFile, error) {
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", bottle.MountedFile{}, fmt.Errorf("agent.workspace: %w", err)
	}
	at, err := directory(resolved)
	if err != nil {
		return "", bottle.MountedFile{}, fmt.Errorf("agent.workspace: %w", err)
	}
	return resolved, at, nil
}

func directory(path string) (bottle.MountedFile, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return bottle.MountedFile{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return bottle.MountedFile{}, &os.PathError{Op: "stat", Path: path, Err: unix.ENOTDIR}
	}
	return bottle.MountedFile{Dev: uint64(st.Dev), Ino: st.Ino}, nil //nolint:unconvert // the width of Dev differs between architectures
}

// checkWorkspace removes an agent's container that was given another directory than the one that was accepted. Where the
// container's processes are not this machine's to see, as in a virtual machine, it looks at the path instead.
func (d *Docker) checkWorkspace(ctx context.Context, agent string) error {
	ids, err := d.ids()
	if err != nil || ids.Workspace == "" || agent == "" {
		return err
	}
	c, err := d.cli.ContainerInspect(ctx, agent)
	if err != nil {
		return d.explain("inspect the agent's container", err)
	}
	at, err := mounted(c)
	if err != nil {
		d.log.Debug("the agent's mounts can't be seen; looking at the workspace's path", "error", err)
		at, err = directory(ids.Workspace)
	}
	if err == nil && at == ids.WorkspaceAt {
		return nil
	}
	why := fmt.Errorf("agent.workspace: %s is not the directory any more that it was when the start was accepted; look who replaced it, then start again", ids.Workspace)
	return errors.Join(why, gone(d.cli.ContainerRemove(ctx, agent, container.RemoveOptions{Force: true, RemoveVolumes: true})))
}

// mounted is the directory that a running container has as its workspace.
func mounted(c container.InspectResponse) (bottle.MountedFile, error) {
	if c.State == nil || c.State.Pid <= 0 {
		return bottle.MountedFile{}, errors.New("the container does not run")
	}
	proc := fmt.Sprintf("/proc/%d", c.State.Pid)
	groups, err := os.ReadFile(proc + "/cgroup")
	if err != nil {
		return bottle.MountedFile{}, err
	}
	if !strings.Contains(string(groups), c.ID) {
		return bottle.MountedFile{}, fmt.Errorf("process %d is not in the container as this machine sees it", c.State.Pid)
	}
	return directory(proc + "/root" + workspaceInside)
}
