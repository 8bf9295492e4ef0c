package launch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"

	"bottle/bottle"
)

// Prepare writes what the bundle is started with, as [Prepare] does, after it has looked
// whether the engine, compose and the images are there, and has made the internal network,
// whose address the config names. What an earlier run of this bottle left is removed. The caller holds
// the lock, and no bundle runs. If it fails, or ctx ends, nothing is left of it on the engine.
func (d *Docker) Prepare(ctx context.Context, f Files) (err error) {
	if d.manifest == nil {
		return errors.New("launch: Manifest is required to start")
	}
	if err := d.removeAll(ctx); err != nil {
		return err
	}
	workspace, at, err := pinWorkspace(d.manifest.Agent.Workspace)
	if err != nil {
		return err
	}
	// What is noted of an earlier run is gone; from here on it is this engine's.
	err = d.dir.UpdateMetadata(func(m *bottle.Metadata) error {
		m.Docker = &bottle.DockerIDs{Engine: d.cli.DaemonHost(), Workspace: workspace, WorkspaceAt: at}
		return nil
	})
	if err != nil {
		return err
	}
	for field, path := range map[string]string{"agent.workspace": workspace, "the state directory": d.dir.Path()} {
		if strings.Contains(path, ":") {
			return fmt.Errorf("%s: %s has a colon, which the engine takes for the end of a path it mounts; use another: %w", field, path, bottle.ErrInvalid)
		}
	}
	// First of all that the engine answers: what is missing on this machine matters after that.
	u, err := d.operator(ctx)
	if err != nil {
		return err
	}
	if err := d.checkCompose(ctx); err != nil {
		return err
	}
	if err := d.checkEngine(ctx); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.removeAll(context.WithoutCancel(ctx)))
		}
	}()
	subnet, err := d.pickInternal(ctx)
	if err != nil {
		return err
	}
	m := *d.manifest
	m.Egress.Listen = bottle.DefaultManifest().Egress.Listen // is for the local backend; the address is set below
	if err := Prepare(d.dir, &m, f); err != nil {
		return err
	}
	if err := d.adapt(ctx, subnet); err != nil {
		return err
	}
	if err := writeMCPConfig(d.dir); err != nil {
		return err
	}
	if m.Agent.Build == nil {
		return nil
	}
	if err := d.render(subnet, u); err != nil {
		return err
	}
	return d.inProject(ctx, nil, "build", serviceAgent)
}

// adapt puts the container's addresses and paths in bundle.json.
func (d *Docker) adapt(ctx context.Context, subnet netip.Prefix) error {
	var cfg bottle.BundleConfig
	if err := bottle.ReadJSON(d.dir.BundleConfig(), 0, &cfg); err != nil {
		return err
	}
	// Not on all addresses: those on the outgoing network are the host's to reach.
	cfg.Egress = netip.AddrPortFrom(host(subnet, hostSidecars), proxyPort).String()
	for i := range cfg.Pipelock {
		cfg.Pipelock[i] = "127.0.0.1:" + strconv.Itoa(proxyPort+1+i)
	}
	image, err := d.cli.ImageInspect(ctx, d.image)
	if err != nil {
		return d.explain("look at image "+d.image, err)
	}
	cfg.Binary = image.Config.Labels[labelPipelock]
	if d.manifest.Pipelock.Binary != "" {
		cfg.Binary = pipelockInside
	}
	return bottle.WriteJSON(d.dir.BundleConfig(), cfg)
}

// subnet is the internal one that the bundle was prepared for.
func (d *Docker) subnet() (netip.Prefix, error) {
	var cfg bottle.BundleConfig
	if err := bottle.ReadJSON(d.dir.BundleConfig(), 0, &cfg); err != nil {
		return netip.Prefix{}, err
	}
	at, err := netip.ParseAddrPort(cfg.Egress)
	if err != nil || !subnetPool.Contains(at.Addr()) {
		return netip.Prefix{}, fmt.Errorf("%s: egress %q is not of the docker backend; stop and start the bottle: %w", d.dir.BundleConfig(), cfg.Egress, bottle.ErrCorrupt)
	}
	return netip.PrefixFrom(at.Addr(), subnetBits).Masked(), nil
}

