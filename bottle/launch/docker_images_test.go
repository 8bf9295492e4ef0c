package launch_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/image"

	"bottle/bottle"
	"bottle/bottle/launch"
)

func TestBuildImages(t *testing.T) {
	d := engine(t)
	if d == nil {
		return
	}
	build := func(t *testing.T, args map[string]string, program func(string) string, images ...string) (image.InspectResponse, string, error) {
		t.Helper()
		tag := "bottle-test-built:" + strings.ToLower(rand.Text()[:10])
		t.Cleanup(func() {
			_, _ = d.cli.ImageRemove(context.Background(), tag, image.RemoveOptions{Force: true, PruneChildren: true})
		})
		var progress bytes.Buffer
		err := launch.BuildImages(t.Context(), launch.ImageConfig{Client: d.cli, Program: program, Args: args, Tag: func(string) string { return tag }, Progress: &progress}, images...)
		if err != nil {
			return image.InspectResponse{}, progress.String(), err
		}
		i, err := d.cli.ImageInspect(t.Context(), tag)
		if err != nil {
			t.Fatal(err)
		}
		return i, progress.String(), nil
	}
	t.Run("Claude Code, on a base that has it", func(t *testing.T) {
		i, progress, err := build(t, map[string]string{"BASE_IMAGE": d.base, "APT_PACKAGES": "", "CLAUDE_VERSION": ""}, d.program, launch.ClaudeImage)
		if err != nil {
			t.Fatalf("%v\n%s", err, progress)
		}
		if i.Config.User != "1000:1000" || !strings.Contains(progress, "COPY bottle-mcp") {
			t.Errorf("%+v\n%s", i.Config, progress)
		}
	})
	t.Run("the bundle with a pipelock", func(t *testing.T) {
		i, progress, err := build(t, map[string]string{"BASE_IMAGE": d.base, "PIPELOCK_IMAGE": d.base, "PIPELOCK_PATH": "/bin/busybox"}, d.program, launch.BundleImage)
		if err != nil {
			t.Fatalf("%v\n%s", err, progress)
		}
		if i.Config.Labels["bottle.pipelock"] != "/usr/local/bin/pipelock" || i.Config.User != "65532:65532" {
			t.Errorf("%+v", i.Config)
		}
		p := newPot(t, d)
		with := *d
		with.bundle = i.ID
		p.dock = &with
		p.Docker = p.open(t)
		if err := p.prepare(t.Context(), t); err != nil {
			t.Fatal(err)
		}
		var cfg bottle.BundleConfig
		if err := bottle.ReadJSON(p.dir.BundleConfig(), 0, &cfg); err != nil || cfg.Binary != "/usr/local/bin/pipelock" {
			t.Errorf("%q, %v", cfg.Binary, err)
		}
		outdated(t, p.Docker, d.program)
	})
	t.Run("refusals", func(t *testing.T) {
		dynamic := filepath.Join(t.TempDir(), "dynamic")
		sh, err := os.ReadFile("/bin/ls")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dynamic, sh, 0o755); err != nil {
			t.Fatal(err)
		}
		is := func(path string) func(string) string { return func(string) string { return path } }
		for name, c := range map[string]struct {
			args    map[string]string
			program func(string) string
			image   string
			says    string
		}{
			"an image that there is not":  {program: d.program, image: "x", says: `no image "x"`},
			"an argument that none has":   {program: d.program, image: launch.BundleImage, args: map[string]string{"CLAUDE_VERSION": "1"}, says: "build argument CLAUDE_VERSION"},
			"a program that is not there": {program: is(""), image: launch.BundleImage, says: "bottle-sidecars was not found"},
			"a program with libraries":    {program: is(dynamic), image: launch.BundleImage, says: "CGO_ENABLED=0"},
			"no program":                  {program: is("/dev/null"), image: launch.ClaudeImage, says: "no Linux program"},
			"a base that is not there":    {program: d.program, image: launch.ClaudeImage, args: map[string]string{"BASE_IMAGE": "bottle-test-none:1"}, says: "bottle-test-none"},
		} {
			t.Run(name, func(t *testing.T) {
				_, _, err := build(t, c.args, c.program, c.image)
				says(t, err, c.says)
			})
		}
		if err := launch.BuildImages(t.Context(), launch.ImageConfig{}); err == nil || errors.Is(err, bottle.ErrNotFound) {
			t.Errorf("without a client: %v", err)
		}
	})
}

// outdated compares an image that was just built with the programs it was built of, and others.
func outdated(t *testing.T, d *launch.Docker, program func(string) string) {
	t.Helper()
	newer := filepath.Join(t.TempDir(), "bottle-supervise")
	b, err := os.ReadFile(program("bottle-supervise"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(newer, append(b, 0), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ path, says string }{
		"the same": {path: program("bottle-supervise")},
		"nothing":  {path: ""},
		"newer":    {path: newer, says: "holds other programs than this bottle's, as after an update; bottle image build bottle-sidecars makes it anew"},
	} {
		got, err := d.Outdated(t.Context(), func(n string) string {
			if n == "bottle-supervise" {
				return c.path
			}
			return program(n)
		})
		if err != nil || (got == "") != (c.says == "") || !strings.Contains(got, c.says) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}
