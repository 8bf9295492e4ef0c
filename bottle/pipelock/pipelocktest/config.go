package pipelocktest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

const (
	strict   = "strict"
	balanced = "balanced"
	audit    = "audit"
)

// topLevel are the keys that the real one knows; any other is an error.
const topLevel = ` version mode enforce explain_blocks api_allowlist suppress fetch_proxy forward_proxy websocket_proxy dlp canary_tokens
 response_scanning mcp_input_scanning mcp_tool_scanning mcp_tool_policy git_protection logging session_profiling adaptive_enforcement
 mcp_session_binding request_body_scanning kill_switch sentry metrics_listen emit tool_chain_detection mcp_ws_listener tls_interception
 cross_request_detection reverse_proxy scan_api address_protection seed_phrase_detection rules file_sentry sandbox flight_recorder
 mcp_binary_integrity mcp_tool_provenance behavioral_baseline airlock browser_shield media_policy a2a_scanning taint mediation_envelope
 redaction agents default_agent_identity bind_default_agent_identity license_key license_file license_public_key internal trusted_domains ssrf `

// settings are what the stand-in acts on. It accepts what the real one does, and so does not
// read the file as bottle/pipelock would.
type settings struct {
	Mode         string   `yaml:"mode"`
	Enforce      *bool    `yaml:"enforce"`
	Allowlist    []string `yaml:"api_allowlist"`
	Trusted      []string `yaml:"trusted_domains"`
	ForwardProxy struct {
		Enabled bool `yaml:"enabled"`
	} `yaml:"forward_proxy"`
	TLS struct {
		Enabled     bool     `yaml:"enabled"`
		Passthrough []string `yaml:"passthrough_domains"`
	} `yaml:"tls_interception"`
	SSRF struct {
		Allowlist []string `yaml:"ip_allowlist"`
	} `yaml:"ssrf"`

	hash string // sha256 of the file, in hex
	open []netip.Prefix
}

func load(path string) (*settings, error) {
	b, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return nil, fmt.Errorf("reading config %s: %w", path, err)
	}
	sum := sha256.Sum256(b)
	s := &settings{hash: hex.EncodeToString(sum[:])}
	if err := s.parse(b); err != nil {
		return nil, fmt.Errorf("parsing config %s: %w", path, err)
	}
	if s.Mode == "" {
		s.Mode = balanced // the hole that bottle's seal and parser close
	}
	if err := s.validate(); err != nil {
		return nil, fmt.Errorf("invalid config: %w", err)
	}
	return s, nil
}

func (s *settings) parse(b []byte) error {
	dec := yaml.NewDecoder(bytes.NewReader(b))
	var root yaml.Node
	if err := dec.Decode(&root); errors.Is(err, io.EOF) {
		return nil // nothing, or comments alone
	} else if err != nil {
		return err
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return errors.New("multiple YAML documents not supported (pipelock config must be a single document)")
	}
	if top := root.Content[0]; top.Kind == yaml.MappingNode {
		for i := 0; i < len(top.Content); i += 2 {
			if k := top.Content[i]; !slices.Contains(strings.Fields(topLevel), k.Value) {
				return fmt.Errorf("yaml: unmarshal errors:\n  line %d: field %s not found in type config.Config", k.Line, k.Value)
			}
		}
	}
	return root.Decode(s)
}

func (s *settings) validate() error {
	switch {
	case !slices.Contains([]string{strict, balanced, audit}, s.Mode):
		return fmt.Errorf("invalid mode %q: must be strict, balanced, or audit", s.Mode)
	case s.Mode == strict && len(s.Allowlist) == 0:
		return errors.New("strict mode requires at least one domain in api_allowlist")
	}
	for _, c := range s.SSRF.Allowlist {
		p, err := netip.ParsePrefix(c)
		if err != nil {
			return fmt.Errorf("invalid ssrf.ip_allowlist CIDR %q: %w", c, err)
		}
		s.open = append(s.open, p.Masked())
	}
	return nil
}

// downgrades are the reasons for which a strict one refuses a reload (reloadwarn.go there),
// as far as they concern keys that are read here: the field and what happened to it.
func downgrades(old, new *settings) [][2]string { //nolint:revive // old and new are what they are
	var out [][2]string
	add := func(bad bool, field, what string) {
		if bad {
			out = append(out, [2]string{field, what})
		}
	}
	rank := []string{audit, balanced, strict}
	add(slices.Index(rank, new.Mode) < slices.Index(rank, old.Mode), "mode", "mode downgraded from "+old.Mode+" to "+new.Mode)
	add((old.Enforce == nil || *old.Enforce) && new.Enforce != nil && !*new.Enforce, "enforce", "enforcement disabled")
	add(old.ForwardProxy.Enabled && !new.ForwardProxy.Enabled, "forward_proxy.enabled", "forward proxy disabled")
	add(old.TLS.Enabled && !new.TLS.Enabled, "tls_interception.enabled", "TLS interception disabled")
	if old.TLS.Enabled && new.TLS.Enabled {
		more := added(old.TLS.Passthrough, new.TLS.Passthrough)
		add(more != "", "tls_interception.passthrough_domains", "passthrough domains added: "+more)
	}
	more := added(old.Trusted, new.Trusted)
	add(more != "", "trusted_domains", "trusted domains added: "+more)
	for _, p := range new.open {
		covered := slices.ContainsFunc(old.open, func(o netip.Prefix) bool { return o.Bits() <= p.Bits() && o.Contains(p.Addr()) })
		add(!covered, "ssrf.ip_allowlist", "SSRF IP allowlist expanded: "+p.String())
	}
	return out
}

func added(old, new []string) string { //nolint:revive // as above
	return strings.Join(slices.DeleteFunc(slices.Clone(new), func(n string) bool {
		return slices.ContainsFunc(old, func(o string) bool { return strings.EqualFold(o, n) })
	}), ", ")
}

// matches has the real one's wildcards: any depth, and the apex.
func matches(host, pattern string) bool {
	host, pattern = strings.ToLower(strings.TrimSuffix(host, ".")), strings.ToLower(strings.TrimSuffix(pattern, "."))
	if base, ok := strings.CutPrefix(pattern, "*."); ok {
		if _, err := netip.ParseAddr(host); err == nil {
			return false
		}
		return host == base || strings.HasSuffix(host, "."+base)
	}
	return host == pattern
}

func matchesAny(host string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(host, p) })
}
