package launch_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/volume"
	"github.com/docker/docker/client"

	"bottle/bottle"
	"bottle/bottle/launch"
	"bottle/bottle/pipelock"
)

// What the tests on an engine share: the programs, and images made of them and of busybox,
// since nothing can be pulled everywhere.
type dock struct {
	cli      *client.Client
	programs string // directory
	base     string // image with a shell, for the agent too
	bundle   string // image
}

var docks struct {
	sync.Once
	dock *dock
	err  error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if d := docks.dock; d != nil {
		for _, name := range []string{d.bundle, d.base} {
			_, _ = d.cli.ImageRemove(context.Background(), name, image.RemoveOptions{Force: true, PruneChildren: true})
		}
		_ = os.RemoveAll(d.programs)
		_ = d.cli.Close()
	}
	os.Exit(code)
}

// engine is what the tests need, or nil where no engine answers, unless one is required.
func engine(t testing.TB) *dock {
	t.Helper()
	cli, err := launch.NewEngine()
	if err != nil {
		t.Fatal(err)
	}
	defer cli.Close()
	if _, err := cli.Ping(t.Context()); err != nil {
		if os.Getenv("BOTTLE_REQUIRE_DOCKER") == "1" {
			t.Fatalf("BOTTLE_REQUIRE_DOCKER=1, but: %v", err)
		}
		t.Logf("NOT RUN, since no engine answers: %v", err)
		return nil
	}
	docks.Do(func() { docks.dock, docks.err = newDock() })
	if docks.err != nil {
		t.Fatal(docks.err)
	}
	return docks.dock
}

func newDock() (d *dock, err error) {
	ctx := context.Background()
	d = &dock{}
	if d.cli, err = launch.NewEngine(); err != nil {
		return nil, err
	}
	if d.programs, err = os.MkdirTemp("", "bottle-programs-"); err != nil {
		return nil, err
	}
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", d.programs+"/", "bottle/cmd/bottle-sidecars", "bottle/cmd/bottle-supervise", "bottle/cmd/bottle-mcp")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the programs: %w\n%s", err, out)
	}
	tag := strings.ToLower(rand.Text()[:10])
	d.base, d.bundle = "bottle-test-base:"+tag, "bottle-test-sidecars:"+tag
	if err := d.importBase(ctx); err != nil {
		return nil, err
	}
	var progress bytes.Buffer
	err = launch.BuildImages(ctx, launch.ImageConfig{
		Client: d.cli, Program: d.program, Progress: &progress,
		Args: map[string]string{"BASE_IMAGE": d.base}, Tag: func(string) string { return d.bundle },
	}, launch.BundleImage)
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, progress.String())
	}
	return d, nil
}

func (d *dock) program(name string) string { return filepath.Join(d.programs, name) }

// bridge is the program that is mounted, if there is one.
func (d *dock) bridge() string {
	if p := d.program("bottle-mcp"); exists(p) {
		return p
	}
	return ""
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// importBase makes an image of a static busybox.
func (d *dock) importBase(ctx context.Context) error {
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return fmt.Errorf("%w; install busybox-static", err)
	}
	applets, err := exec.CommandContext(ctx, "/bin/busybox", "--list").Output()
	if err != nil {
		return err
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, dir := range []string{"bin/", "etc/", "tmp/"} {
		mode := int64(0o755)
		if dir == "tmp/" {
			mode = 0o1777
		}
		if err := w.WriteHeader(&tar.Header{Name: dir, Mode: mode, Typeflag: tar.TypeDir}); err != nil {
			return err
		}
	}
	if err := w.WriteHeader(&tar.Header{Name: "bin/busybox", Mode: 0o755, Size: int64(len(busybox)), Typeflag: tar.TypeReg}); err != nil {
		return err
	}
	if _, err := w.Write(busybox); err != nil {
		return err
	}
	for applet := range strings.FieldsSeq(string(applets)) {
		if applet == "busybox" {
			continue
		}
		if err := w.WriteHeader(&tar.Header{Name: "bin/" + applet, Linkname: "busybox", Mode: 0o777, Typeflag: tar.TypeSymlink}); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	r, err := d.cli.ImageImport(ctx, image.ImportSource{Source: &buf, SourceName: "-"}, d.base, image.ImportOptions{Changes: []string{"ENV PATH=/bin"}})
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(io.Discard, r)
	return err
}

// A pot is one bottle on the engine. Whatever becomes of the test, nothing of it is left there.
type pot struct {
	*launch.Docker
	dock *dock
	dir  *bottle.Dir
	m    *bottle.Manifest
}

func newPot(t testing.TB, d *dock, change ...func(*bottle.Manifest)) *pot {
	t.Helper()
	// Not t.TempDir: with the test's name in it, a socket may not fit in sun_path.
	tmp, err := os.MkdirTemp("", "b") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(tmp) })
	name := "t" + strings.ToLower(rand.Text()[:8])
	dir, err := bottle.NewDir(filepath.Join(tmp, name))
	if err != nil {
		t.Fatal(err)
	}
	if err := dir.Create(); err != nil {
		t.Fatal(err)
	}
	m := bottle.DefaultManifest()
	m.Name, m.Agent.Image, m.Agent.Workspace = name, d.base, t.TempDir()
	m.Egress.Routes = []bottle.Route{{Host: "upstream.test", Ports: []int{80}}}
	for _, f := range change {
		f(m)
	}
	p := &pot{dock: d, dir: dir, m: m}
	p.Docker = p.open(t)
	t.Cleanup(func() {
		if err := p.Stop(context.Background()); err != nil {
			t.Errorf("stop: %v", err)
		}
		if left := p.onEngine(t); len(left) > 0 {
			t.Errorf("left on the engine: %q", left)
		}
	})
	return p
}

