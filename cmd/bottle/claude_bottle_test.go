package main_test

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"bottle/bottle"
	"bottle/mcp/claudetest"
)

// A claudeBackend is where a bottle of Claude Code's runs.
type claudeBackend struct {
	name string
	args []string // of bottle start
	// programs is the directory of bottle's.
	programs string
	// image is the agent's; empty: the program that the operator has.
	image string
	// outside is the address at which the bundle reaches the test.
	outside netip.Addr
	// workspace is what the agent knows the workspace by.
	workspace func(host string) string
	// mcpConfig is the agent's MCP configuration; empty: the example's.
	mcpConfig string
	sessions  []claudeSession
}

// A claudeBottle is a bottle made of examples/claude-code, with the test's model and site in
// place of those of the internet, and its operator.
type claudeBottle struct {
	t         *testing.T
	backend   claudeBackend
	model     *claudetest.Server
	name      string
	port      int // of the model and of the site, on all *.corp.example
	key       string
	world     *world
	workspace string
	bin       string // where the operator has claude
	manifest  string // its path
	command   []string
	env       []string // the operator's

	mu     sync.Mutex
	faults []string // of requests to the model
	asked  int      // such requests
}

// What the bottle is asked for: one host is granted, the other is not.
const (
	modelHost   = "model.corp.example"
	guideHost   = "guide.corp.example"
	figuresHost = "figures.corp.example"
)

func newClaudeBottle(t *testing.T, program string, backend claudeBackend, script func(*claudeBottle) []claudetest.Step) *claudeBottle {
	t.Helper()
	state, err := os.MkdirTemp("/tmp", "b") //nolint:usetesting // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	b := &claudeBottle{
		t: t, backend: backend, key: "sk-the-operators-own-" + rand.Text(),
		world: &world{state: state}, workspace: t.TempDir(), bin: t.TempDir(),
	}
	t.Cleanup(func() {
		b.clear()
		if t.Failed() {
			t.Log(b.world.logs())
		}
		_ = os.RemoveAll(state)
	})
	ln := b.listen()
	b.model = claudetest.New(script(b)...)
	t.Cleanup(b.model.Close)
	ca := b.serve(ln)
	b.install(program)
	b.write(ca)
	b.env = []string{
		"PATH=" + b.bin + ":" + b.backend.programs + ":" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "BOTTLE_STATE_DIR=" + state,
		"TERM=xterm-256color", "LANG=C.UTF-8", "ANTHROPIC_API_KEY=" + b.key,
		"DOCKER_HOST=" + os.Getenv("DOCKER_HOST"), "DOCKER_CONFIG=" + cmp.Or(os.Getenv("DOCKER_CONFIG"), os.ExpandEnv("${HOME}/.docker")),
	}
	return b
}

// url is a page of a host's.
func (b *claudeBottle) url(host, path string) string {
	return fmt.Sprintf("https://%s:%d%s", host, b.port, path)
}

// listen takes the port for the model and the site.
func (b *claudeBottle) listen() net.Listener {
	ln, err := (&net.ListenConfig{}).Listen(b.t.Context(), "tcp", netip.AddrPortFrom(b.backend.outside, 0).String())
	if err != nil {
		b.t.Fatal(err)
	}
	at, err := netip.ParseAddrPort(ln.Addr().String())
	if err != nil {
		b.t.Fatal(err)
	}
	b.port = int(at.Port())
	b.name = fmt.Sprintf("claude-%d", b.port)
	return ln
}

// serve starts the model and the site, and returns the CA that signs for both.
func (b *claudeBottle) serve(ln net.Listener) (ca []byte) {
	cert, ca := certificate(b.t, "*.corp.example")
	to, err := url.Parse(b.model.URL())
	if err != nil {
		b.t.Fatal(err)
	}
	model := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) }}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := strings.Cut(r.Host, ":")
		if host != modelHost {
			fmt.Fprintf(w, "%s says: bring a towel\n", host)
			return
		}
		b.count(r)
		model.ServeHTTP(w, r)
	}))
	_ = srv.Listener.Close()
	srv.Listener = ln
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	srv.StartTLS()
	b.t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	return ca
}

