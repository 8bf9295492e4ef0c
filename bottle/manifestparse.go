package bottle

import (
	"fmt"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"

	"gopkg.in/yaml.v3"
)

// ParseManifest reads a manifest. path is where it lies: relative paths in it start from
// its directory, and errors name it as it is given here, and the line. ${NAME} is filled in from
// env, and ~/ from home, in every path and in agent.image; see [Agent.Env] for the agent's
// variables. Nothing is filled in in agent.command, where a shell's own ${x} may stand. Errors wrap [ErrInvalid].
//
// What it returns is independent of where it was called and, the environment aside, of
// when: [Manifest.Encode] writes a form that needs neither env nor home.
func ParseManifest(b []byte, path string, env func(string) (string, bool), home string) (*Manifest, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", path, err)
	}
	p := manifestParser{strictDecoder: strictDecoder{path}, m: DefaultManifest(), dir: filepath.Dir(abs), env: env, home: home}
	if p.root, err = p.document(b); err != nil {
		return nil, err
	}
	if err := p.decode(p.root, reflect.ValueOf(p.m).Elem(), ""); err != nil {
		return nil, err
	}
	for _, step := range []func() error{p.expand, p.checkAgent, p.checkCredentials, p.checkEgress, p.checkPipelock, p.checkGit, p.checkApprovals} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return p.m, nil
}

// A manifestParser brings a decoded manifest into its checked form, part by part.
type manifestParser struct {
	strictDecoder
	root *yaml.Node
	m    *Manifest
	dir  string
	env  func(string) (string, bool)
	home string
}

// at puts the line of the node at path before err.
func (p *manifestParser) at(err error, path ...any) error {
	return p.wrap(nodeAt(p.root, path...), err)
}

func (p *manifestParser) expand() error {
	for _, f := range p.m.expanded() {
		s, err := expandRefs(*f.s, p.env)
		if err == nil && f.path && s != "" {
			s, err = p.absolute(s)
		}
		if err != nil {
			return p.at(fmt.Errorf("%s: %w", f.name(), err), f.at...)
		}
		*f.s = s
	}
	return nil
}

// An expandedField is one in which references are filled in when the manifest is parsed.
type expandedField struct {
	at   []any
	s    *string
	path bool
}

func (f expandedField) name() string {
	var b strings.Builder
	for i, p := range f.at {
		switch p := p.(type) {
		case int:
			fmt.Fprintf(&b, "[%d]", p)
		case string:
			if i > 0 {
				b.WriteByte('.')
			}
			b.WriteString(p)
		}
	}
	return b.String()
}

func (m *Manifest) expanded() []expandedField {
	out := []expandedField{
		{[]any{"agent", "image"}, &m.Agent.Image, false},
		{[]any{"agent", "workspace"}, &m.Agent.Workspace, true},
		{[]any{"egress", "upstream_ca"}, &m.Egress.UpstreamCA, true},
		{[]any{"pipelock", "binary"}, &m.Pipelock.Binary, true},
		{[]any{"approvals", "policy"}, &m.Approvals.Policy, true},
	}
	if m.Agent.Build != nil {
		out = append(out,
			expandedField{[]any{"agent", "build", "context"}, &m.Agent.Build.Context, true},
			expandedField{[]any{"agent", "build", "dockerfile"}, &m.Agent.Build.Dockerfile, false})
	}
	for i := range m.Git {
		out = append(out,
			expandedField{[]any{"git", i, "identity_file"}, &m.Git[i].IdentityFile, true},
			expandedField{[]any{"git", i, "known_hosts"}, &m.Git[i].KnownHosts, true})
	}
	return out
}

func (p *manifestParser) absolute(s string) (string, error) {
	switch {
	case strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return "", invalidError("has a control character; a path has none")
	case s == "~" || strings.HasPrefix(s, "~/"):
		if !filepath.IsAbs(p.home) {
			return "", invalidError("~ can't be expanded, since your home directory is not known; write the path out")
		}
		s = filepath.Join(p.home, s[1:])
	case s[0] == '~':
		return "", invalidError("only ~/ is expanded, not another user's home; write the path out")
	case !filepath.IsAbs(s):
		s = filepath.Join(p.dir, s)
	}
	return filepath.Clean(s), nil
}

var envName = regexp.MustCompile(`\A[A-Za-z_][A-Za-z0-9_]*\z`)

// expandRefs fills in ${NAME}; $${ stands for ${ itself, and any other $ for itself, so that
// a value with dollars in it survives.
func expandRefs(s string, lookup func(string) (string, bool)) (string, error) {
	var out strings.Builder
	err := eachRef(s, func(literal, name string) error {
		out.WriteString(literal)
		if name == "" {
			return nil
		}
		v, ok := lookup(name)
		if !ok {
			return invalidError(fmt.Sprintf("${%s} is not set in your environment; set it, or write $${%s} for the text itself", name, name))
		}
		out.WriteString(v)
		return nil
	})
	return out.String(), err
}

// eachRef calls f with each stretch of literal text and the reference after it, if any.
func eachRef(s string, f func(literal, name string) error) error {
	for {
		before, after, found := strings.Cut(s, "${")
		if !found {
			return f(s, "")
		}
		if strings.HasSuffix(before, "$") {
			if err := f(before+"{", ""); err != nil {
				return err
			}
			s = after
			continue
		}
		name, rest, closed := strings.Cut(after, "}")
		if !closed || !envName.MatchString(name) {
			return invalidError(fmt.Sprintf("%q does not begin with a reference such as ${HOME}; write $${ for the text itself", clip("${"+after, 40)))
		}
		if err := f(before, name); err != nil {
			return err
		}
		s = rest
	}
}

// escapeRefs is the inverse of [expandRefs].
func escapeRefs(s string) string { return strings.ReplaceAll(s, "${", "$${") }

// references returns the names that s refers to.
func references(s string) ([]string, error) {
	var names []string
	err := eachRef(s, func(_, name string) error {
		if name != "" {
			names = append(names, name)
		}
		return nil
	})
	return names, err
}

// CheckCredential reports whether the route may carry the credential that it names: one
// that is defined and bound to all that the route's host covers. A route that names none
// is fine.
func CheckCredential(r Route, defined map[string]Credential) error {
	if r.Credential == "" {
		return nil
	}
	c, ok := defined[r.Credential]
	if !ok {
		return invalid("credential", "%q of %s is not defined under credentials in the manifest%s", clip(r.Credential, 40), r.Host, didYouMean(r.Credential, defined))
	}
	if !c.Allows(r.Host) {
		return invalid("credential", "%s is bound to %s and is not sent to %s; add the host to credentials.%s.hosts if it may go there", r.Credential, joinHosts(c.Hosts), r.Host, r.Credential)
	}
	if h := c.Judged(r.Matches); h != "" {
		return invalid("credential", "%s takes the %s out of what the agent sends to %s, so no match can judge by it; remove it from matches", r.Credential, clip(h, 40), r.Host)
	}
	return nil
}
