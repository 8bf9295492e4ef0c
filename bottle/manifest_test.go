package bottle_test

import (
	"encoding/pem"
	"errors"
	"io/fs"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"bottle/bottle"
)

func env(m map[string]string) func(string) (string, bool) {
	return func(k string) (string, bool) { v, ok := m[k]; return v, ok }
}

func parse(t *testing.T, text string) *bottle.Manifest {
	t.Helper()
	m, err := bottle.ParseManifest([]byte(text), "/m/bottle.yaml", env(map[string]string{"LANG": "C", "X": "ex"}), "/home/op")
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestDefaultManifest(t *testing.T) {
	want := bottle.DefaultManifest()
	want.Name = "a"
	want.Agent.Workspace = "/m" // relative to the file
	if got := parse(t, "name: a\n"); !reflect.DeepEqual(got, want) {
		t.Errorf("a manifest with nothing but a name:\n got %+v\nwant %+v", got, want)
	}
	bottle.DefaultManifest().Agent.Env["X"] = "y"
	if len(bottle.DefaultManifest().Agent.Env) != 0 {
		t.Error("two defaults share a map")
	}
}

func example(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "examples", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestExampleHasTheDefaults(t *testing.T) {
	text := example(t, "bottle.yaml")
	want := bottle.DefaultManifest()
	want.Name = "example"
	want.Agent.Workspace = "/m"
	if got := parse(t, text); !reflect.DeepEqual(got, want) {
		t.Errorf("examples/bottle.yaml is not the defaults:\n got %+v\nwant %+v", got, want)
	}
	uncommented := uncomment(text)
	for _, key := range keys(reflect.TypeFor[bottle.Manifest]()) {
		if key == "grant" || key == "at" || key == "by" || key == "request" || key == "duration" || key == "expires_at" || key == "boot_id" || key == "boot_expires" {
			continue // bottle writes those, not an operator
		}
		if !regexp.MustCompile(`(?m)(^|[ {])` + key + `:`).MatchString(uncommented) {
			t.Errorf("examples/bottle.yaml does not show the key %s", key)
		}
	}
}

// keys returns every yaml key below a type.
func keys(t reflect.Type) []string {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		return keys(t.Elem())
	case reflect.Struct:
		var out []string
		for i := range t.NumField() {
			if key, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ","); key != "" {
				out = append(out, key)
				out = append(out, keys(t.Field(i).Type)...)
			}
		}
		return out
	default:
		return nil
	}
}

var (
	exampleLine = regexp.MustCompile(`^( *)#(\S.*|  .*)$`)
	keyLine     = regexp.MustCompile(`^( *)([a-z_]+):`)
)

// uncomment does what the head of examples/bottle.yaml says.
func uncomment(text string) string {
	var out []string
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		m := exampleLine.FindStringSubmatch(line)
		if m == nil {
			out = append(out, line)
			continue
		}
		line = m[1] + m[2]
		last := len(out) - 1
		if a, b := keyLine.FindString(line), keyLine.FindString(out[last]); a != "" && a == b {
			out = out[:last]
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n") + "\n"
}

func TestExampleUncommented(t *testing.T) {
	text := uncomment(example(t, "bottle.yaml"))
	if _, err := bottle.ParseManifest([]byte(text), "/m/bottle.yaml", env(map[string]string{"LANG": "C"}), "/home/op"); err == nil || !strings.Contains(err.Error(), "agent.image and agent.build are both given; keep one") {
		t.Fatalf("with image and build: %v\n%s", err, text)
	}
	m := parse(t, strings.Replace(text, "  image: bottle-claude\n", "", 1))
	if m.Agent.Build.Context != "/m/image" || m.Agent.Build.Args["VERSION"] != "1.0" {
		t.Errorf("build: %+v", m.Agent.Build)
	}
	want := bottle.Credential{Header: "Authorization", Scheme: "Bearer", TokenEnv: "EXAMPLE_TOKEN", Hosts: []bottle.Host{"*.api.example.com", "api.example.com"}}
	if got := m.Credentials["example"]; !reflect.DeepEqual(got, want) {
		t.Errorf("credential %+v, want %+v", got, want)
	}
	if c := m.Credentials["maps"]; c.Query != "api_key" || c.Carrier() != "" {
		t.Errorf("query: %+v", c)
	}
	if c := m.Credentials["registry"]; c.Basic == nil || c.Basic.User != "builder" || c.Carrier() != "Authorization" {
		t.Errorf("basic: %+v", c)
	}
	if len(m.EgressRoutes()) != 3 || len(m.Egress.Routes[1].Matches) != 3 || m.Egress.Routes[2].Mode() != bottle.Passthrough {
		t.Errorf("routes: %+v", m.Egress.Routes)
	}
	if got := m.Egress.Resolve["git.internal.example"]; got != netip.MustParseAddr("10.1.2.3") {
		t.Errorf("resolve: %v", got)
	}
	if got, want := m.Egress.AllowCIDRs, []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00:1::/32")}; !reflect.DeepEqual(got, want) {
		t.Errorf("allow_cidrs: %v", got)
	}
	if m.Egress.UpstreamCA != "/home/op/private-ca.pem" || m.Git[0].KnownHosts != "/home/op/.ssh/known_hosts" || m.Approvals.Policy != "/home/op/.config/bottle/policy.yaml" {
		t.Errorf("paths: %q %q %q", m.Egress.UpstreamCA, m.Git[0].KnownHosts, m.Approvals.Policy)
	}
	vars, err := m.Agent.Environ(env(map[string]string{"LANG": "C"}))
	if err != nil || !reflect.DeepEqual(vars, map[string]string{"TERM": "xterm-256color", "LANG": "C"}) {
		t.Errorf("env: %v, %v", vars, err)
	}
}