// Ensure starts the containers if the bundle's does not run, and reports whether it had to.
// It does not wait until the bundle is ready. A container that exists is not made anew, so an
// agent that runs goes on. If the agent's alone has ended it is started again, which is no start of the bundle.
func (d *Docker) Ensure(ctx context.Context) (started bool, err error) {
	if running, err := d.Running(ctx); err != nil {
		return false, err
	} else if running {
		return false, d.ensureAgent(ctx)
	}
	if d.manifest == nil {
		return false, errors.New("launch: Manifest is required to start")
	}
	unlock, err := d.dir.Lock(ctx)
	if err != nil {
		return false, err
	}
	defer unlock()
	if running, err := d.Running(ctx); running || err != nil {
		return false, err
	}
	// It may run although metadata does not say so: we were killed before that was written.
	if id, err := d.find(ctx, serviceSidecars); err != nil {
		return false, err
	} else if id != "" {
		running, err := d.running(ctx, id)
		if err != nil {
			return false, err
		}
		if running {
			return false, d.remember(ctx)
		}
	}
	return true, d.start(ctx)
}

func (d *Docker) start(ctx context.Context) error {
	subnet, err := d.subnet()
	if err != nil {
		return err
	}
	u, err := d.operator(ctx)
	if err != nil {
		return err
	}
	if err := d.checkEngine(ctx); err != nil {
		return err
	}
	if _, err := d.ensureInternal(ctx, subnet); err != nil {
		return err
	}
	if _, err := d.ensureOutgoing(ctx); err != nil {
		return err
	}
	if err := d.ensureVolume(ctx, u); err != nil {
		return err
	}
	// The engine would make what is missing for its mounts, as root.
	for _, daemon := range bundleDaemons {
		if err := os.MkdirAll(d.dir.Path("run", "bundle", daemon), 0o700); err != nil {
			return fmt.Errorf("start the bundle: %w", err)
		}
	}
	if err := os.Remove(d.dir.InitStatus()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("start the bundle: %w", err)
	}
	if err := d.render(subnet, u); err != nil {
		return err
	}
	return d.up(ctx)
}

