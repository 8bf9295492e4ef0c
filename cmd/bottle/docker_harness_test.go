package main_test

import (
	"context"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
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
)

// commandTimeout bounds a command of these tests, of which some wait for the engine.
const commandTimeout = 2 * time.Minute

// static are the programs as they are installed for containers, and in fetch this test binary.
// The bundle's image has a name of this run's own: what the machine has under the usual one stays.
type static struct{ dir, tag string }

var buildStatic = sync.OnceValues(func() (static, error) {
	s := static{dir: filepath.Join(programs, "static"), tag: strings.ToLower(rand.Text()[:10])}
	for _, args := range [][]string{
		{"build", "-ldflags=-s -w -X main.bundleImage=" + s.image(), "-o", s.dir + "/", "../..."},
		{"test", "-c", "-vet=off", "-ldflags=-s -w", "-o", s.dir + "/fetch", "."},
	} {
		cmd := exec.CommandContext(context.Background(), "go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return s, fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	return s, nil
})

func (s static) image() string { return "bottle-test-sidecars:" + s.tag }
func (s static) base() string  { return "bottle-test-base:" + s.tag }

// A dock is an engine with the images that a bottle needs, which are made of a static busybox:
// nothing can be pulled everywhere.
type dock struct {
	static
	cli *client.Client
	at  netip.Addr // this machine, as bundles reach it
}

// newDock is nil where no engine answers, unless one is required.
func newDock(t testing.TB) *dock {
	t.Helper()
	cli, err := launch.NewEngine()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cli.Close() })
	if _, err := cli.Ping(t.Context()); err != nil {
		if os.Getenv("BOTTLE_REQUIRE_DOCKER") == "1" {
			t.Fatalf("BOTTLE_REQUIRE_DOCKER=1, but: %v", err)
		}
		t.Logf("NOT RUN, since no engine answers: %v", err)
		return nil
	}
	d := &dock{cli: cli}
	if d.static, err = buildStatic(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, name := range []string{d.image(), d.base()} {
			_, err := cli.ImageRemove(context.Background(), name, image.RemoveOptions{PruneChildren: true})
			if err != nil {
				t.Error(err)
			}
		}
	})
	const makeBase = `mkdir "$0"/bin "$0"/etc "$0"/tmp; chmod 1777 "$0"/tmp; cp /bin/busybox "$0"/bin; "$0"/bin/busybox --install "$0"/bin
		tar -C "$0" -c . | docker import --change "ENV PATH=/usr/local/bin:/bin" - "$1"`
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v (busybox-static is needed)\n%s", name, err, out)
		}
	}
	run("sh", "-ec", makeBase, t.TempDir(), d.base())
	run(filepath.Join(d.dir, "bottle"), "image", "build", launch.BundleImage, "--build-arg", "BASE_IMAGE="+d.base())
	bridge, err := cli.NetworkInspect(t.Context(), "bridge", network.InspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	d.at = netip.MustParseAddr(bridge.IPAM.Config[0].Gateway)
	return d
}

// A site is an HTTPS server of the test's for *.example.com.
type site struct {
	at             netip.AddrPort
	ca             string      // a file
	authorizations chan string // of the requests
}

func newSite(t testing.TB, at netip.Addr) *site {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", netip.AddrPortFrom(at, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	s := &site{at: netip.MustParseAddrPort(ln.Addr().String()), authorizations: make(chan string, 1000), ca: filepath.Join(t.TempDir(), "ca.pem")}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	_ = srv.Listener.Close()
	srv.Listener = ln
	srv.StartTLS()
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	if err := os.WriteFile(s.ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *site) serve(w http.ResponseWriter, r *http.Request) {
	s.authorizations <- r.Header.Get("Authorization")
	fmt.Fprintf(w, "%s has it\n", r.Host)
	if r.URL.Path == "/stream" {
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
}

func (s *site) url(host, path string) string {
	return fmt.Sprintf("https://%s.example.com:%d%s", host, s.at.Port(), path)
}

// A potted bottle is one on either backend, with its operator, and a site for the hosts open,
// api, data and key.
type potted struct {
	t         testing.TB
	dock      *dock // nil: the local backend
	programs  string
	name      string
	world     *world
	dir       *bottle.Dir
	site      *site
	workspace string
	manifest  string
	env       []string // the operator's
}

// pot writes a bottle's manifest, with more of it, and takes away all that is left of it in the end.
func pot(t testing.TB, d *dock, name, more string) *potted {
	t.Helper()
	state, err := os.MkdirTemp("/tmp", "b") //nolint:usetesting // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	p := &potted{t: t, dock: d, programs: programs, name: name, world: &world{state: state}, workspace: t.TempDir()}
	at, image := netip.MustParseAddr("127.0.0.1"), ""
	if d != nil {
		p.programs, at, image = d.dir, d.at, d.base()
	}
	if p.dir, err = bottle.NewDir(filepath.Join(state, name)); err != nil {
		t.Fatal(err)
	}
	p.site = newSite(t, at)
	p.manifest = filepath.Join(t.TempDir(), "bottle.yaml")
	text := fmt.Sprintf(`name: %s
agent: {image: %q, workspace: %s}
%s
egress:
  resolve: {open.example.com: %[5]s, api.example.com: %[5]s, data.example.com: %[5]s, key.example.com: %[5]s}
  allow_cidrs: [%[5]s/32]
  upstream_ca: %s
  routes:
    - {host: open.example.com, ports: [%d]}
`, name, image, p.workspace, more, at, p.site.ca, p.site.at.Port())
	if strings.Contains(more, "credentials:") {
		text += fmt.Sprintf("    - {host: key.example.com, ports: [%d], credential: key}\n", p.site.at.Port())
	}
	if err := os.WriteFile(p.manifest, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	config := os.Getenv("DOCKER_CONFIG") // where compose is, mostly
	if config == "" {
		config = filepath.Join(os.Getenv("HOME"), ".docker")
	}
	p.env = append(os.Environ(), "PATH="+p.programs+":"+os.Getenv("PATH"), "HOME="+t.TempDir(), "XDG_CONFIG_HOME=/nonexistent",
		"DOCKER_CONFIG="+config, "BOTTLE_STATE_DIR="+state, "TERM=xterm", "NO_COLOR=1")
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(p.world.logs())
		}
		for _, left := range append(p.world.clear(), p.onEngine()...) {
			t.Error("left: " + left)
		}
		_ = os.RemoveAll(state)
	})
	return p
}

