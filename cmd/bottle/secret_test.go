package main_test

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"

	"bottle/bottle"
	"bottle/bottle/launch"
)

// A route's secret is read on the host, reaches egress alone, and is nowhere else: wherever
// something could show it, it is looked for, and each way of looking is shown to work by what it must find.
func TestSecretIsNowhereElse(t *testing.T) {
	t.Run("local", func(t *testing.T) {
		for _, f := range launch.CheckSandbox(t.Context()) {
			if f.State == launch.FindingFailed {
				if os.Getenv("BOTTLE_REQUIRE_DOCKER") == "1" {
					t.Fatalf("BOTTLE_REQUIRE_DOCKER=1, but: %s: %s; fix: %s", f.What, f.Detail, f.Fix)
				}
				t.Logf("NOT RUN, since this machine permits no sandbox: %s: %s; fix: %s", f.What, f.Detail, f.Fix)
				return
			}
		}
		testSecret(t, nil)
	})
	t.Run("docker", func(t *testing.T) {
		if d := newDock(t); d != nil {
			testSecret(t, d)
		}
	})
}

func testSecret(t *testing.T, d *dock) {
	const credentials = "credentials:\n  key: {header: Authorization, scheme: Bearer, token_env: BOTTLE_TEST_TOKEN, hosts: [key.example.com]}"
	s := newSearch()
	p := pot(t, d, randomName(), credentials)
	p.env = append(p.env, "BOTTLE_TEST_TOKEN=tok/"+s.secret+"+=")
	p.install()
	p.bottle("start", "-f", p.manifest, "--detach")
	says(t, p.inside(0, "./fetch", p.site.url("key", "/")), "200 key.example.com")
	if got := <-p.site.authorizations; got != "Bearer tok/"+s.secret+"+=" {
		t.Fatalf("the site got %q", got)
	}

	s.agent(t, p)
	for _, page := range []string{"routes", "denials", "healthz"} {
		s.look(t, "egress' /"+page, p.inside(0, "./fetch", "http://egress.bottle.internal/"+page))
	}
	session := p.session()
	for _, tool := range []string{"list_routes", "list_denials", "list_requests"} {
		s.look(t, tool, session.call(tool, "{}").text)
	}
	s.look(t, "check_access", session.call("check_access", fmt.Sprintf(`{"url":%q}`, p.site.url("key", "/"))).text)
	for _, args := range [][]string{{"routes", "--json"}, {"allowlist"}, {"audit"}, {"ls", "--json"}, {"logs", p.name}, {"logs", p.name, "--egress"}, {"doctor"}} {
		s.look(t, "bottle "+args[0], p.bottle(args...))
	}
	s.state(t, p)
	if d != nil {
		s.engine(t, p)
	}
	s.processes(t, p)
	p.bottle("stop", p.name)
	s.state(t, p) // with the logs that a stop keeps
	t.Logf("%d places were looked at", s.places)
}

// A search is for a secret in the forms that it may have.
type search struct {
	secret, bait string // bait is where it must be found
	forms        []string
	places       int
}

func newSearch() *search {
	s := &search{secret: rand.Text(), bait: rand.Text()}
	s.forms = []string{s.secret, strings.ToLower(s.secret), hex.EncodeToString([]byte(s.secret))}
	for before := range 3 { // base64 has three alignments
		text := base64.RawStdEncoding.EncodeToString([]byte(strings.Repeat("x", before) + s.secret))
		s.forms = append(s.forms, text[(before*8+5)/6:len(text)-1]) // what else than the secret decides is left out
	}
	return s
}

func (s *search) in(text string) bool {
	return slices.ContainsFunc(s.forms, func(form string) bool { return strings.Contains(text, form) })
}

// look fails the test if the text has the secret, or if there is none to look at.
func (s *search) look(t *testing.T, where, text string) {
	t.Helper()
	s.places++
	if text == "" {
		t.Errorf("%s: there is nothing to look at", where)
	}
	if s.in(text) {
		t.Errorf("%s: it has the secret", where)
	}
}

// state looks at each file of the state directory.
func (s *search) state(t *testing.T, p *potted) {
	t.Helper()
	before := s.places
	if s.files(t, p.dir.Path()); s.places < before+10 {
		t.Errorf("%d files", s.places-before)
	}
}