func TestExampleLocal(t *testing.T) {
	m := parse(t, example(t, "local.yaml"))
	if m.Name != "local" || m.Agent.Image != "" || len(m.Credentials) != 0 || len(m.Egress.Routes) != 2 {
		t.Errorf("examples/local.yaml: %+v", m)
	}
	for _, r := range m.EgressRoutes() {
		for _, match := range r.Matches {
			if match.Method != "GET" || match.Path == nil || match.Path.Value == "/" {
				t.Errorf("%s: %s is not GET below a path", r.Host, match)
			}
		}
	}
}

const full = `
name: full
agent:
  image: img:${X}
  command: [claude, "${not expanded}", ""]
  workspace: ./work
  env: {A: "$5 ${UNSET} $${B}", N: 1}
credentials:
  tok: {header: x-api-key, token_env: TOK, hosts: [API.example.com, "*.API.example.com"]}
  key: {query: api.key, token_env: KEY, hosts: [q.example]}
  pair: {basic: {}, token_env: PAIR, hosts: [p.example]}
  user: {basic: {user: joe}, token_env: PASS, hosts: [u.example]}
egress:
  listen: "[::1]:8080"
  routes:
    - {host: Api.Example.com., credential: tok}
    - {host: b.example, grant: {request: r1, by: "1000 op", at: 2026-01-01T00:00:00Z, duration: permanent}}
  allow_cidrs: [10.0.0.0/8]
  resolve: {B.example: "::ffff:10.0.0.1"}
  upstream_ca: ../ca.pem
pipelock: {binary: "~/bin/pipe$${lock", passthrough_domains: [P.example]}
git:
  - {name: app, url: "ssh://git@github.com/acme/app.git", identity_file: ~/.ssh/id}
  - {name: web, url: "https://github.com/acme/web.git"}
approvals: {max_pending: 3, pending_ttl: 1h, default_grant: 10m, policy: /etc/p.yaml}
`

func TestManifestEncode(t *testing.T) {
	for _, text := range []string{full, "name: a\n", "name: b\nagent: {build: {context: /c}}\n"} {
		m := parse(t, text)
		b, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		none := func(string) (string, bool) { return "", false }
		back, err := bottle.ParseManifest(b, "/elsewhere/manifest.yaml", none, "")
		if err != nil {
			t.Fatalf("%v\n%s", err, b)
		}
		if !reflect.DeepEqual(back, m) {
			t.Errorf("read back\n%+v\nwant\n%+v", back, m)
		}
		again, err := back.Encode()
		if err != nil || string(again) != string(b) {
			t.Errorf("not a fixed point: %v\n%s\n%s", err, b, again)
		}
		if d := bottle.ManifestDiff(m, back); !d.Empty() {
			t.Errorf("differs from itself: %+v", d)
		}
	}
}

