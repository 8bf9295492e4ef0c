package bottle

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
)

// TLSMode says what egress does with a CONNECT to a route's host.
type TLSMode string

// The TLS modes. The empty mode means intercept.
const (
	Intercept   TLSMode = "intercept"   // terminate with the bottle's CA, judge each request
	Passthrough TLSMode = "passthrough" // splice; only CONNECT host and SNI are judged
)

// Bounds of routes and entries.
const (
	MaxRoutes  = 10_000 // in one routes.yaml
	MaxMatches = 50     // of one route
	MaxHeaders = 16     // of one match
	MaxValue   = 2048   // bytes of a path or header value
)

// A Route lets the agent reach one host, or the part of it that its matches describe.
// The vocabulary is that of the Gateway API's HTTPRoute.
type Route struct {
	Host       Host    `yaml:"host" json:"host"`
	Ports      []int   `yaml:"ports,omitempty,flow" json:"ports,omitempty"`      // absent: 443 and 80
	Matches    []Match `yaml:"matches,omitempty" json:"matches,omitempty"`       // OR; absent: the whole host
	Credential string  `yaml:"credential,omitempty" json:"credential,omitempty"` // by name
	TLS        TLSMode `yaml:"tls,omitempty" json:"tls,omitempty"`
	Grant      *Grant  `yaml:"grant,omitempty,flow" json:"grant,omitempty"` // absent: from the manifest
}

// A Match is true of a request if all of its parts are.
type Match struct {
	Path    *PathMatch    `yaml:"path,omitempty,flow" json:"path,omitempty"`
	Method  string        `yaml:"method,omitempty" json:"method,omitempty"` // upper case; empty: any
	Headers []HeaderMatch `yaml:"headers,omitempty,flow" json:"headers,omitempty"`
	Query   []QueryMatch  `yaml:"queryParams,omitempty,flow" json:"queryParams,omitempty"`
}

// MatchType is how a value is compared.
type MatchType string

// The match types of HTTPRoute. PathPrefix is for paths alone and goes by whole segments.
const (
	Exact             MatchType = "Exact"
	PathPrefix        MatchType = "PathPrefix"
	RegularExpression MatchType = "RegularExpression" // RE2, over the whole value
)

// A PathMatch compares the normalised path, without the query.
type PathMatch struct {
	Type  MatchType `yaml:"type" json:"type"`
	Value string    `yaml:"value" json:"value"`
}

// A HeaderMatch compares one header's value; several values of one name never match.
type HeaderMatch struct {
	Type  MatchType `yaml:"type,omitempty" json:"type,omitempty"` // Exact if empty
	Name  string    `yaml:"name" json:"name"`
	Value string    `yaml:"value" json:"value"`
}

// A Grant marks a route that an operator's decision opened, and when it ends.
type Grant struct {
	Request   string     `yaml:"request" json:"request"` // short ID; it names the grant too
	By        string     `yaml:"by" json:"by"`           // "uid name"
	At        time.Time  `yaml:"at" json:"at"`
	Duration  Duration   `yaml:"duration" json:"duration"`
	ExpiresAt *time.Time `yaml:"expires_at,omitempty" json:"expires_at,omitempty"` // duration ttl alone
	// BootID and BootExpires (seconds of CLOCK_BOOTTIME) end a TTL grant on time even
	// if the wall clock is set back meanwhile; they count only within that boot.
	BootID      string  `yaml:"boot_id,omitempty" json:"boot_id,omitempty"`
	BootExpires float64 `yaml:"boot_expires,omitempty" json:"boot_expires,omitempty"`
}

// DefaultPorts are those of a route or entry that names none.
func DefaultPorts() []int { return []int{80, 443} }

// AllPorts returns the route's ports, ascending, the default ones if it names none.
func (r Route) AllPorts() []int { return portsOr(r.Ports) }

func portsOr(p []int) []int {
	if len(p) == 0 {
		return DefaultPorts()
	}
	return p
}

// Mode returns the route's TLS mode, intercept if it names none.
func (r Route) Mode() TLSMode {
	if r.TLS == "" {
		return Intercept
	}
	return r.TLS
}

