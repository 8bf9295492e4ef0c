package launch

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
)

const (
	boxWait = 8 * time.Second // for the keeper to start the agent's container again
	boxRest = 3 * time.Second
)

// agentBox is the agent's container, once it runs: if it was killed, the keeper brings it back.
func (d *Docker) agentBox(ctx context.Context) (container.InspectResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, boxWait)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		ids, err := d.ids() // it may have been made anew
		if err != nil {
			return container.InspectResponse{}, err
		}
		c, err := d.cli.ContainerInspect(ctx, ids.Agent)
		if gone(err) != nil {
			return c, d.explain("run the agent", err)
		}
		if err == nil && c.State != nil && c.State.Running {
			return c, nil
		}
		if err == nil {
			err = errors.New("it has ended")
		}
		if !keeperAlive(d.dir) {
			return c, d.noBox(err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return c, d.noBox(err)
		}
	}
}

func (d *Docker) noBox(err error) error {
	return fmt.Errorf("run the agent: its container does not run; bottle restart %[1]s starts it again, bottle logs %[1]s may say why it ended: %[2]w", d.dir.Name(), err)
}

// ensureAgent starts the agent's container again if it has ended beside a bundle that runs. What ran in it is gone, and
// so is its home, which is in memory. One that ends at once is given a rest between two starts.
func (d *Docker) ensureAgent(ctx context.Context) error {
	if d.manifest == nil {
		return nil
	}
	if due, err := d.agentIsDue(ctx); !due || err != nil {
		return err
	}
	unlock, err := d.dir.Lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if due, err := d.agentIsDue(ctx); !due || err != nil {
		return err
	}
	ids, err := d.ids()
	if err != nil {
		return err
	}
	d.log.Warn("the agent's container has ended; starting it again", "container", ids.Agent)
	lock, err := lockProject(ctx, d.dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	whole, cancel := uninterrupted(ctx)
	defer cancel()
	err = d.cli.ContainerStart(whole, ids.Agent, container.StartOptions{})
	switch {
	case err == nil:
		return d.checkWorkspace(whole, ids.Agent)
	case !cerrdefs.IsNotFound(err):
		return d.explain("start the agent's container again", err)
	}
	// It was removed.
	if err := d.inProject(whole, lock, "up", "--detach", "--no-recreate", "--no-build", "--no-deps", serviceAgent); err != nil {
		return fmt.Errorf("start the agent's container again: %w", err)
	}
	if ids.Agent, err = d.find(whole, serviceAgent); err != nil {
		return err
	}
	if err := d.checkWorkspace(whole, ids.Agent); err != nil {
		return err
	}
	return d.remember(whole)
}

// agentIsDue reports whether the agent's container is to be started again. Both containers are looked at: one stop takes both.
func (d *Docker) agentIsDue(ctx context.Context) (bool, error) {
	ids, err := d.ids()
	if err != nil || ids.Agent == "" {
		return false, err
	}
	c, err := d.cli.ContainerInspect(ctx, ids.Agent)
	switch {
	case gone(err) != nil:
		return false, d.explain("inspect the agent's container", err)
	case err == nil && (c.State == nil || c.State.Running || c.State.Status == container.StateCreated || rests(c.State)):
		return false, nil
	}
	return d.running(ctx, ids.Sidecars)
}

// rests reports whether a container has ended just now, and soon after its start.
func rests(st *container.State) bool {
	began, err1 := time.Parse(time.RFC3339Nano, st.StartedAt)
	ended, err2 := time.Parse(time.RFC3339Nano, st.FinishedAt)
	return errors.Join(err1, err2) == nil && ended.Sub(began) < boxRest && time.Since(ended) < boxRest
}

// withBridge is the image's PATH, after the directory that the bridge is mounted in.
func withBridge(env []string) string {
	dirs := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" // the engine's own
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			dirs = v
		}
	}
	return path.Dir(bridgeInside) + ":" + dirs
}

// hasBridge refuses an image without bottle-mcp where there is none on this machine to be mounted. MCP configurations
// would name a program that is not there, which agents tell nobody.
func (d *Docker) hasBridge(ctx context.Context, c container.InspectResponse) error {
	if d.bridge != "" {
		return nil
	}
	for _, dir := range strings.Split(withBridge(c.Config.Env), ":") {
		if _, err := d.cli.ContainerStatPath(ctx, c.ID, path.Join("/", dir, "bottle-mcp")); gone(err) != nil {
			return d.explain("look for bottle-mcp in the agent's container", err)
		} else if err == nil {
			return nil
		}
	}
	return fmt.Errorf("the agent would have no bottle-mcp: install it beside bottle or in PATH, built with CGO_ENABLED=0, or into the PATH of image %s", c.Config.Image)
}
