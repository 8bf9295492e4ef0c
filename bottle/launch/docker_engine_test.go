package launch_test

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bottle/bottle"
	"bottle/bottle/launch"
)

// The engine is that of the docker command, whose contexts are made here by the command itself.
func TestEngine(t *testing.T) {
	docker, err := exec.LookPath("docker")
	if err != nil {
		t.Logf("NOT RUN, since there is no docker command: %v", err)
		return
	}
	config := t.TempDir()
	for name, host := range map[string]string{"mine": "unix:///run/mine.sock", "other": "unix:///run/other.sock", "far": "ssh://far.example.com", "net": "tcp://192.0.2.1:2376"} {
		cmd := exec.CommandContext(t.Context(), docker, "context", "create", name, "--docker", "host="+host)
		cmd.Env = []string{"DOCKER_CONFIG=" + config, "HOME=" + config, "PATH=" + os.Getenv("PATH")}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	for _, c := range []struct {
		name, host, context, current string
		want                         string // what it is, or what the error says
	}{
		{name: "nothing said", want: "unix:///var/run/docker.sock"},
		{name: "the default context", current: "default", want: "unix:///var/run/docker.sock"},
		{name: "the current context", current: "mine", want: "unix:///run/mine.sock"},
		{name: "another by the environment", current: "mine", context: "other", want: "unix:///run/other.sock"},
		{name: "the default by the environment", current: "mine", context: "default", want: "unix:///var/run/docker.sock"},
		{name: "a host", current: "mine", context: "other", host: "unix:///run/host.sock", want: "unix:///run/host.sock"},
		{name: "a context that is not there", current: "gone", want: `docker context "gone" is not there`},
		{name: "a context of another machine", current: "far", want: `docker context "far": ssh://far.example.com is no engine of this machine`},
		{name: "a context in the network", current: "net", want: `docker context "net": tcp://192.0.2.1:2376 is no engine of this machine`},
		{name: "a host by ssh", host: "ssh://far.example.com", want: "DOCKER_HOST: ssh://far.example.com is no engine of this machine"},
	} {
		t.Run(c.name, func(t *testing.T) {
			settings := fmt.Sprintf(`{"currentContext":%q}`, c.current)
			if err := os.WriteFile(filepath.Join(config, "config.json"), []byte(settings), 0o600); err != nil {
				t.Fatal(err)
			}
			t.Setenv("DOCKER_CONFIG", config)
			t.Setenv("DOCKER_CONTEXT", c.context)
			t.Setenv("DOCKER_HOST", c.host)
			got := ""
			if cli, err := launch.NewEngine(); err != nil {
				got = err.Error()
			} else {
				got = cli.DaemonHost()
				_ = cli.Close()
			}
			if !strings.HasPrefix(got, c.want) {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// A bottle that runs stays on its engine, whatever is said to later commands.
func TestDockerStaysOnItsEngine(t *testing.T) {
	dir, err := bottle.NewDir(filepath.Join(t.TempDir(), "one"))
	if err != nil {
		t.Fatal(err)
	}
	if err := dir.Create(); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DOCKER_HOST", "unix:///nonexistent/now.sock")
	for name, c := range map[string]struct {
		stopped time.Time
		asks    string
	}{
		"it runs":    {asks: "/nonexistent/then.sock"},
		"it stopped": {stopped: time.Now(), asks: "/nonexistent/now.sock"},
	} {
		t.Run(name, func(t *testing.T) {
			err := dir.UpdateMetadata(func(m *bottle.Metadata) error {
				m.StoppedAt, m.Docker = c.stopped, &bottle.DockerIDs{Engine: "unix:///nonexistent/then.sock", Sidecars: "0123456789ab"}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			d, err := launch.NewDocker(launch.DockerConfig{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			_, err = d.Running(t.Context())
			says(t, err, "no container engine answers at unix://"+c.asks)
		})
	}
}