// open is the backend as another process has it.
func (p *pot) open(t testing.TB) *launch.Docker {
	t.Helper()
	d, err := launch.NewDocker(launch.DockerConfig{
		Dir: p.dir, Manifest: p.m, Image: p.dock.bundle, Bridge: p.dock.bridge(),
		Logger: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

func (p *pot) files(t testing.TB, routes ...bottle.Route) launch.Files {
	t.Helper()
	doc, err := bottle.NewRoutes(routes)
	if err != nil {
		t.Fatal(err)
	}
	var f launch.Files
	if f.Routes, _, err = doc.Bytes(); err != nil {
		t.Fatal(err)
	}
	gate, err := pipelock.New(bottle.Allowlist(doc.Routes()))
	if err != nil {
		t.Fatal(err)
	}
	if f.Pipelock, _, err = gate.Bytes(); err != nil {
		t.Fatal(err)
	}
	return f
}

func (p *pot) prepare(ctx context.Context, t testing.TB) error {
	t.Helper()
	unlock, err := p.dir.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	return p.Prepare(ctx, p.files(t, p.m.Egress.Routes...))
}

// up starts the bottle and waits until it is ready.
func (p *pot) up(t testing.TB) bottle.InitStatus {
	t.Helper()
	began := time.Now()
	if err := p.prepare(t.Context(), t); err != nil {
		t.Fatal(err)
	}
	prepared := time.Now()
	if started, err := p.Ensure(t.Context()); err != nil || !started {
		t.Fatalf("Ensure: %v, %v", started, err)
	}
	created := time.Now()
	st, err := p.WaitReady(t.Context())
	if err != nil {
		t.Fatalf("%v\n%s", err, p.logs())
	}
	t.Logf("prepare %v, compose up %v, then ready %v", prepared.Sub(began).Round(time.Millisecond), created.Sub(prepared).Round(time.Millisecond), time.Since(created).Round(time.Millisecond))
	return st
}

func (p *pot) logs() string {
	out, _ := exec.CommandContext(context.Background(), "docker", "compose", "-p", "bottle-"+p.m.Name, "logs", "--no-color").CombinedOutput()
	return string(out)
}

func (p *pot) ids(t testing.TB) bottle.DockerIDs {
	t.Helper()
	m, err := p.dir.LoadMetadata()
	if err != nil || m.Docker == nil {
		t.Fatalf("metadata: %+v, %v", m, err)
	}
	return *m.Docker
}

// onEngine lists what is there of the bottle.
func (p *pot) onEngine(t testing.TB) []string {
	t.Helper()
	f := filters.NewArgs(filters.Arg("label", "bottle.name="+p.m.Name))
	var found []string
	cs, err1 := p.dock.cli.ContainerList(context.Background(), container.ListOptions{All: true, Filters: f})
	for _, c := range cs {
		found = append(found, "container "+c.Names[0])
	}
	ns, err2 := p.dock.cli.NetworkList(context.Background(), network.ListOptions{Filters: f})
	for _, n := range ns {
		found = append(found, "network "+n.Name)
	}
	vs, err3 := p.dock.cli.VolumeList(context.Background(), volume.ListOptions{Filters: f})
	for _, v := range vs.Volumes {
		found = append(found, "volume "+v.Name)
	}
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	return found
}

// run runs an agent without a terminal, and returns its exit code and output.
func (p *pot) run(t testing.TB, argv ...string) (int, string) {
	t.Helper()
	return p.agent(t, "", launch.Agent{Argv: argv})
}

func (p *pot) agent(t testing.TB, input string, a launch.Agent) (int, string) {
	t.Helper()
	in := tempFile(t, input)
	out := tempFile(t, "")
	a.In, a.Out, a.Err = in, out, out
	code, err := p.RunAgent(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	return code, string(b)
}

func tempFile(t testing.TB, content string) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "f")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if _, err := f.WriteString(content); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	return f
}

// hostAddr is an address of this machine that the outgoing network reaches.
func (d *dock) hostAddr(t testing.TB) netip.Addr {
	t.Helper()
	n, err := d.cli.NetworkInspect(t.Context(), "bridge", network.InspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return netip.MustParseAddr(n.IPAM.Config[0].Gateway)
}

// eventually polls cond, which says what is still missing, for up to 30 s.
func eventually(t testing.TB, cond func() string) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(30 * time.Second); ; <-tick.C {
		missing := cond()
		if missing == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("after 30 s: %s", missing)
		}
	}
}