// count looks at a request to the model: it must carry the operator's key, and that alone.
func (b *claudeBottle) count(r *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked++
	if got := r.Header.Values("X-Api-Key"); !slices.Equal(got, []string{b.key}) {
		b.faults = append(b.faults, fmt.Sprintf("%s %s came with the key %q", r.Method, r.URL.Path, got))
	}
	for name, values := range r.Header {
		for _, v := range values {
			if strings.Contains(v, claudetest.Key) || strings.HasPrefix(name, "Proxy-") {
				b.faults = append(b.faults, fmt.Sprintf("%s %s came with %s: %s", r.Method, r.URL.Path, name, v))
			}
		}
	}
}

// home is the agent's, in the workspace. No other bottle's agent has one of this name.
func (b *claudeBottle) home() string { return "home-of-" + b.name }

// install puts Claude Code in the operator's PATH, and what it would ask a user at its first start
// into a home in the workspace.
func (b *claudeBottle) install(program string) {
	if err := os.Symlink(program, filepath.Join(b.bin, "claude")); err != nil {
		b.t.Fatal(err)
	}
	home := filepath.Join(b.workspace, b.home())
	if err := os.Mkdir(home, 0o700); err != nil {
		b.t.Fatal(err)
	}
	if err := claudetest.Prepare(home, b.backend.workspace(b.workspace)); err != nil {
		b.t.Fatal(err)
	}
}

