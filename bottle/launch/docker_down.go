package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/volume"
	"github.com/docker/docker/client"

	"bottle/bottle"
)

// downWait bounds a tear-down: it goes on when the caller is interrupted, since what it
// would leave costs more than the wait.
const downWait = 60 * time.Second

// Stop keeps the containers' logs in compose.log, brings the project down, and removes
// the networks and the volume. It is no error if nothing is there. It goes on when ctx ends, for up to a minute. The
// keeper must have been stopped before, or it starts the bundle again.
func (d *Docker) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), downWait)
	defer cancel()
	lock, err := lockProject(ctx, d.dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	list, err := d.containers(ctx)
	if err != nil {
		return err
	}
	if len(list) > 0 {
		if _, err := os.Stat(d.composePath()); err == nil {
			// Neither may keep what follows from being done.
			if err := d.dumpLogs(ctx); err != nil {
				d.log.Warn("the containers' logs are lost", "error", err)
			}
			if err := d.inProject(ctx, nil, "down", "--timeout", "3"); err != nil {
				d.log.Warn("compose could not bring the project down", "error", err)
			}
		}
	}
	return d.removeLocked(ctx)
}

// StopBundle ends and removes the bundle's container alone: the agent's goes on, and [Docker.Ensure]
// makes a new one beside it. It is no error if there is none.
func (d *Docker) StopBundle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), downWait)
	defer cancel()
	lock, err := lockProject(ctx, d.dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	id, err := d.find(ctx, serviceSidecars)
	if err != nil || id == "" {
		return err
	}
	grace := 3
	if err := gone(d.cli.ContainerStop(ctx, id, container.StopOptions{Timeout: &grace})); err != nil {
		return d.explain("stop the bundle", err)
	}
	return d.explain("remove the bundle's container", gone(d.cli.ContainerRemove(ctx, id, container.RemoveOptions{Force: true, RemoveVolumes: true})))
}

func (d *Docker) containers(ctx context.Context) ([]container.Summary, error) {
	list, err := d.cli.ContainerList(ctx, container.ListOptions{All: true, Filters: d.mine()})
	return list, d.explain("list containers", err)
}

// removeAll removes what has this bottle's labels, by the engine alone.
func (d *Docker) removeAll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, downWait)
	defer cancel()
	lock, err := lockProject(ctx, d.dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	return d.removeLocked(ctx)
}

func (d *Docker) removeLocked(ctx context.Context) error {
	_, err := remove(ctx, d.cli, d.mine())
	return d.explain("tear down "+d.project(), err)
}

// remove removes the containers, networks and volumes that have the labels, and says which.
// What is gone meanwhile is as it should be.
func remove(ctx context.Context, cli *client.Client, labels filters.Args) (removed []string, err error) {
	cs, err := cli.ContainerList(ctx, container.ListOptions{All: true, Filters: labels})
	if err != nil {
		return nil, err
	}
	var errs []error
	did := func(what string, err error) {
		if err = gone(err); err != nil {
			errs = append(errs, fmt.Errorf("remove %s: %w", what, err))
			return
		}
		removed = append(removed, what)
	}
	for _, c := range cs {
		name := c.ID[:12]
		if len(c.Names) > 0 {
			name = strings.TrimPrefix(c.Names[0], "/")
		}
		did("container "+name, cli.ContainerRemove(ctx, c.ID, container.RemoveOptions{Force: true, RemoveVolumes: true}))
	}
	ns, err := cli.NetworkList(ctx, network.ListOptions{Filters: labels})
	errs = append(errs, err)
	for _, n := range ns {
		did("network "+n.Name, cli.NetworkRemove(ctx, n.ID))
	}
	vs, err := cli.VolumeList(ctx, volume.ListOptions{Filters: labels})
	errs = append(errs, err)
	for _, v := range vs.Volumes {
		did("volume "+v.Name, cli.VolumeRemove(ctx, v.Name, false))
	}
	return removed, errors.Join(errs...)
}

// CleanupDocker removes what a crash left on the engine: whatever has a bottle's labels
// while that bottle is not alive. It returns what it removed. alive is asked for each state directory that
// the labels name; nil takes a bottle for alive if its keeper is, or if somebody holds its lock.
// Nothing is removed of a bottle whose lock can't be had.
func CleanupDocker(ctx context.Context, cli *client.Client, alive func(*bottle.Dir) bool) ([]string, error) {
	if alive == nil {
		alive = keeperAlive
	}
	states, err := labelled(ctx, cli)
	if err != nil {
		return nil, fmt.Errorf("look for what was left: %w", explainEngine(cli.DaemonHost(), err))
	}
	var removed []string
	var errs []error
	for _, state := range states {
		dir, err := bottle.NewDir(state)
		if err != nil {
			errs = append(errs, fmt.Errorf("label %s: %w", labelState, err))
			continue
		}
		did, err := cleanupOne(ctx, cli, dir, alive)
		removed = append(removed, did...)
		if err != nil {
			errs = append(errs, fmt.Errorf("bottle %s: %w", dir.Name(), explainEngine(cli.DaemonHost(), err)))
		}
	}
	return removed, errors.Join(errs...)
}

func cleanupOne(ctx context.Context, cli *client.Client, dir *bottle.Dir, alive func(*bottle.Dir) bool) ([]string, error) {
	if alive(dir) {
		return nil, nil
	}
	if _, err := os.Stat(dir.Path()); err == nil {
		now, cancel := context.WithCancel(ctx)
		cancel()
		unlock, err := dir.Lock(now)
		if errors.Is(err, bottle.ErrLocked) {
			return nil, nil // it is being started or stopped
		}
		if err != nil {
			return nil, err
		}
		defer unlock()
		if alive(dir) {
			return nil, nil
		}
		project, err := lockProject(now, dir)
		if errors.Is(err, bottle.ErrLocked) {
			return nil, nil // by a compose that was left behind: the next cleanup will do
		}
		if err != nil {
			return nil, err
		}
		defer project.Close()
	}
	return remove(ctx, cli, filters.NewArgs(filters.Arg("label", labelState+"="+dir.Path())))
}

func keeperAlive(dir *bottle.Dir) bool {
	m, err := dir.LoadMetadata()
	return err == nil && m.Keeper.Alive()
}

// labelled are the state directories of the bottles that something on the engine is labelled with.
func labelled(ctx context.Context, cli *client.Client) ([]string, error) {
	f := filters.NewArgs(filters.Arg("label", labelState))
	var states []string
	add := func(labels map[string]string) { states = append(states, labels[labelState]) }
	cs, err := cli.ContainerList(ctx, container.ListOptions{All: true, Filters: f})
	if err != nil {
		return nil, err
	}
	for _, c := range cs {
		add(c.Labels)
	}
	ns, err := cli.NetworkList(ctx, network.ListOptions{Filters: f})
	if err != nil {
		return nil, err
	}
	for _, n := range ns {
		add(n.Labels)
	}
	vs, err := cli.VolumeList(ctx, volume.ListOptions{Filters: f})
	if err != nil {
		return nil, err
	}
	for _, v := range vs.Volumes {
		add(v.Labels)
	}
	slices.Sort(states)
	return slices.Compact(states), nil
}