// in is the same bottle for a part of the test.
func (p *potted) in(t testing.TB) *potted {
	part := *p
	part.t = t
	return &part
}

// randomName is a bottle's: the engine's names are everybody's.
func randomName() string { return "t" + strings.ToLower(rand.Text()[:8]) }

// command is one of the operator's, without a terminal.
func (p *potted) command(args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(p.t.Context()), commandTimeout)
	p.t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, filepath.Join(p.programs, "bottle"), args...)
	cmd.Env = p.env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd
}

// code runs a command of the operator's, which must exit with that code, and returns what it prints.
func (p *potted) code(want int, args ...string) string {
	p.t.Helper()
	out, err := p.command(args...).CombinedOutput()
	var exit *exec.ExitError
	got := 0
	switch {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	case err != nil:
		p.t.Fatal(err)
	}
	if got != want {
		p.t.Fatalf("bottle %q exits with %d, want %d:\n%s", args, got, want, out)
	}
	return string(out)
}

func (p *potted) bottle(args ...string) string {
	p.t.Helper()
	return p.code(0, args...)
}

// inside runs a program in the bottle, which must exit with that code.
func (p *potted) inside(code int, argv ...string) string {
	p.t.Helper()
	return p.code(code, append([]string{"attach", p.name, "--"}, argv...)...)
}

// install puts fetch where the agent has it.
func (p *potted) install() {
	p.t.Helper()
	program, err := os.Executable()
	if err != nil {
		p.t.Fatal(err)
	}
	if p.dock != nil {
		program = filepath.Join(p.dock.dir, "fetch")
	}
	b, err := os.ReadFile(program)
	if err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(p.workspace, "fetch"), b, 0o755); err != nil {
		p.t.Fatal(err)
	}
}

func (p *potted) metadata() bottle.Metadata {
	p.t.Helper()
	m, err := p.dir.LoadMetadata()
	if err != nil {
		p.t.Fatal(err)
	}
	return m
}

// onEngine lists what the engine has of the bottle.
func (p *potted) onEngine() []string {
	p.t.Helper()
	if p.dock == nil {
		return nil
	}
	ctx, f := context.Background(), filters.NewArgs(filters.Arg("label", "bottle.name="+p.name))
	var found []string
	cs, err1 := p.dock.cli.ContainerList(ctx, container.ListOptions{All: true, Filters: f})
	for _, c := range cs {
		found = append(found, "container "+strings.TrimPrefix(c.Names[0], "/"))
	}
	ns, err2 := p.dock.cli.NetworkList(ctx, network.ListOptions{Filters: f})
	for _, n := range ns {
		found = append(found, "network "+n.Name)
	}
	vs, err3 := p.dock.cli.VolumeList(ctx, volume.ListOptions{Filters: f})
	for _, v := range vs.Volumes {
		found = append(found, "volume "+v.Name)
	}
	if err := errors.Join(err1, err2, err3); err != nil {
		p.t.Fatal(err)
	}
	return found
}

// eventually polls cond, which says what is still missing.
func eventually(t testing.TB, cond func() (missing string)) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(commandTimeout); ; <-tick.C {
		missing := cond()
		if missing == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("after %v: %s", commandTimeout, missing)
		}
	}
}

// says fails the test unless the text has each of the words.
func says(t testing.TB, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("it does not say %q:\n%s", w, text)
		}
	}
}

// forget drops what requests have brought so far.
func (s *site) forget() {
	for {
		select {
		case <-s.authorizations:
		default:
			return
		}
	}
}
