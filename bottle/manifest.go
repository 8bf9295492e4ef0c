package bottle

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// ManifestFile names a manifest in diffs.
const ManifestFile = "manifest.yaml"

// PipelockStrict is the one mode of pipelock that bottle runs: what is not listed is refused.
const PipelockStrict = "strict"

// A Manifest is what an operator writes to describe a bottle. The one that [ParseManifest]
// returns has been checked: names and hosts are canonical, paths are absolute, every
// credential that a route names exists and is bound to the route's host.
type Manifest struct {
	Name        string                `yaml:"name"` // required; see [CheckName]
	Agent       Agent                 `yaml:"agent"`
	Credentials map[string]Credential `yaml:"credentials"`
	Egress      Egress                `yaml:"egress"`
	Pipelock    Pipelock              `yaml:"pipelock"`
	Git         []GitRemote           `yaml:"git"`
	Approvals   Approvals             `yaml:"approvals"`
}

// Agent says what runs in the sandbox.
type Agent struct {
	Image     string   `yaml:"image"`           // container image; docker backend alone
	Build     *Build   `yaml:"build,omitempty"` // instead of an image
	Command   []string `yaml:"command"`         // empty: no agent is started, the operator starts one
	Workspace string   `yaml:"workspace"`       // directory that the agent may write
	// Env is as written, with its ${NAME} references: they are filled in by
	// [Agent.Environ] at the start, so that no value of the host's environment gets into
	// the manifest copy.
	Env map[string]string `yaml:"env"`
}

// Build names a Dockerfile to build the agent's image from.
type Build struct {
	Context    string            `yaml:"context"`              // directory
	Dockerfile string            `yaml:"dockerfile,omitempty"` // within context; empty: Dockerfile
	Args       map[string]string `yaml:"args,omitempty"`
}

// Egress is the first layer: which requests may pass.
type Egress struct {
	Listen     string              `yaml:"listen"` // loopback address and port, 0 picks one; local backend alone
	Routes     []Route             `yaml:"routes"`
	AllowCIDRs []netip.Prefix      `yaml:"allow_cidrs"` // internal networks that names may resolve to
	Resolve    map[Host]netip.Addr `yaml:"resolve"`     // names that are not looked up
	UpstreamCA string              `yaml:"upstream_ca"` // path of a PEM file; empty: the machine's roots alone
}

// Pipelock is the second layer: which hosts are dialled.
type Pipelock struct {
	Mode               string `yaml:"mode"`                // strict
	Binary             string `yaml:"binary"`              // path of the real one; empty: the built-in gate
	PassthroughDomains []Host `yaml:"passthrough_domains"` // the real one's TLS interception leaves these alone
}

// A GitRemote is a repository that the agent reaches through git-gate.
type GitRemote struct {
	Name         string `yaml:"name"`
	URL          string `yaml:"url"` // ssh:// or https://
	IdentityFile string `yaml:"identity_file,omitempty"`
	KnownHosts   string `yaml:"known_hosts,omitempty"`
}

// Approvals bounds what waits for the operator, and says how long a yes holds.
type Approvals struct {
	MaxPending   int           `yaml:"max_pending"`   // 1 to [MaxMaxPending]
	PendingTTL   time.Duration `yaml:"pending_ttl"`   // [MinPendingTTL] to [MaxTTL]
	DefaultGrant Duration      `yaml:"default_grant"` // where neither the agent nor the operator names one
	Policy       string        `yaml:"policy"`        // path of a policy file; empty: none
}

// Bounds of [Approvals].
const (
	MaxMaxPending = 1000
	MinPendingTTL = time.Minute
)

// DefaultManifest returns what holds where a manifest is silent. Its lists and maps are
// empty, not nil, and the caller's own. All defaults are here and nowhere else;
// examples/bottle.yaml explains each.
func DefaultManifest() *Manifest {
	return &Manifest{
		Agent:       Agent{Command: []string{}, Workspace: ".", Env: map[string]string{}},
		Credentials: map[string]Credential{},
		Egress: Egress{
			Listen: "127.0.0.1:0", Routes: []Route{}, AllowCIDRs: []netip.Prefix{}, Resolve: map[Host]netip.Addr{},
		},
		Pipelock: Pipelock{Mode: PipelockStrict, PassthroughDomains: []Host{}},
		Git:      []GitRemote{},
		Approvals: Approvals{
			MaxPending: MaxPending, PendingTTL: PendingTTL, DefaultGrant: Duration{Kind: Session},
		},
	}
}

// EgressRoutes returns the manifest's routes, canonical, as the caller's own list.
func (m *Manifest) EgressRoutes() []Route { return slices.Clone(m.Egress.Routes) }

// Environ returns the agent's variables with references to the host's environment filled
// in by lookup ([os.LookupEnv]). A reference to an unset variable is an error.
func (a Agent) Environ(lookup func(string) (string, bool)) (map[string]string, error) {
	out := make(map[string]string, len(a.Env))
	for k, v := range a.Env {
		s, err := expandRefs(v, lookup)
		if err != nil {
			return nil, fmt.Errorf("agent.env.%s: %w", k, err)
		}
		out[k] = s
	}
	return out, nil
}

// ReadUpstreamCA returns the PEM text of the extra roots, nil if the manifest names none.
// It reads with readFile ([os.ReadFile]) and refuses a file without a certificate.
func (m *Manifest) ReadUpstreamCA(readFile func(string) ([]byte, error)) ([]byte, error) {
	path := m.Egress.UpstreamCA
	if path == "" {
		return nil, nil
	}
	b, err := readFile(path)
	if err != nil {
		return nil, fmt.Errorf("egress.upstream_ca: %w; make it a PEM file that you can read, or remove the key", err)
	}
	found := false
	for rest := b; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, invalid("egress.upstream_ca", "%s holds a %s; it must hold certificates alone", path, clip(block.Type, 40))
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return nil, invalid("egress.upstream_ca", "%s holds a certificate that can't be read (%v); make the file anew", path, err)
		}
		found = true
	}
	if !found {
		return nil, invalid("egress.upstream_ca", "%s holds no certificate in PEM form; convert it with openssl x509, or remove the key", path)
	}
	return b, nil
}

// InWorkspace reports whether path lies where the agent can write. Symbolic links are
// followed as far as they exist, on both sides.
func (m *Manifest) InWorkspace(path string) bool {
	return within(m.Agent.Workspace, path) || within(realPath(m.Agent.Workspace), realPath(path))
}

func within(dir, path string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

// realPath resolves the links of the longest part of path that exists.
func realPath(path string) string {
	rest := ""
	for p := filepath.Clean(path); ; p = filepath.Dir(p) {
		if target, err := filepath.EvalSymlinks(p); err == nil {
			return filepath.Join(target, rest)
		}
		if p == filepath.Dir(p) {
			return path
		}
		rest = filepath.Join(filepath.Base(p), rest)
	}
}