func TestManifestExpands(t *testing.T) {
	m := parse(t, full)
	for _, tt := range []struct{ name, got, want string }{
		{"image", m.Agent.Image, "img:ex"},
		{"command", m.Agent.Command[1], "${not expanded}"},
		{"workspace", m.Agent.Workspace, "/m/work"},
		{"upstream_ca", m.Egress.UpstreamCA, "/ca.pem"},
		{"binary", m.Pipelock.Binary, "/home/op/bin/pipe${lock"},
		{"identity_file", m.Git[0].IdentityFile, "/home/op/.ssh/id"},
		{"header", m.Credentials["tok"].Header, "X-Api-Key"},
		{"resolve", m.Egress.Resolve["b.example"].String(), "10.0.0.1"},
		{"route", string(m.Egress.Routes[0].Host), "api.example.com"},
	} {
		if tt.got != tt.want {
			t.Errorf("%s = %q, want %q", tt.name, tt.got, tt.want)
		}
	}
	if _, err := m.Agent.Environ(env(nil)); err == nil || !strings.Contains(err.Error(), "agent.env.A: ${UNSET} is not set in your environment; set it") {
		t.Errorf("Environ without UNSET: %v", err)
	}
	got, err := m.Agent.Environ(env(map[string]string{"UNSET": "${C}"}))
	if err != nil || got["A"] != "$5 ${C} ${B}" || got["N"] != "1" {
		t.Errorf("Environ = %q, %v", got, err)
	}
	if m.Approvals.PendingTTL != time.Hour || m.Approvals.DefaultGrant.String() != "10m0s" {
		t.Errorf("approvals: %+v", m.Approvals)
	}
}