// Canonical returns the route in the one form that is compared, shown and stored, or an
// error that names the field and the fix and wraps [ErrInvalid].
func (r Route) Canonical() (Route, error) {
	e, err := Entry{Host: r.Host, Ports: r.Ports, Matches: r.Matches}.Canonical()
	if err != nil {
		return Route{}, err
	}
	r.Host, r.Ports, r.Matches = e.Host, e.Ports, e.Matches
	switch r.TLS {
	case "", Intercept:
		r.TLS = ""
	case Passthrough:
		if len(r.Matches) > 0 {
			return Route{}, invalid("tls", "passthrough can't be judged by path, method, header or query; remove matches of %s or use intercept", r.Host)
		}
		if r.Credential != "" {
			return Route{}, invalid("tls", "passthrough can't carry a credential; remove it from %s or use intercept", r.Host)
		}
	default:
		return Route{}, invalid("tls", "%q is not a mode; use intercept or passthrough", clip(string(r.TLS), 40))
	}
	if r.Credential != "" {
		if err := CheckName(r.Credential); err != nil {
			return Route{}, fmt.Errorf("credential of %s: %w", r.Host, err)
		}
	}
	if r.Grant != nil {
		g, err := r.Grant.canonical()
		if err != nil {
			return Route{}, fmt.Errorf("%s: %w", r.Host, err)
		}
		r.Grant = &g
	}
	return r, nil
}

// An Entry is what a request asks to add or remove.
type Entry struct {
	Host    Host    `yaml:"host" json:"host"`
	Ports   []int   `yaml:"ports,omitempty,flow" json:"ports,omitempty"`
	Matches []Match `yaml:"matches,omitempty" json:"matches,omitempty"`
}

// Canonical returns the entry with a canonical host, ports ascending and without the
// default set, paths normalised, methods in upper case, matches sorted and each once.
func (e Entry) Canonical() (Entry, error) {
	h, err := ParsePattern(string(e.Host))
	if err != nil {
		return Entry{}, err
	}
	out := Entry{Host: h}
	if len(e.Ports) > 64 {
		return Entry{}, invalid("ports", "%d of them for %s; name at most 64", len(e.Ports), h)
	}
	for _, p := range e.Ports {
		if p < 1 || p > 65535 {
			return Entry{}, invalid("ports", "%d of %s is not a port; use 1 to 65535", p, h)
		}
	}
	if len(e.Ports) > 0 {
		out.Ports = slices.Clone(e.Ports)
		slices.Sort(out.Ports)
		out.Ports = slices.Compact(out.Ports)
		if slices.Equal(out.Ports, DefaultPorts()) {
			out.Ports = nil
		}
	}
	if len(e.Matches) > MaxMatches {
		return Entry{}, invalid("matches", "%d of them for %s; at most %d", len(e.Matches), h, MaxMatches)
	}
	for i, m := range e.Matches {
		c, err := m.canonical()
		if err != nil {
			return Entry{}, fmt.Errorf("%s: matches[%d]: %w", h, i, err)
		}
		if c.Path == nil && c.Method == "" && len(c.Headers) == 0 && len(c.Query) == 0 {
			return Entry{}, invalid("matches", "matches[%d] of %s is empty and would match everything; remove matches to ask for the whole host", i, h)
		}
		out.Matches = append(out.Matches, c)
	}
	slices.SortFunc(out.Matches, func(a, b Match) int { return cmp.Compare(a.String(), b.String()) })
	out.Matches = slices.CompactFunc(out.Matches, func(a, b Match) bool { return a.String() == b.String() })
	return out, nil
}

func (m Match) canonical() (Match, error) {
	out := Match{Method: strings.ToUpper(m.Method)}
	if m.Method != "" && (len(m.Method) > 32 || !httpguts.ValidHeaderFieldName(m.Method)) {
		return Match{}, invalid("method", "%q is not an HTTP method", clip(m.Method, 40))
	}
	if out.Method == "CONNECT" || out.Method == "TRACE" {
		return Match{}, invalid("method", "%s can't be routed", out.Method)
	}
	if m.Path != nil {
		p, err := m.Path.canonical()
		if err != nil {
			return Match{}, err
		}
		out.Path = &p
	}
	if len(m.Headers) > MaxHeaders {
		return Match{}, invalid("headers", "%d of them; at most %d", len(m.Headers), MaxHeaders)
	}
	for _, h := range m.Headers {
		if !httpguts.ValidHeaderFieldName(h.Name) || len(h.Name) > 128 {
			return Match{}, invalid("headers", "%q is not a header name", clip(h.Name, 40))
		}
		if len(h.Value) > MaxValue || !httpguts.ValidHeaderFieldValue(h.Value) {
			return Match{}, invalid("headers", "the value for %s is not a header value of at most %d bytes", h.Name, MaxValue)
		}
		h.Name = strings.ToLower(h.Name)
		switch h.Type {
		case "", Exact:
			h.Type = ""
		case RegularExpression:
			if err := checkRegexp(h.Value); err != nil {
				return Match{}, err
			}
		case PathPrefix:
			fallthrough
		default:
			return Match{}, invalid("headers", "type %q of %s is not Exact or RegularExpression", clip(string(h.Type), 40), h.Name)
		}
		out.Headers = append(out.Headers, h)
	}
	slices.SortFunc(out.Headers, func(a, b HeaderMatch) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Type, b.Type), cmp.Compare(a.Value, b.Value))
	})
	var err error
	out.Query, err = canonicalQuery(m.Query)
	return out, err
}

