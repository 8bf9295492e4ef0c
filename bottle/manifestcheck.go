package bottle

import (
	"fmt"
	"maps"
	"net/netip"
	"net/textproto"
	"net/url"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"
)

func (p *manifestParser) checkAgent() error {
	m := p.m
	if m.Name == "" {
		return p.at(invalidError("name is missing; give the bottle a name, such as name: work"), "name")
	}
	if err := CheckName(m.Name); err != nil {
		return p.at(err, "name")
	}
	a := m.Agent
	if a.Image != "" && a.Build != nil {
		return p.at(invalidError("agent.image and agent.build are both given; keep one"), "agent", "build")
	}
	if a.Build != nil && a.Build.Context == "" {
		return p.at(invalidError("agent.build.context is missing; name the directory to build from"), "agent", "build")
	}
	if a.Workspace == "" || a.Workspace == "/" {
		return p.at(invalidError("agent.workspace must be a directory that the agent may write, and not the root; remove the key for the manifest's own"), "agent", "workspace")
	}
	for i, s := range a.Command {
		if strings.ContainsRune(s, 0) || (i == 0 && s == "") {
			return p.at(invalid("agent.command", "word %d can't be an argument (empty program name, or a NUL)", i), "agent", "command", i)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(a.Env)) {
		if !envName.MatchString(k) {
			return p.at(invalid("agent.env", "%q is not a variable's name; use letters, digits and _", clip(k, 40)), "agent", "env", k)
		}
		refs, err := references(a.Env[k])
		if err != nil {
			return p.at(fmt.Errorf("agent.env.%s: %w", k, err), "agent", "env", k)
		}
		if strings.ContainsRune(a.Env[k], 0) {
			return p.at(invalid("agent.env."+k, "has a NUL; a variable can't"), "agent", "env", k)
		}
		for _, name := range slices.Sorted(maps.Keys(m.Credentials)) {
			if env := m.Credentials[name].TokenEnv; slices.Contains(refs, env) {
				return p.at(invalid("agent.env."+k, "${%s} is the token of credential %s, which the agent must not see; remove it, egress puts the token in", env, name), "agent", "env", k)
			}
		}
	}
	return nil
}

// Headers that say how a message is framed or routed; a credential in one of them would
// change what is sent, not who sends it (RFC 9110, sections 7.2, 7.6.1, 8.6).
var framingHeaders = []string{
	"Connection", "Content-Length", "Content-Type", "Expect", "Host", "Keep-Alive", "Proxy-Authorization",
	"Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Via",
}

func (p *manifestParser) checkCredentials() error {
	for _, name := range slices.Sorted(maps.Keys(p.m.Credentials)) {
		c := p.m.Credentials[name]
		where := "credentials." + clip(name, 40)
		if err := CheckName(name); err != nil {
			return p.at(fmt.Errorf("credentials: %w", err), "credentials", name)
		}
		if err := p.checkForm(c, where, name); err != nil {
			return err
		}
		switch {
		case c.TokenEnv == "":
			return p.at(invalidError(where+".token_env is missing; name the environment variable that holds the token"), "credentials", name)
		case !envName.MatchString(c.TokenEnv): // never shown: it may be the token
			return p.at(invalidError(where+".token_env must be the name of an environment variable, such as EXAMPLE_TOKEN, and never the token itself"), "credentials", name, "token_env")
		case len(c.Hosts) == 0:
			return p.at(invalidError(where+".hosts is missing; name the hosts that it may be sent to"), "credentials", name)
		}
		c.Header = textproto.CanonicalMIMEHeaderKey(c.Header)
		if slices.Contains(framingHeaders, c.Header) {
			return p.at(invalid(where+".header", "%s can't carry a credential", c.Header), "credentials", name, "header")
		}
		hosts, err := p.patterns(c.Hosts, where+".hosts", "credentials", name, "hosts")
		if err != nil {
			return err
		}
		c.Hosts = hosts
		p.m.Credentials[name] = c
	}
	return nil
}

// checkForm checks how a credential is sent: in one way, and in none that would change more.
func (p *manifestParser) checkForm(c Credential, where, name string) error {
	forms := 0
	for _, given := range []bool{c.Header != "", c.Query != "", c.Basic != nil} {
		if given {
			forms++
		}
	}
	switch {
	case forms == 0:
		return p.at(invalidError(where+".header is missing; name the header that carries it, such as Authorization, or use query or basic"), "credentials", name)
	case forms > 1:
		return p.at(invalidError(where+" has more than one of header, query and basic; keep one"), "credentials", name)
	case c.Scheme != "" && c.Header == "":
		return p.at(invalidError(where+".scheme is for header alone; remove it"), "credentials", name, "scheme")
	case c.Header != "" && (!httpguts.ValidHeaderFieldName(c.Header) || len(c.Header) > 128):
		return p.at(invalid(where+".header", "%q is not a header name", clip(c.Header, 40)), "credentials", name, "header")
	case c.Scheme != "" && !httpguts.ValidHeaderFieldName(c.Scheme): // a token as well, RFC 9110 section 11.1
		return p.at(invalid(where+".scheme", "%q is not an authentication scheme; use one word, such as Bearer", clip(c.Scheme, 40)), "credentials", name, "scheme")
	case c.Query != "" && CheckQueryName(c.Query) != nil:
		return p.at(fmt.Errorf("%s.%w", where, CheckQueryName(c.Query)), "credentials", name, "query")
	case c.Basic != nil && !c.Basic.checkUser(): // not shown: it may be the password too
		return p.at(invalidError(where+".basic.user has a colon, or what is not printable ASCII; for a user and password in one variable, leave it out"), "credentials", name, "basic")
	}
	return nil
}

func (p *manifestParser) patterns(in []Host, where string, at ...any) ([]Host, error) {
	out := make([]Host, 0, len(in))
	for i, h := range in {
		c, err := ParsePattern(string(h))
		if err != nil {
			return nil, p.at(fmt.Errorf("%s[%d]: %w", where, i, err), append(at, i)...)
		}
		out = append(out, c)
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

func (p *manifestParser) checkEgress() error {
	e := &p.m.Egress
	listen, err := netip.ParseAddrPort(e.Listen)
	if err != nil || !listen.Addr().IsLoopback() || listen.Addr().Zone() != "" {
		return p.at(invalid("egress.listen", "%q must be a loopback address and a port, such as 127.0.0.1:0, since whoever reaches it may use the routes", clip(e.Listen, 40)), "egress", "listen")
	}
	if len(e.Routes) > MaxRoutes {
		return p.at(invalid("egress.routes", "%d; at most %d", len(e.Routes), MaxRoutes), "egress", "routes")
	}
	seq := nodeAt(p.root, "egress", "routes")
	if e.Routes, err = p.routes(seq, e.Routes, "egress.routes"); err != nil {
		return err
	}
	for i, r := range e.Routes {
		if err := CheckCredential(r, p.m.Credentials); err != nil {
			return p.at(fmt.Errorf("egress.routes[%d]: %w", i, err), "egress", "routes", i)
		}
		if r.Grant != nil && r.Grant.Duration.Kind != Permanent {
			return p.at(invalidError(fmt.Sprintf("egress.routes[%d].grant is %s; only a permanent grant can be in a manifest", i, r.Grant.Duration.Words())), "egress", "routes", i)
		}
	}
	for i, c := range e.AllowCIDRs {
		switch {
		case c.Bits() == 0:
			return p.at(invalid("egress.allow_cidrs", "%s permits every address, this machine's own included; name the networks that you mean", c), "egress", "allow_cidrs", i)
		case c != c.Masked():
			return p.at(invalid("egress.allow_cidrs", "%s has bits beyond its mask; write %s, or %s for the one address", c, c.Masked(), netip.PrefixFrom(c.Addr(), c.Addr().BitLen())), "egress", "allow_cidrs", i)
		case c.Addr().Is4In6():
			return p.at(invalid("egress.allow_cidrs", "%s is an IPv4 network in IPv6 clothes; write it as IPv4", c), "egress", "allow_cidrs", i)
		}
	}
	return p.checkResolve()
}

func (p *manifestParser) checkResolve() error {
	out := make(map[Host]netip.Addr, len(p.m.Egress.Resolve))
	for _, name := range slices.Sorted(maps.Keys(p.m.Egress.Resolve)) {
		addr := p.m.Egress.Resolve[name]
		h, err := ParsePattern(string(name))
		switch {
		case err != nil:
			return p.at(fmt.Errorf("egress.resolve: %w", err), "egress", "resolve", string(name))
		case h.Wildcard():
			return p.at(invalid("egress.resolve", "%s is a pattern; write one line for each name", h), "egress", "resolve", string(name))
		case addr.Zone() != "" || addr.IsUnspecified() || addr.IsMulticast():
			return p.at(invalid("egress.resolve."+string(h), "%s can't be dialled; give the address of a machine, without zone", addr), "egress", "resolve", string(name))
		}
		if _, twice := out[h]; twice {
			return p.at(invalid("egress.resolve", "%s is there twice, in two spellings; keep one", h), "egress", "resolve", string(name))
		}
		out[h] = addr.Unmap()
	}
	p.m.Egress.Resolve = out
	return nil
}

func (p *manifestParser) checkPipelock() error {
	l := &p.m.Pipelock
	if l.Mode != PipelockStrict {
		return p.at(invalid("pipelock.mode", "%q; use strict: in any other mode hosts that nobody listed are reachable", clip(l.Mode, 40)), "pipelock", "mode")
	}
	var err error
	l.PassthroughDomains, err = p.patterns(l.PassthroughDomains, "pipelock.passthrough_domains", "pipelock", "passthrough_domains")
	return err
}

func (p *manifestParser) checkGit() error {
	seen := map[string]bool{}
	for i, g := range p.m.Git {
		where := fmt.Sprintf("git[%d]", i)
		if err := CheckName(g.Name); err != nil {
			return p.at(fmt.Errorf("%s.name: %w", where, err), "git", i)
		}
		if seen[g.Name] {
			return p.at(invalid(where+".name", "%s is there twice; names must differ", g.Name), "git", i)
		}
		seen[g.Name] = true
		ssh, err := checkGitURL(g.URL)
		if err != nil {
			return p.at(fmt.Errorf("%s.url: %w", where, err), "git", i, "url")
		}
		if !ssh && (g.IdentityFile != "" || g.KnownHosts != "") {
			return p.at(invalid(where, "identity_file and known_hosts are for ssh:// alone; remove them or change the url"), "git", i)
		}
	}
	return nil
}

func checkGitURL(s string) (ssh bool, err error) {
	if s == "" {
		return false, invalidError("missing; give one such as ssh://git@github.com/acme/app.git")
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return false, invalidError("has a space or a control character")
	}
	u, err := url.Parse(s)
	if err != nil || (u.Scheme != "ssh" && u.Scheme != "https") || u.Opaque != "" {
		return false, invalidError("must begin with ssh:// or https://, as in ssh://git@github.com/acme/app.git")
	}
	if _, secret := u.User.Password(); secret { // not shown
		return false, invalidError("has a password in it; remove it, a manifest holds no secrets")
	}
	if _, err := ParseHost(u.Hostname()); err != nil {
		return false, err
	}
	// A user or host that begins with - would be an option to ssh (CVE-2017-1000117).
	if strings.HasPrefix(u.User.Username(), "-") {
		return false, invalidError("the user begins with -")
	}
	if strings.Trim(u.Path, "/") == "" || u.RawQuery != "" || u.Fragment != "" {
		return false, invalidError("must have a path and neither query nor fragment, as in https://github.com/acme/app.git")
	}
	return u.Scheme == "ssh", nil
}

func (p *manifestParser) checkApprovals() error {
	a := p.m.Approvals
	switch {
	case a.MaxPending < 1 || a.MaxPending > MaxMaxPending:
		return p.at(invalid("approvals.max_pending", "%d; use 1 to %d", a.MaxPending, MaxMaxPending), "approvals", "max_pending")
	case a.PendingTTL < MinPendingTTL || a.PendingTTL > MaxTTL:
		return p.at(invalid("approvals.pending_ttl", "%s; use %s to %s", a.PendingTTL, MinPendingTTL, MaxTTL), "approvals", "pending_ttl")
	case a.DefaultGrant.Kind == "":
		return p.at(invalidError("approvals.default_grant is empty; use once, session, permanent, or a time span such as 10m"), "approvals", "default_grant")
	case a.Policy != "" && p.m.InWorkspace(a.Policy):
		return p.at(invalid("approvals.policy", "%s lies in the workspace %s, where the agent could rewrite it; move it out", a.Policy, p.m.Agent.Workspace), "approvals", "policy")
	}
	return nil
}

func didYouMean(key string, known map[string]Credential) string {
	if near := Nearest(key, slices.Sorted(maps.Keys(known))); near != "" {
		return fmt.Sprintf("; did you mean %q?", near)
	}
	return ""
}

func joinHosts(hosts []Host) string {
	s := make([]string, len(hosts))
	for i, h := range hosts {
		s[i] = string(h)
	}
	return strings.Join(s, ", ")
}
