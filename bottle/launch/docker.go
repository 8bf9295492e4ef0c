package launch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"

	"bottle/bottle"
)

// DockerConfig configures [NewDocker].
type DockerConfig struct {
	Dir    *bottle.Dir  // required
	Logger *slog.Logger // required
	// Manifest is required to prepare and to start, but not to signal or stop.
	Manifest *bottle.Manifest
	// Client is the engine. Nil: the one that the bottle was started on, if it is not stopped, else that of [NewEngine].
	Client *client.Client
	// Image is the bundle's image. Empty: [BundleImage].
	Image string
	// Bridge is the path of a static bottle-mcp, which is mounted into the agent's
	// container. Empty: the agent's image has one in its PATH, or no start succeeds.
	Bridge string
}

// Docker is one bottle as a compose project of two containers: sidecars, which holds the
// bundle with its init as PID 1, and agent, which sleeps and in which agents are executed.
//
// # Trust
//
// The engine is believed, the containers are not. The agent's has one network, on which
// nobody but the sidecars has an address: not the host, whose bridge gets none, and no
// resolver that answers. Of the state directory each container gets single files and directories, and
// each of these read-only unless the bundle writes it. What is signalled is the container
// whose ID the engine gave to the host, which metadata.json remembers.
//
// Everything made carries [labelName] and [labelState], by which [Docker.Stop] and [CleanupDocker]
// find it even if we were killed before it could be noted.
type Docker struct {
	dir      *bottle.Dir
	log      *slog.Logger
	manifest *bottle.Manifest
	cli      *client.Client
	own      bool // cli was made here
	image    string
	bridge   string
}

// The labels of all that is made for a bottle: its name, and its state directory, since two
// operators may use the same name on one engine.
const (
	labelName  = "bottle.name"
	labelState = "bottle.state-dir"
)

// The services of the compose project.
const (
	serviceSidecars = "sidecars"
	serviceAgent    = "agent"
)

// NewDocker returns the backend for a state directory; nothing is started, and the engine
// is not asked yet. Close it.
func NewDocker(c DockerConfig) (*Docker, error) {
	if c.Dir == nil || c.Logger == nil {
		return nil, errors.New("launch: Dir and Logger are required")
	}
	d := &Docker{dir: c.Dir, log: c.Logger, manifest: c.Manifest, cli: c.Client, image: c.Image, bridge: c.Bridge}
	if d.image == "" {
		d.image = BundleImage
	}
	if d.cli == nil {
		cli, err := engineOf(c.Dir)
		if err != nil {
			return nil, err
		}
		d.cli, d.own = cli, true
	}
	return d, nil
}

// Close ends the connection to the engine, if it was opened here.
func (d *Docker) Close() error {
	if !d.own {
		return nil
	}
	return d.cli.Close()
}

var _ Backend = (*Docker)(nil)

// project is the name of the compose project.
func (d *Docker) project() string { return "bottle-" + d.dir.Name() }

func (d *Docker) labels() map[string]string {
	return map[string]string{labelName: d.dir.Name(), labelState: d.dir.Path()}
}

// ids are what the host started, or a zero value.
func (d *Docker) ids() (bottle.DockerIDs, error) {
	m, err := d.dir.LoadMetadata()
	if errors.Is(err, bottle.ErrNotFound) || err == nil && m.Docker == nil {
		return bottle.DockerIDs{}, nil
	}
	if err != nil {
		return bottle.DockerIDs{}, err
	}
	return *m.Docker, nil
}

// Running asks the engine about the container that the host started as the bundle. That the
// engine can't be asked is an error: the bundle may well run.
func (d *Docker) Running(ctx context.Context) (bool, error) {
	ids, err := d.ids()
	if err != nil || ids.Sidecars == "" {
		return false, err
	}
	return d.running(ctx, ids.Sidecars)
}

func (d *Docker) running(ctx context.Context, id string) (bool, error) {
	c, err := d.cli.ContainerInspect(ctx, id)
	if cerrdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, d.explain("inspect the bundle's container", err)
	}
	return c.State != nil && c.State.Running, nil
}

