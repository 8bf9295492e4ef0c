package launch_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/client"
	"golang.org/x/sys/unix"

	"bottle/bottle"
	"bottle/bottle/launch"
)

// says fails the test unless the error has each of the words.
func says(t *testing.T, err error, words ...string) {
	t.Helper()
	for _, w := range words {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("error %v does not say %q", err, w)
		}
	}
}

// Whatever is not there is named, with what to do, and nothing is made meanwhile.
func TestDockerRefuses(t *testing.T) {
	d := engine(t)
	if d == nil {
		return
	}
	nothingLeft := func(t *testing.T, p *pot) {
		t.Helper()
		if left := p.onEngine(t); len(left) > 0 {
			t.Errorf("left: %q", left)
		}
	}
	t.Run("no image for the agent", func(t *testing.T) {
		p := newPot(t, d, func(m *bottle.Manifest) { m.Agent.Image = "bottle-test-none" })
		err := p.prepare(t.Context(), t)
		says(t, err, "bottle-test-none is not there", "docker pull")
		if !errors.Is(err, bottle.ErrNotFound) {
			t.Errorf("%v", err)
		}
		nothingLeft(t, p)
	})
	t.Run("a colon in the workspace's path", func(t *testing.T) {
		p := newPot(t, d, func(m *bottle.Manifest) { m.Agent.Workspace += "/a:b" })
		if err := os.Mkdir(p.m.Agent.Workspace, 0o755); err != nil {
			t.Fatal(err)
		}
		says(t, p.prepare(t.Context(), t), "agent.workspace", "colon")
		nothingLeft(t, p)
	})
	t.Run("none named", func(t *testing.T) {
		p := newPot(t, d, func(m *bottle.Manifest) { m.Agent.Image = "" })
		says(t, p.prepare(t.Context(), t), "agent.image", launch.ClaudeImage)
		nothingLeft(t, p)
	})
	t.Run("no image for the bundle", func(t *testing.T) {
		none := *d
		none.bundle = "bottle-test-none"
		p := newPot(t, &none)
		says(t, p.prepare(t.Context(), t), "bottle-test-none is not there", "bottle image build")
		nothingLeft(t, p)
	})
	t.Run("the image has no sleep", func(t *testing.T) {
		p := newPot(t, d, func(m *bottle.Manifest) { m.Agent.Image = d.scratch(t) })
		if err := p.prepare(t.Context(), t); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Ensure(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, err := p.WaitReady(t.Context())
		says(t, err, "the agent's container ended at once, with code 127", "bottle-test-scratch", "must have the program sleep")
	})
	t.Run("no bottle-mcp anywhere", func(t *testing.T) {
		none := *d
		none.programs = t.TempDir()
		p := newPot(t, &none)
		if err := p.prepare(t.Context(), t); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Ensure(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, err := p.WaitReady(t.Context())
		says(t, err, "the agent would have no bottle-mcp", d.base)
	})
	t.Run("a workspace that was replaced", func(t *testing.T) {
		// By a link, as an agent could that may write above it: the engine would mount what it leads to.
		p := newPot(t, d)
		if err := p.prepare(t.Context(), t); err != nil {
			t.Fatal(err)
		}
		secret := t.TempDir()
		if err := errors.Join(os.Remove(p.m.Agent.Workspace), os.Symlink(secret, p.m.Agent.Workspace)); err != nil {
			t.Fatal(err)
		}
		_, err := p.Ensure(t.Context())
		says(t, err, "agent.workspace", "is not the directory any more")
		for _, left := range p.onEngine(t) {
			if strings.HasPrefix(left, "container") && strings.Contains(left, "agent") {
				t.Error("the agent's container is there")
			}
		}
	})
	t.Run("an old compose", func(t *testing.T) {
		p := newPot(t, d)
		fakeDocker(t, "echo 1.29.2")
		says(t, p.prepare(t.Context(), t), "1.29.2", "too old", "version 2")
		nothingLeft(t, p)
	})
	t.Run("no compose", func(t *testing.T) {
		p := newPot(t, d)
		fakeDocker(t, "echo \"docker: 'compose' is not a docker command.\" >&2; exit 1")
		says(t, p.prepare(t.Context(), t), "is not a docker command", "install the compose plugin")
		nothingLeft(t, p)
	})
	t.Run("no docker command", func(t *testing.T) {
		p := newPot(t, d)
		old := os.Getenv("PATH")
		t.Setenv("PATH", t.TempDir())
		says(t, p.prepare(t.Context(), t), "docker command was not found", "install")
		t.Setenv("PATH", old)
		nothingLeft(t, p)
	})
	t.Run("no space", func(t *testing.T) {
		p := newPot(t, d)
		if err := p.prepare(t.Context(), t); err != nil {
			t.Fatal(err)
		}
		fakeDocker(t, `case "$*" in *version*) echo 2.30.0;; *) echo "write /var/lib/x: no space left on device" >&2; exit 1;; esac`)
		_, err := p.Ensure(t.Context())
		says(t, err, "the engine has no space left", "docker system df", "/var/lib/x")
	})
	t.Run("a network's name taken", func(t *testing.T) {
		p := newPot(t, d)
		if err := p.prepare(t.Context(), t); err != nil {
			t.Fatal(err)
		}
		name := "bottle-" + p.m.Name + "-outgoing"
		n, err := d.cli.NetworkCreate(t.Context(), name, network.CreateOptions{Internal: true, IPAM: &network.IPAM{Config: []network.IPAMConfig{{Subnet: "10.212.0.0/28"}}}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = d.cli.NetworkRemove(context.Background(), n.ID) })
		_, err = p.Ensure(t.Context())
		says(t, err, name+" is taken", "not of a bottle")
	})
	t.Run("the name of another's bottle", func(t *testing.T) {
		p := newPot(t, d)
		p.up(t)
		q := newPot(t, d)
		dir, err := bottle.NewDir(filepath.Join(filepath.Dir(q.dir.Path()), p.m.Name))
		if err != nil {
			t.Fatal(err)
		}
		if err := dir.Create(); err != nil {
			t.Fatal(err)
		}
		q.dir, q.m.Name = dir, p.m.Name
		q.Docker = q.open(t)
		says(t, q.prepare(t.Context(), t), "is taken", p.dir.Path())
		if err := q.Stop(t.Context()); err != nil {
			t.Error(err)
		}
		if running, err := p.Running(t.Context()); !running || err != nil {
			t.Errorf("the other's bottle: %v, %v", running, err)
		}
		q.m.Name = "" // what p has is p's to remove
	})
}

// fakeDocker puts a script in the place of the docker command.
func fakeDocker(t *testing.T, script string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "docker"), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// Interrupted at any moment, and stopped, it leaves nothing.
func TestDockerInterrupted(t *testing.T) {
	d := engine(t)
	if d == nil {
		return
	}
	for _, after := range []time.Duration{0, 50 * time.Millisecond, 200 * time.Millisecond, 700 * time.Millisecond, 1500 * time.Millisecond, 2500 * time.Millisecond, 4 * time.Second} {
		t.Run(after.String(), func(t *testing.T) {
			p := newPot(t, d)
			ctx, cancel := context.WithTimeout(t.Context(), after)
			defer cancel()
			err := p.prepare(ctx, t)
			if err != nil {
				if left := p.onEngine(t); len(left) > 0 {
					t.Errorf("left of a prepare that failed: %q", left)
				}
			} else {
				_, err = p.Ensure(ctx)
			}
			t.Logf("%v", err)
			if err := p.Stop(ctx); err != nil {
				t.Errorf("stop: %v", err)
			}
			if left := p.onEngine(t); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
		})
	}
}

// Who tears down waits for a compose whose parent was killed.
func TestDockerStopWaitsForCompose(t *testing.T) {
	d := engine(t)
	if d == nil {
		return
	}
	p := newPot(t, d)
	lock, err := os.OpenFile(p.dir.Path("run", "compose.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan error, 1)
	go func() { stopped <- p.Stop(t.Context()) }()
	select {
	case err := <-stopped:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// What a kill -9 left is found by its labels, if its bottle is not alive.
func TestCleanupDocker(t *testing.T) {
	d := engine(t)
	if d == nil {
		return
	}
	p := newPot(t, d)
	p.up(t)
	ours := func(alive bool) func(*bottle.Dir) bool { // all others on this engine are left alone
		return func(dir *bottle.Dir) bool { return alive || dir.Path() != p.dir.Path() }
	}
	if removed, err := launch.CleanupDocker(t.Context(), d.cli, ours(true)); err != nil || len(removed) > 0 {
		t.Fatalf("of those that are alive: %q, %v", removed, err)
	}
	unlock, err := p.dir.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if removed, err := launch.CleanupDocker(t.Context(), d.cli, ours(false)); err != nil || len(removed) > 0 {
		t.Fatalf("of one that is being started: %q, %v", removed, err)
	}
	unlock()
	removed, err := launch.CleanupDocker(t.Context(), d.cli, ours(false))
	if err != nil {
		t.Fatal(err)
	}
	project := "bottle-" + p.m.Name
	for _, want := range []string{"container " + project + "-sidecars-1", "container " + project + "-agent-1", "network " + project + "-internal", "network " + project + "-outgoing", "volume " + project + "-socket"} {
		if !slices.Contains(removed, want) {
			t.Errorf("%q was not removed, but %q", want, removed)
		}
	}
	// The bottle that they are taken from can be started again.
	p.up(t)
}

// An engine that goes away takes no decision with it: what can't be known is an error.
func TestDockerEngineGoesAway(t *testing.T) {
	d := engine(t)
	if d == nil {
		return
	}
	p := newPot(t, d)
	p.up(t)
	door := newDoor(t, d.cli.DaemonHost())
	cli, err := client.NewClientWithOpts(client.WithHost(door.host), client.WithAPIVersionNegotiation())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cli.Close() })
	b, err := launch.NewDocker(launch.DockerConfig{Dir: p.dir, Manifest: p.m, Client: cli, Image: d.bundle, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if running, err := b.Running(t.Context()); !running || err != nil {
		t.Fatalf("%v, %v", running, err)
	}

	in, keep, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer keep.Close()
	out := tempFile(t, "")
	var agentErr error
	var wg sync.WaitGroup
	wg.Go(func() {
		_, agentErr = b.RunAgent(t.Context(), launch.Agent{Argv: []string{"sh", "-c", "echo up; cat"}, In: in, Out: out, Err: out})
	})
	eventually(t, func() string {
		if b, _ := os.ReadFile(out.Name()); string(b) != "up\n" {
			return "the agent is not up"
		}
		return ""
	})
	door.shut()
	wg.Wait()
	says(t, agentErr, "no container engine answers")
	if running, err := b.Running(t.Context()); err == nil {
		t.Errorf("running %v without a word of the engine", running)
	} else {
		says(t, err, "no container engine answers at "+door.host, "DOCKER_HOST")
	}
	for what, err := range map[string]error{
		"signal": b.Signal(t.Context(), bottle.SignalReload), "stop": b.Stop(t.Context()),
		"ensure": func() error { _, err := b.Ensure(t.Context()); return err }(),
	} {
		if err == nil {
			t.Errorf("%s: no error", what)
		}
		says(t, err, "no container engine answers")
	}
	door.open(t)
	if running, err := b.Running(t.Context()); !running || err != nil {
		t.Errorf("after it came back: %v, %v", running, err)
	}
	if err := b.Signal(t.Context(), bottle.SignalReload); err != nil {
		t.Error(err)
	}
}

// A door to the engine's socket can be shut.
type door struct {
	host, target string
	mu           sync.Mutex
	ln           net.Listener
	conns        []net.Conn
	wg           sync.WaitGroup
}

func newDoor(t *testing.T, engine string) *door {
	t.Helper()
	target, ok := strings.CutPrefix(engine, "unix://")
	if !ok {
		t.Fatalf("the engine's address %s is no unix socket", engine)
	}
	tmp, err := os.MkdirTemp("", "d") //nolint:usetesting // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(tmp) })
	d := &door{host: "unix://" + tmp + "/s", target: target}
	d.open(t)
	t.Cleanup(d.shut)
	return d
}

func (d *door) open(t *testing.T) {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(context.Background(), "unix", strings.TrimPrefix(d.host, "unix://"))
	if err != nil {
		t.Fatal(err)
	}
	d.ln = ln
	d.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			up, err := (&net.Dialer{}).DialContext(context.Background(), "unix", d.target)
			if err != nil {
				_ = c.Close()
				continue
			}
			d.mu.Lock()
			d.conns = append(d.conns, c, up)
			d.mu.Unlock()
			for _, pair := range [][2]net.Conn{{c, up}, {up, c}} {
				d.wg.Go(func() {
					_, _ = io.Copy(pair[0], pair[1])
					_ = pair[0].(*net.UnixConn).CloseWrite() //nolint:errcheck // it is one
				})
			}
		}
	})
}

func (d *door) shut() {
	_ = d.ln.Close()
	d.mu.Lock()
	for _, c := range d.conns {
		_ = c.Close()
	}
	d.conns = nil
	d.mu.Unlock()
	d.wg.Wait()
}

// scratch is an image with nothing to run in it.
func (d *dock) scratch(t *testing.T) string {
	t.Helper()
	name := "bottle-test-scratch:" + strings.ToLower(rand.Text()[:10])
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := errors.Join(w.WriteHeader(&tar.Header{Name: "etc/", Mode: 0o755, Typeflag: tar.TypeDir}), w.Close()); err != nil {
		t.Fatal(err)
	}
	r, err := d.cli.ImageImport(t.Context(), image.ImportSource{Source: &buf, SourceName: "-"}, name, image.ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = d.cli.ImageRemove(context.Background(), name, image.RemoveOptions{Force: true}) })
	return name
}