// files looks at each file below a directory.
func (s *search) files(t *testing.T, dir string) {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Error(err)
		return
	}
	defer root.Close()
	err = fs.WalkDir(root.FS(), ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := root.ReadFile(path)
		s.look(t, filepath.Join(dir, path), string(b)+".")
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// agent has the agent look: at environments, and in each file that it can read but for the
// system's. The patterns come by its input, so that no argument has them.
func (s *search) agent(t *testing.T, p *potted) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(p.workspace, "bait"), []byte(s.bait), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := p.command("attach", p.name, "--", "sh", "-c", `patterns=$(cat)
		cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline | tr '\0' '\n'
		find / \( -path /proc -o -path /sys -o -path /dev -o -path /usr \) -prune -o -type f -exec grep -lF -e "$patterns" {} + 2>/dev/null | sed 's/^/FOUND /'; echo end`)
	cmd.Stdin = strings.NewReader(strings.Join(append(slices.Clone(s.forms), s.bait), "\n"))
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	found := ""
	for line := range strings.Lines(string(out)) {
		if path, ok := strings.CutPrefix(line, "FOUND "); ok {
			found += path
		}
	}
	if !strings.HasSuffix(found, "/bait\n") || strings.Count(found, "\n") != 1 {
		t.Errorf("the agent finds a secret in:\n%s", found)
	}
	says(t, string(out), "HTTPS_PROXY=", "end\n")
	s.look(t, "the agent's environment", string(out))
}

// engine looks at all that the engine shows of the bottle.
func (s *search) engine(t *testing.T, p *potted) {
	t.Helper()
	ctx, cli := t.Context(), p.dock.cli
	show := func(what string, v any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		text, isText := v.([]byte)
		if !isText {
			if text, err = json.Marshal(v); err != nil {
				t.Fatal(err)
			}
		}
		s.look(t, what, string(text))
	}
	list, err := cli.ContainerList(ctx, container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", "com.docker.compose.project=bottle-"+p.name))})
	show("docker ps", list, err)
	if len(list) != 2 {
		t.Errorf("%d containers", len(list))
	}
	for _, c := range list {
		_, raw, err := cli.ContainerInspectWithRaw(ctx, c.ID, true)
		show("docker inspect "+c.Names[0], raw, err)
		i, err := cli.ImageInspect(ctx, c.ImageID)
		show("docker image inspect "+c.Image, i, err)
		h, err := cli.ImageHistory(ctx, c.ImageID)
		show("docker history "+c.Image, h, err)
		top, err := cli.ContainerTop(ctx, c.ID, nil)
		show("docker top "+c.Names[0], top, err)
		diff, err := cli.ContainerDiff(ctx, c.ID)
		show("docker diff "+c.Names[0], diff, err)
	}
	ids := p.metadata().Docker
	for _, id := range ids.Networks {
		n, raw, err := cli.NetworkInspectWithRaw(ctx, id, networkVerbose)
		show("docker network inspect "+n.Name, raw, err)
	}
	_, raw, err := cli.VolumeInspectWithRaw(ctx, ids.Volume)
	show("docker volume inspect", raw, err)
	cmd := dockerCommand(p, "logs", ids.Sidecars)
	out, err := cmd.CombinedOutput()
	show("docker logs", out, err)
	cmd = dockerCommand(p, "compose", "-p", "bottle-"+p.name, "-f", p.dir.Path("docker-compose.yml"), "config")
	out, err = cmd.CombinedOutput()
	show("docker compose config", out, err)
}

// processes looks at those of the bundle, through the kernel.
func (s *search) processes(t *testing.T, p *potted) {
	t.Helper()
	daemons := map[string]bool{}
	for _, pid := range bundlePIDs(t, p) {
		name := daemonName(pid)
		daemons[name] = true
		if !s.shown(t, p, pid, name) {
			continue
		}
		found, err := s.memory(pid)
		switch {
		case err != nil:
			t.Errorf("%s: %v", name, err)
		case found != (name == bottle.DaemonEgress):
			t.Errorf("memory of %s (%d): the secret is in it: %v", name, pid, found)
		}
		s.places++
	}
	for _, name := range []string{"init", bottle.DaemonEgress, bottle.DaemonPipelock, bottle.DaemonSupervise} {
		if !daemons[name] {
			t.Errorf("no process of %s among %v", name, daemons)
		}
	}
}