// write makes the manifest of the example's, and lays the example's workspace out.
func (b *claudeBottle) write(ca []byte) {
	t := b.t
	example := filepath.Join("..", "..", "examples", "claude-code")
	if err := os.CopyFS(b.workspace, os.DirFS(filepath.Join(example, "work"))); err != nil {
		t.Fatal(err)
	}
	m := exampleManifest(t, filepath.Join(example, "bottle.yaml"))
	inside := b.backend.workspace(b.workspace)

	dir := t.TempDir()
	m.Name = b.name
	if b.backend.image != "" {
		m.Agent.Image = b.backend.image
	}
	m.Agent.Workspace = b.workspace
	if i := slices.Index(m.Agent.Command, "--mcp-config"); b.backend.mcpConfig != "" {
		m.Agent.Command[i+1] = b.backend.mcpConfig
	}
	b.command = append(m.Agent.Command, "--strict-mcp-config", "--dangerously-skip-permissions")
	for _, kv := range claudetest.Environ(inside+"/"+b.home(), b.url(modelHost, "")) {
		k, v, _ := strings.Cut(kv, "=")
		m.Agent.Env[k] = v
	}
	c := m.Credentials["anthropic"]
	c.Hosts = []bottle.Host{modelHost}
	m.Credentials["anthropic"] = c
	m.Egress.Routes[0].Host, m.Egress.Routes[0].Ports = modelHost, []int{b.port}
	m.Egress.Resolve = map[bottle.Host]netip.Addr{}
	for _, h := range []bottle.Host{modelHost, guideHost, figuresHost} {
		m.Egress.Resolve[h] = b.backend.outside
	}
	m.Egress.AllowCIDRs = []netip.Prefix{netip.PrefixFrom(b.backend.outside, 32)}
	m.Egress.UpstreamCA = filepath.Join(dir, "ca.pem")
	text, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	b.manifest = filepath.Join(dir, "bottle.yaml")
	for path, text := range map[string][]byte{m.Egress.UpstreamCA: ca, b.manifest: text} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func exampleManifest(t *testing.T, path string) *bottle.Manifest {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	m, err := bottle.ParseManifest(text, path, func(string) (string, bool) { return "", false }, "/nowhere")
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// start is the operator's command that runs Claude Code in the bottle.
func (b *claudeBottle) start(ctx context.Context, args ...string) *exec.Cmd {
	argv := append([]string{"start", "-f", b.manifest}, b.backend.args...)
	argv = append(append(argv, "--"), b.command...)
	cmd := exec.CommandContext(ctx, filepath.Join(b.backend.programs, "bottle"), append(argv, args...)...)
	cmd.Env = b.env
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // so that it stops the bottle
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// operate runs another of the operator's commands.
func (b *claudeBottle) operate(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(b.backend.programs, "bottle"), args...)
	cmd.Env = b.env
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("bottle %s: %w: %s", strings.Join(args, " "), err, exit.Stderr)
	}
	return string(out), err
}

// counter grants the guide alone, for ten minutes, of the request that waits.
func (b *claudeBottle) counter(ctx context.Context) error {
	offer := []string{"r1", "--only", guideHost, "--ttl", "10m"}
	text, err := b.operate(ctx, append([]string{"show", "--json"}, offer...)...)
	if err != nil {
		return err
	}
	var shown struct{ Digest string }
	if err := json.Unmarshal([]byte(text), &shown); err != nil {
		return fmt.Errorf("show --json: %w", err)
	}
	_, err = b.operate(ctx, append([]string{"approve", "--digest", shown.Digest, "--note", counterNote}, offer...)...)
	return err
}

// told returns the text that came to the model when it took the step whose On is on.
func (b *claudeBottle) told(on string) string {
	requests, _ := b.model.Requests()
	for _, r := range requests {
		if len(r.Tools) > 0 && strings.Contains(r.Last, on) {
			return r.Last
		}
	}
	b.t.Errorf("the model was never told %q", on)
	return ""
}

// checkProcesses looks for the operator's key in the environments of the agent's processes.
func (b *claudeBottle) checkProcesses() {
	b.t.Helper()
	agents := b.processes()
	if len(agents) == 0 {
		b.t.Error("no process of the agent's was found")
	}
	for pid, env := range agents {
		if strings.Contains(env, b.key) {
			b.t.Errorf("process %d of the agent's has the key: %s", pid, cmdline(pid))
		}
	}
}

// processes are the agent's, with their environments.
func (b *claudeBottle) processes() map[int]string {
	own := "\x00CLAUDE_CONFIG_DIR=" + b.backend.workspace(b.workspace) + "/" + b.home() + "/"
	out := map[int]string{}
	environs, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, path := range environs {
		env, err := os.ReadFile(path) // it fails for what has ended, and for another user's
		var pid int
		if _, scan := fmt.Sscanf(path, "/proc/%d/", &pid); err == nil && scan == nil && strings.Contains("\x00"+string(env), own) {
			out[pid] = string(env)
		}
	}
	return out
}

// checkKey looks at the key of each request to the model, and for it in what the agent and the
// bottle have written.
func (b *claudeBottle) checkKey() {
	t := b.t
	t.Helper()
	b.mu.Lock()
	for _, f := range b.faults {
		t.Error(f)
	}
	if b.asked == 0 {
		t.Error("no request came to the model by way of egress")
	}
	b.mu.Unlock()
	for _, dir := range []string{b.workspace, b.world.state} {
		if err := b.search(dir); err != nil {
			t.Error(err)
		}
	}
}

// search looks for the operator's key in all files below dir.
func (b *claudeBottle) search(dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		text, err := root.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) { // bottle start is still tidying up
			return nil
		}
		if strings.Contains(string(text), b.key) {
			b.t.Errorf("%s has the key", filepath.Join(dir, path))
		}
		return err
	})
}

// clear ends what is left, and tells of it.
func (b *claudeBottle) clear() {
	for _, left := range b.world.clear() {
		b.t.Error(left)
	}
	for end := time.Now().Add(5 * time.Second); ; {
		agents := b.processes()
		if len(agents) == 0 {
			return
		}
		if time.Now().After(end) {
			for pid := range agents {
				b.t.Errorf("process %d of the agent's outlived the bottle: %s", pid, cmdline(pid))
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			return
		}
		<-time.After(10 * time.Millisecond)
	}
}