func TestParseManifestRefuses(t *testing.T) {
	const cred = "name: a\ncredentials:\n  example:\n"
	ok := "    header: Authorization\n    token_env: T\n    hosts: [a.example]\n"
	for _, tt := range []struct{ name, in, want string }{
		{"no name", "agent: {}\n", "bottle.yaml:1: name is missing"},
		{"bad name", "name: A b\n", `bottle.yaml:1: name "A b": use up to 40 lower-case letters`},
		{"unknown key", "name: a\nagnet: {}\n", `bottle.yaml:2: unknown key "agnet"; did you mean "agent"?`},
		{"unknown credential key", cred + "    crednetial: x\n", `bottle.yaml:4: unknown key "crednetial" in credentials.example; known here: header, scheme, query, basic, token_env, hosts`},
		{"unknown nested key", "name: a\negress:\n  allow_cidr: []\n", `bottle.yaml:3: unknown key "allow_cidr" in egress; did you mean "allow_cidrs"?`},
		{"emptied list", "name: a\negress:\n  routes:\n#    - host: a.example\n", "bottle.yaml:3: egress.routes has no value"},
		{"key twice", "name: a\nname: b\n", `bottle.yaml:2: key "name" a second time`},
		{"escape in a key", "name: a\n\"\\e[31m\": 1\n", `unknown key "\x1b[31m"`},
		{"image and build", "name: a\nagent:\n  image: x\n  build: {context: .}\n", "bottle.yaml:4: agent.image and agent.build are both given"},
		{"build of nothing", "name: a\nagent:\n  build: {dockerfile: D}\n", "agent.build.context is missing"},
		{"workspace root", "name: a\nagent: {workspace: /}\n", "agent.workspace must be a directory"},
		{"no workspace", "name: a\nagent: {workspace: \"\"}\n", "agent.workspace must be a directory"},
		{"other user's home", "name: a\nagent: {workspace: ~joe/x}\n", "agent.workspace: only ~/ is expanded"},
		{"unset reference", "name: a\negress:\n  upstream_ca: ${NOPE}/ca.pem\n", "bottle.yaml:3: egress.upstream_ca: ${NOPE} is not set in your environment"},
		{"broken reference", "name: a\nagent: {env: {A: \"${a-b}\"}}\n", "agent.env.A: \"${a-b}\" does not begin with a reference"},
		{"open reference", "name: a\nagent: {image: \"${A\"}\n", "agent.image: \"${A\" does not begin with a reference"},
		{"control character in a path", "name: a\nagent: {workspace: \"a\\nb\"}\n", "agent.workspace: has a control character"},
		{"bad variable", "name: a\nagent: {env: {A-B: x}}\n", `agent.env: "A-B" is not a variable's name`},
		{"token for the agent", cred + ok + "agent: {env: {X: \"a${T}\"}}\n", "bottle.yaml:7: agent.env.X: ${T} is the token of credential example"},
		{"command is text", "name: a\nagent: {command: claude --x}\n", `agent.command must be a list ([] if empty), not "claude --x"`},
		{"bad credential name", "name: a\ncredentials: {A_B: {}}\n", `credentials: name "A_B"`},
		{"no header", cred + "    token_env: T\n", "bottle.yaml:4: credentials.example.header is missing"},
		{"bad header", cred + "    header: \"a b\"\n", `bottle.yaml:4: credentials.example.header: "a b" is not a header name`},
		{"framing header", cred + "    header: transfer-encoding\n    token_env: T\n    hosts: [a.example]\n", "credentials.example.header: Transfer-Encoding can't carry a credential"},
		{"bad scheme", cred + ok + "    scheme: \"Bearer \"\n", `credentials.example.scheme: "Bearer " is not an authentication scheme`},
		{"no form", cred + "    scheme: Bearer\n    token_env: T\n", "credentials.example.header is missing; name the header that carries it, such as Authorization, or use query or basic"},
		{"two forms", cred + ok + "    query: key\n", "bottle.yaml:4: credentials.example has more than one of header, query and basic; keep one"},
		{"header and basic", cred + ok + "    basic: {}\n", "has more than one of header, query and basic"},
		{"scheme without a header", cred + "    query: key\n    scheme: Bearer\n", "bottle.yaml:5: credentials.example.scheme is for header alone"},
		{"bad query", cred + "    query: \"a&b=\"\n", `bottle.yaml:4: credentials.example.query: "a&b=" is not the name of a parameter`},
		{"user with a password", cred + "    basic: {user: \"joe:hunter2\"}\n", "bottle.yaml:4: credentials.example.basic.user has a colon"},
		{"unknown key of basic", cred + "    basic: {usr: joe}\n", `unknown key "usr" in credentials.example.basic; did you mean "user"?`},
		{"match on what it replaces", cred + ok + "egress:\n  routes:\n    - host: a.example\n      credential: example\n      matches:\n        - headers: [{name: authorization, value: x}]\n", "example takes the header authorization out of what the agent sends to a.example, so no match can judge by it"},
		{"no token_env", cred + "    header: A\n", "credentials.example.token_env is missing"},
		{"the token itself", cred + "    header: A\n    token_env: sk-ant-x\n", "bottle.yaml:5: credentials.example.token_env must be the name of an environment variable"},
		{"no hosts", cred + "    header: A\n    token_env: T\n", "credentials.example.hosts is missing"},
		{"bad host of a credential", cred + "    header: A\n    token_env: T\n    hosts: [a.example, '*.com']\n", "bottle.yaml:6: credentials.example.hosts[1]: host pattern"},
		{"undefined credential", cred + ok + "egress:\n  routes:\n    - host: a.example\n      credential: examplo\n", `bottle.yaml:9: egress.routes[0]: credential: "examplo" of a.example is not defined under credentials in the manifest; did you mean "example"?`},
		{"credential for another host", cred + ok + "egress:\n  routes:\n    - {host: b.example, credential: example}\n", "egress.routes[0]: credential: example is bound to a.example and is not sent to b.example"},
		{"credential for a wildcard", cred + ok + "egress:\n  routes:\n    - {host: '*.a.example', credential: example}\n", "is not sent to *.a.example"},
		{"passing grant", "name: a\negress:\n  routes:\n    - {host: a.example, grant: {request: r1, duration: session}}\n", "only a permanent grant can be in a manifest"},
		{"route", "name: a\negress:\n  routes:\n    - host: a.example\n      matches: []\n", "bottle.yaml:4: egress.routes[0].matches is empty"},
		{"listen everywhere", "name: a\negress: {listen: \"0.0.0.0:80\"}\n", "must be a loopback address and a port"},
		{"listen by name", "name: a\negress: {listen: \"localhost:80\"}\n", "must be a loopback address and a port"},
		{"bad cidr", "name: a\negress:\n  allow_cidrs: [10.0.0.0]\n", `bottle.yaml:3: egress.allow_cidrs[0] must be a network such as 10.1.0.0/16, not "10.0.0.0"`},
		{"cidr with host bits", "name: a\negress: {allow_cidrs: [10.1.2.3/8]}\n", "write 10.0.0.0/8, or 10.1.2.3/32 for the one address"},
		{"every address", "name: a\negress: {allow_cidrs: [0.0.0.0/0]}\n", "permits every address"},
		{"mapped cidr", "name: a\negress: {allow_cidrs: [\"::ffff:10.0.0.0/104\"]}\n", "write it as IPv4"},
		{"resolve a pattern", "name: a\negress: {resolve: {\"*.a.example\": 10.0.0.1}}\n", "*.a.example is a pattern"},
		{"resolve an address", "name: a\negress: {resolve: {10.0.0.2: 10.0.0.1}}\n", "egress.resolve: host \"10.0.0.2\": an IP address"},
		{"resolve to a name", "name: a\negress: {resolve: {a.example: b.example}}\n", `egress.resolve.a.example must be an address such as 10.1.2.3, not "b.example"`},
		{"resolve to a zone", "name: a\negress: {resolve: {a.example: \"fe80::1%eth0\"}}\n", "can't be dialled"},
		{"resolve twice", "name: a\negress: {resolve: {a.example: 10.0.0.1, A.example: 10.0.0.2}}\n", "a.example is there twice, in two spellings"},
		{"balanced", "name: a\npipelock: {mode: balanced}\n", `bottle.yaml:2: pipelock.mode: "balanced"; use strict`},
		{"bad passthrough", "name: a\npipelock: {passthrough_domains: [1.2.3.4]}\n", "pipelock.passthrough_domains[0]: host"},
		{"git name twice", "name: a\ngit:\n  - {name: x, url: \"https://h.example/x\"}\n  - {name: x, url: \"https://h.example/y\"}\n", "bottle.yaml:4: git[1].name: x is there twice"},
		{"git without url", "name: a\ngit: [{name: x}]\n", "git[0].url: missing"},
		{"git scp form", "name: a\ngit: [{name: x, url: \"git@github.com:acme/x.git\"}]\n", "git[0].url: must begin with ssh:// or https://"},
		{"git file", "name: a\ngit: [{name: x, url: \"file:///etc\"}]\n", "must begin with ssh:// or https://"},
		{"git password", "name: a\ngit: [{name: x, url: \"https://u:hunter2@h.example/x\"}]\n", "git[0].url: has a password in it"},
		{"git option as host", "name: a\ngit: [{name: x, url: \"ssh://-oProxyCommand=x/y\"}]\n", "git[0].url: host"},
		{"git option as user", "name: a\ngit: [{name: x, url: \"ssh://-oA@h.example/y\"}]\n", "the user begins with -"},
		{"git without path", "name: a\ngit: [{name: x, url: \"https://h.example/\"}]\n", "must have a path"},
		{"git key for https", "name: a\ngit: [{name: x, url: \"https://h.example/x\", identity_file: /k}]\n", "are for ssh:// alone"},
		{"max_pending", "name: a\napprovals: {max_pending: 0}\n", "approvals.max_pending: 0; use 1 to 1000"},
		{"pending_ttl", "name: a\napprovals: {pending_ttl: 5}\n", `approvals.pending_ttl must be a time span such as 10m or 24h, not "5"`},
		{"pending_ttl too short", "name: a\napprovals: {pending_ttl: 5s}\n", "approvals.pending_ttl: 5s; use 1m0s to 720h0m0s"},
		{"default_grant", "name: a\napprovals: {default_grant: forever}\n", `approvals.default_grant: duration "forever": use once`},
		{"default_grant empty", "name: a\napprovals: {default_grant: \"\"}\n", "approvals.default_grant is empty"},
		{"policy in the workspace", "name: a\napprovals: {policy: sub/../policy.yaml}\n", "approvals.policy: /m/policy.yaml lies in the workspace /m, where the agent could rewrite it; move it out"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := bottle.ParseManifest([]byte(tt.in), "/m/bottle.yaml", env(nil), "/home/op")
			if err == nil {
				t.Fatal("accepted")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got  %s\nwant %s", err, tt.want)
			}
			if strings.ContainsAny(err.Error(), "\n\x1b") || strings.Contains(err.Error(), "sk-ant") || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("more than one line, or a secret: %q", err)
			}
			if !errors.Is(err, bottle.ErrInvalid) {
				t.Errorf("%v: does not wrap ErrInvalid", err)
			}
		})
	}
}