// Signal sends a signal to PID 1 of the bundle's container. That the engine took it proves
// nothing; see [bottle.Signal].
func (d *Docker) Signal(ctx context.Context, s bottle.Signal) error {
	ids, err := d.ids()
	if err != nil {
		return err
	}
	if ids.Sidecars == "" {
		return fmt.Errorf("signal %v to the bundle: %w", s, os.ErrProcessDone)
	}
	// By number: engines differ in the names of real-time signals that they know.
	err = d.cli.ContainerKill(ctx, ids.Sidecars, strconv.Itoa(int(s)))
	if cerrdefs.IsNotFound(err) || cerrdefs.IsConflict(err) { // gone, or not running
		return fmt.Errorf("signal %v to container %.12s: %w", s, ids.Sidecars, os.ErrProcessDone)
	}
	return d.explain(fmt.Sprintf("signal %v to the bundle", s), err)
}

// dockerReadyTimeout bounds the wait for a bundle whose containers may still have to be made.
const dockerReadyTimeout = 60 * time.Second

// WaitReady waits until init says ready. If it ends instead, the error has its reason. By
// then the agent's container must run too.
func (d *Docker) WaitReady(ctx context.Context) (bottle.InitStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, dockerReadyTimeout)
	defer cancel()
	look := time.NewTicker(2 * time.Millisecond)
	defer look.Stop()
	ask := time.NewTicker(250 * time.Millisecond) // the engine, which is dearer
	defer ask.Stop()
	var asked time.Time // about the init that started then
	for {
		st, err := d.initStatus()
		if err == nil && (st.Ready || refused(st) != "") && !st.StartedAt.Equal(asked) {
			asked = st.StartedAt
			if running, err := d.Running(ctx); err != nil && ctx.Err() == nil {
				return st, err
			} else if running {
				// Only now is it sure to be of the container that runs: Ensure removes what an earlier one left.
				if st, err = d.initStatus(); err == nil && st.Ready {
					return st, d.agentSleeps(ctx)
				}
				if why := refused(st); err == nil && why != "" {
					return st, fmt.Errorf("the daemons wait for a file that was damaged or edited by hand (%s); bottle routes edit (or allowlist edit) --bottle %s shows the difference, and adopts or drops it", why, d.dir.Name())
				}
			}
		}
		select {
		case <-ctx.Done():
			return st, fmt.Errorf("the bundle is not ready: %s (its log: docker compose -p %s logs): %w", notReady(st), d.project(), ctx.Err())
		case <-look.C:
		case <-ask.C:
			asked = time.Time{}
			if err := d.ended(ctx, st); err != nil && ctx.Err() == nil {
				return st, err
			}
		}
	}
}

func (d *Docker) initStatus() (bottle.InitStatus, error) {
	var st bottle.InitStatus
	err := bottle.ReadJSON(d.dir.InitStatus(), 0, &st)
	return st, err
}

// ended says why the bundle's container does not run, nil if it does or is not started yet.
func (d *Docker) ended(ctx context.Context, st bottle.InitStatus) error {
	ids, err := d.ids()
	if err != nil || ids.Sidecars == "" {
		return err
	}
	c, err := d.cli.ContainerInspect(ctx, ids.Sidecars)
	if cerrdefs.IsNotFound(err) {
		return nil // of an earlier start; metadata will name the new one
	}
	if err != nil {
		return d.explain("inspect the bundle's container", err)
	}
	if c.State == nil || c.State.Running || c.State.Status == container.StateCreated {
		return nil
	}
	why := st.Error
	switch {
	case why != "":
	case c.State.OOMKilled:
		why = "it ran out of its memory limit"
	case c.State.Error != "":
		why = c.State.Error
	default:
		why = fmt.Sprintf("init ended with code %d", c.State.ExitCode)
	}
	return fmt.Errorf("the bundle did not come up: %s (its log: docker compose -p %s logs)", why, d.project())
}

// agentSleeps refuses an agent's container that has ended: it only sleeps, so its image can't.
func (d *Docker) agentSleeps(ctx context.Context) error {
	ids, err := d.ids()
	if err != nil {
		return err
	}
	c, err := d.cli.ContainerInspect(ctx, ids.Agent)
	if err != nil {
		return d.explain("inspect the agent's container", err)
	}
	if c.State != nil && !c.State.Running {
		return fmt.Errorf("the agent's container ended at once, with code %d: image %s must have the program sleep, for its processor (its log: docker compose -p %s logs)", c.State.ExitCode, c.Config.Image, d.project())
	}
	return d.hasBridge(ctx, c)
}
