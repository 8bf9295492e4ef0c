package launch

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"slices"
	"strings"

	"bottle/bottle"
	"bottle/bottle/egress"
)

// Files are the config files that a bundle is started with, sealed.
type Files struct {
	Routes, Pipelock []byte
}

// Prepare writes what a bundle is started with: the config files, bundle.json, and the
// bottle's CA. The caller holds the lock, and no bundle runs.
func Prepare(dir *bottle.Dir, m *bottle.Manifest, f Files) error {
	cfg, err := bundleConfig(m)
	if err != nil {
		return err
	}
	if err := egress.EnsureCA(dir.CACert(), dir.CAKey(), m.Name); err != nil {
		return err
	}
	if err := writeCABundle(dir); err != nil {
		return err
	}
	if err := bottle.WriteFile(dir.Routes(), f.Routes, 0o600); err != nil {
		return err
	}
	if err := bottle.WriteFile(dir.Pipelock(), f.Pipelock, 0o600); err != nil {
		return err
	}
	return bottle.WriteJSON(dir.BundleConfig(), cfg)
}

// pipelockPorts is how many pipelocks there can be at once: one serves, one comes up, three drain.
const pipelockPorts = 5

func bundleConfig(m *bottle.Manifest) (bottle.BundleConfig, error) {
	cfg := bottle.BundleConfig{
		Schema: bottle.Schema, Name: m.Name,
		Daemons: []string{bottle.DaemonPipelock, bottle.DaemonEgress, bottle.DaemonSupervise},
		Resolve: map[string]string{}, Credentials: m.Credentials,
		Binary: m.Pipelock.Binary, MaxPending: m.Approvals.MaxPending,
		ProxySecret: rand.Text(), GateSecret: rand.Text(),
	}
	for h, a := range m.Egress.Resolve {
		cfg.Resolve[string(h)] = a.String()
	}
	for _, p := range m.Egress.AllowCIDRs {
		cfg.AllowCIDRs = append(cfg.AllowCIDRs, p.String())
	}
	ca, err := m.ReadUpstreamCA(os.ReadFile)
	if err != nil {
		return cfg, err
	}
	cfg.UpstreamCA = string(ca)
	if cfg.Egress, err = PickPort("egress.listen", m.Egress.Listen); err != nil {
		return cfg, err
	}
	for range pipelockPorts {
		addr, err := PickPort("pipelock", "127.0.0.1:0")
		if err != nil {
			return cfg, err
		}
		cfg.Pipelock = append(cfg.Pipelock, addr)
	}
	return cfg, nil
}

// caBundle is where the agent's tools find the bottle's CA together with the machine's
// roots, which passthrough routes need.
func caBundle(dir *bottle.Dir) string { return dir.Path("ca", "ca-bundle.pem") }

// systemRoots are where distributions keep their roots (crypto/x509 has the same list).
var systemRoots = []string{
	"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem",
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", "/etc/ssl/cert.pem",
}

func writeCABundle(dir *bottle.Dir) error {
	ca, err := os.ReadFile(dir.CACert())
	if err != nil {
		return err
	}
	for _, f := range systemRoots {
		roots, err := os.ReadFile(f)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read the machine's CA roots: %w", err)
		}
		return bottle.WriteFile(caBundle(dir), append(append(ca, '\n'), roots...), 0o644)
	}
	return bottle.WriteFile(caBundle(dir), ca, 0o644)
}

// caVariables are those in which common tools look for a file of CA certificates.
var caVariables = []string{
	"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "PIP_CERT", "AWS_CA_BUNDLE",
	"CARGO_HTTP_CAINFO", "DENO_CERT", "NODE_EXTRA_CA_CERTS", "NIX_SSL_CERT_FILE",
}

// AgentEnv is what an agent in the bottle needs in its environment: the proxy, with the
// secret that opens it, the CA, and the MCP socket.
func AgentEnv(dir *bottle.Dir) ([]string, error) {
	var cfg bottle.BundleConfig
	if err := bottle.ReadJSON(dir.BundleConfig(), 0, &cfg); err != nil {
		return nil, err
	}
	proxy := url.URL{Scheme: "http", User: bottle.ProxyUserinfo(cfg.ProxySecret), Host: cfg.Egress}
	var env []string
	for _, k := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"} {
		env = append(env, k+"="+proxy.String())
	}
	for _, k := range []string{"NO_PROXY", "no_proxy"} {
		env = append(env, k+"=localhost,127.0.0.1,::1")
	}
	for _, k := range caVariables {
		env = append(env, k+"="+caBundle(dir))
	}
	return append(env, "NODE_USE_ENV_PROXY=1", "BOTTLE_NAME="+cfg.Name, "BOTTLE_MCP_SOCKET="+dir.MCPSocket()), nil
}

// Environ is base with env in place of what it had of the same names, and without the
// variables that hold the operator's tokens.
func Environ(base, env []string, credentials map[string]bottle.Credential) []string {
	drop := map[string]bool{}
	for _, c := range credentials {
		drop[c.TokenEnv] = true
	}
	for _, kv := range env {
		k, _, _ := strings.Cut(kv, "=")
		drop[k] = true
	}
	out := slices.DeleteFunc(slices.Clone(base), func(kv string) bool {
		k, _, _ := strings.Cut(kv, "=")
		return drop[k]
	})
	return append(out, env...)
}