func (p PathMatch) canonical() (PathMatch, error) {
	if len(p.Value) > MaxValue {
		return PathMatch{}, invalid("path", "longer than %d bytes", MaxValue)
	}
	switch p.Type {
	case Exact, PathPrefix:
		v, err := NormalizePath(p.Value)
		if err != nil {
			return PathMatch{}, err
		}
		if v != "/" && p.Type == PathPrefix { // /v1 and /v1/ are one prefix (HTTPRoute)
			v = strings.TrimSuffix(v, "/")
		}
		if len(v) > MaxValue { // the canonical form must be one that is taken again
			return PathMatch{}, invalid("path", "longer than %d bytes once what needs it is escaped", MaxValue)
		}
		p.Value = v
	case RegularExpression:
		if err := checkRegexp(p.Value); err != nil {
			return PathMatch{}, err
		}
	default:
		return PathMatch{}, invalid("path.type", "%q; use Exact, PathPrefix or RegularExpression", clip(string(p.Type), 40))
	}
	return p, nil
}

func checkRegexp(expr string) error {
	if expr == "" {
		return invalid("value", "an empty regular expression; write .* to match everything")
	}
	// By itself as well: a)|(?:b compiles between the anchors, and gets out of them.
	for _, s := range []string{expr, `\A(?:` + expr + `)\z`} {
		if _, err := regexp.Compile(s); err != nil {
			return invalid("value", "not a regular expression (RE2): %v", err)
		}
	}
	return nil
}

// String describes the match in one line of a diff: "GET /v1/*", "any /x", "POST ~^/a/.*$",
// `GET /x/* k="v" ?"q"="v"`.
func (m Match) String() string {
	var b strings.Builder
	b.WriteString(cmp.Or(m.Method, "any"))
	b.WriteByte(' ')
	switch {
	case m.Path == nil:
		b.WriteString("/*")
	case m.Path.Type == Exact:
		b.WriteString("=" + m.Path.Value)
	case m.Path.Type == PathPrefix:
		b.WriteString(strings.TrimSuffix(m.Path.Value, "/") + "/*")
	default:
		b.WriteString("~" + strconv.Quote(m.Path.Value))
	}
	for _, h := range m.Headers {
		op := "="
		if h.Type == RegularExpression {
			op = "~"
		}
		fmt.Fprintf(&b, " %s%s%q", h.Name, op, h.Value)
	}
	for _, q := range m.Query {
		op := "="
		if q.Type == RegularExpression {
			op = "~"
		}
		fmt.Fprintf(&b, " ?%q%s%q", q.Name, op, q.Value)
	}
	return b.String()
}

// Lines describes the entry for a semantic diff, one line for each match, with host and
// ports in each, so that a line stands on its own.
func (e Entry) Lines() []string {
	where := string(e.Host)
	if len(e.Ports) > 0 {
		s := make([]string, len(e.Ports))
		for i, p := range e.Ports {
			s[i] = strconv.Itoa(p)
		}
		where += ":" + strings.Join(s, ",")
	}
	if len(e.Matches) == 0 {
		return []string{where + "  every method and path"}
	}
	var out []string
	for _, m := range e.Matches {
		out = append(out, where+"  "+m.String())
	}
	return out
}

// Entry returns what the route allows, without how.
func (r Route) Entry() Entry { return Entry{Host: r.Host, Ports: r.Ports, Matches: r.Matches} }

// Lines is [Entry.Lines] with the route's credential, TLS mode and, for a grant, its
// length and request.
func (r Route) Lines() []string {
	tail := ""
	if r.Credential != "" {
		tail += "  credential " + r.Credential
	}
	if r.Mode() == Passthrough {
		tail += "  passthrough"
	}
	if r.Grant != nil {
		tail += "  " + r.Grant.Duration.Words()
		tail += " (" + r.Grant.Request + ")"
	}
	lines := r.Entry().Lines()
	for i := range lines {
		lines[i] += tail
	}
	return lines
}

func invalid(field, format string, args ...any) error {
	return invalidError(field + ": " + fmt.Sprintf(format, args...))
}