func TestPolicyBehindALink(t *testing.T) {
	dir := t.TempDir()
	work := filepath.Join(dir, "work")
	if err := os.Mkdir(work, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(work, "p.yaml"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("work/p.yaml", filepath.Join(dir, "policy.yaml")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("work", filepath.Join(dir, "alias")); err != nil {
		t.Fatal(err)
	}
	for text, inside := range map[string]bool{
		"name: a\nagent: {workspace: work}\napprovals: {policy: policy.yaml}\n":    true,
		"name: a\nagent: {workspace: work}\napprovals: {policy: alias/new.yaml}\n": true,
		"name: a\nagent: {workspace: alias}\napprovals: {policy: work/x}\n":        true,
		"name: a\nagent: {workspace: work}\napprovals: {policy: other.yaml}\n":     false,
		"name: a\nagent: {workspace: work}\napprovals: {policy: work2/x}\n":        false,
	} {
		_, err := bottle.ParseManifest([]byte(text), filepath.Join(dir, "bottle.yaml"), env(nil), dir)
		if (err != nil) != inside {
			t.Errorf("%s: %v; inside is %t", text, err, inside)
		}
	}
}

func TestManifestDiff(t *testing.T) {
	old := parse(t, full)
	text := strings.NewReplacer(
		"ports: [443]", "", "listen: \"[::1]:8080\"", "listen: \"127.0.0.1:0\"",
		"    - {host: Api.Example.com., credential: tok}\n", "    - {host: api.example.com}\n    - {host: c.example}\n",
		"[claude, ", "[\"cla\\nude\", ", "/acme/web.git", "/acme/web2.git", "TOK,", "OTHER,",
	).Replace(full)
	got := bottle.ManifestDiff(old, parse(t, text))
	want := bottle.FileDiff{
		File: bottle.ManifestFile,
		Add: []string{
			`agent.command[0]: "cla\nude"`, "credentials.tok.token_env: OTHER", "egress.listen: 127.0.0.1:0",
			"egress.routes: api.example.com  every method and path", "egress.routes: c.example  every method and path",
			"git.web.url: https://github.com/acme/web2.git",
		},
		Remove: []string{
			"agent.command[0]: claude", "credentials.tok.token_env: TOK", "egress.listen: [::1]:8080",
			"egress.routes: api.example.com  every method and path  credential tok", "git.web.url: https://github.com/acme/web.git",
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
	if d := bottle.ManifestDiff(nil, old); len(d.Add) < 20 || len(d.Remove) != 0 {
		t.Errorf("of the first manifest: %+v", d)
	}
	reordered := parse(t, "approvals: {max_pending: 10}\nname: a # x\n")
	if d := bottle.ManifestDiff(parse(t, "name: a\n"), reordered); !d.Empty() {
		t.Errorf("another spelling is no difference: %+v", d)
	}
}

func TestReadUpstreamCA(t *testing.T) {
	srv := httptest.NewTLSServer(nil)
	defer srv.Close()
	cert := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}))
	key := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1}}))
	for _, tt := range []struct {
		name, content string
		err           error
		want          string
	}{
		{"good", "# two\n" + cert + cert, nil, ""},
		{"unreadable", "", &fs.PathError{Op: "open", Path: "/m/ca.pem", Err: fs.ErrPermission}, "egress.upstream_ca: open /m/ca.pem: permission denied; make it a PEM file that you can read, or remove the key"},
		{"empty", "", nil, "egress.upstream_ca: /m/ca.pem holds no certificate in PEM form"},
		{"der", string(srv.Certificate().Raw), nil, "holds no certificate in PEM form"},
		{"with a key", cert + key, nil, "egress.upstream_ca: /m/ca.pem holds a PRIVATE KEY; it must hold certificates alone"},
		{"damaged", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{1}})), nil, "holds a certificate that can't be read"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := parse(t, "name: a\negress: {upstream_ca: ca.pem}\n")
			got, err := m.ReadUpstreamCA(func(path string) ([]byte, error) {
				if path != "/m/ca.pem" {
					t.Errorf("reads %s", path)
				}
				return []byte(tt.content), tt.err
			})
			if tt.want == "" {
				if err != nil || string(got) != tt.content {
					t.Errorf("%q, %v", got, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
	if b, err := parse(t, "name: a\n").ReadUpstreamCA(nil); b != nil || err != nil {
		t.Errorf("without the key: %q, %v", b, err)
	}
}

func TestNearest(t *testing.T) {
	known := []string{"host", "ports", "matches", "credential", "tls", "grant"}
	for in, want := range map[string]string{
		"crednetial": "credential", "Host": "host", "port": "ports", "match": "matches", "tsl": "tls",
		"credentials": "credential", "zzz": "", "": "", "method": "", strings.Repeat("host", 1000): "",
	} {
		if got := bottle.Nearest(in, known); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", in, got, want)
		}
	}
}