// up makes and starts the containers. Compose holds the project's lock itself, so that who
// tears down waits for it even if we are killed meanwhile.
func (d *Docker) up(ctx context.Context) error {
	lock, err := lockProject(ctx, d.dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	whole, cancel := uninterrupted(ctx)
	defer cancel()
	if err := d.inProject(whole, lock, "up", "--detach", "--no-recreate", "--no-build"); err != nil {
		return fmt.Errorf("start the bundle: %w", err)
	}
	agent, err := d.find(whole, serviceAgent)
	if err != nil {
		return err
	}
	if err := d.checkWorkspace(whole, agent); err != nil {
		return err
	}
	if err := d.remember(whole); err != nil {
		return err
	}
	return ctx.Err()
}

func (d *Docker) render(subnet netip.Prefix, u owner) error {
	ids, err := d.ids()
	if err != nil {
		return err
	}
	b, err := d.compose(subnet, u, cmp.Or(ids.Workspace, d.manifest.Agent.Workspace))
	if err != nil {
		return err
	}
	return d.writeCompose(b)
}

// remember notes in metadata what the engine made. The caller holds the lock.
func (d *Docker) remember(ctx context.Context) error {
	ids, err := d.ids()
	if err != nil {
		return err
	}
	ids.Engine, ids.Project, ids.Volume, ids.Networks = d.cli.DaemonHost(), d.project(), d.socketVolume(), nil
	for _, n := range []string{d.internalNetwork(), d.outgoingNetwork()} {
		have, err := d.findNetwork(ctx, n)
		if err != nil {
			return err
		}
		if have != nil {
			ids.Networks = append(ids.Networks, have.ID)
		}
	}
	if ids.Sidecars, err = d.find(ctx, serviceSidecars); err != nil {
		return err
	}
	if ids.Agent, err = d.find(ctx, serviceAgent); err != nil {
		return err
	}
	if ids.Sidecars == "" || ids.Agent == "" {
		return fmt.Errorf("start the bundle: compose made no container for %s or %s", serviceSidecars, serviceAgent)
	}
	if err := d.dir.UpdateMetadata(func(m *bottle.Metadata) error { m.Docker = &ids; return nil }); err != nil {
		return err
	}
	d.log.Info("bundle started", "container", ids.Sidecars)
	return nil
}

// mine selects what has this bottle's labels.
func (d *Docker) mine() filters.Args {
	return filters.NewArgs(filters.Arg("label", labelName+"="+d.dir.Name()), filters.Arg("label", labelState+"="+d.dir.Path()))
}

// find is the container of a service, empty if there is none.
func (d *Docker) find(ctx context.Context, service string) (string, error) {
	f := d.mine()
	f.Add("label", "com.docker.compose.service="+service)
	list, err := d.cli.ContainerList(ctx, container.ListOptions{All: true, Filters: f})
	if err != nil {
		return "", d.explain("list containers", err)
	}
	if len(list) == 0 {
		return "", nil
	}
	return list[0].ID, nil
}

// operator is who the containers run as.
func (d *Docker) operator(ctx context.Context) (owner, error) {
	info, err := d.cli.Info(ctx)
	if err != nil {
		return owner{}, d.explain("ask the container engine", err)
	}
	u := owner{uid: os.Getuid(), gid: os.Getgid(), memory: info.MemTotal}
	has := func(name string) bool {
		return slices.ContainsFunc(info.SecurityOptions, func(o string) bool { return slices.Contains(strings.Split(o, ","), "name="+name) })
	}
	switch {
	case has("rootless"):
		u.uid, u.gid = 0, 0 // which is the operator
	case has("userns"):
		u.hostUsers = true
	}
	return u, nil
}

// checkEngine refuses what the engine could not start, before anything is made.
func (d *Docker) checkEngine(ctx context.Context) error {
	if err := d.checkProject(ctx); err != nil {
		return err
	}
	return d.CheckImages(ctx)
}

// checkProject refuses a compose project of the same name that is not this bottle's.
func (d *Docker) checkProject(ctx context.Context) error {
	list, err := d.cli.ContainerList(ctx, container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", "com.docker.compose.project="+d.project()))})
	if err != nil {
		return d.explain("list containers", err)
	}
	for _, c := range list {
		if c.Labels[labelName] != d.dir.Name() || c.Labels[labelState] != d.dir.Path() {
			return d.taken("compose project", d.project(), c.Labels)
		}
	}
	return nil
}

// CheckImages reports whether the images that a start needs are on the engine. It makes nothing.
func (d *Docker) CheckImages(ctx context.Context) error {
	if d.manifest == nil {
		return errors.New("launch: Manifest is required to start")
	}

	images := []string{d.image}
	if d.manifest.Agent.Build == nil {
		images = append(images, d.manifest.Agent.Image)
	}
	for _, name := range images {
		if name == "" {
			return errors.New("agent.image: the docker backend needs one; " + ClaudeImage + " is what bottle image build makes")
		}
		_, err := d.cli.ImageInspect(ctx, name)
		switch {
		case err == nil:
		case !cerrdefs.IsNotFound(err):
			return d.explain("look for image "+name, err)
		case name == d.image || name == ClaudeImage:
			return fmt.Errorf("image %s is not there; bottle image build makes it: %w", name, bottle.ErrNotFound)
		default:
			return fmt.Errorf("agent.image: %s is not there; docker pull %[1]s fetches it, or name a Dockerfile under agent.build: %w", name, bottle.ErrNotFound)
		}
	}
	return nil
}

// mcpConfigFile is mounted into the agent's container.
func mcpConfigFile(dir *bottle.Dir) string { return dir.Path("run", "mcp.json") }

func writeMCPConfig(dir *bottle.Dir) error {
	return bottle.WriteFile(mcpConfigFile(dir), []byte(mcpConfig), 0o644)
}
