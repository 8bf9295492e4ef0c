package allow

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/net/publicsuffix"

	"bottle/bottle"
)

// A Table is an immutable, compiled set of routes; any number of goroutines may use it.
// Routes are found by host, so its size costs a decision nothing.
type Table struct {
	routes []bottle.Route
	rules  []rule
	exact  map[bottle.Host][]int // by name
	wild   map[string][]int      // by the name below "*."
	site   map[string][]int      // by registrable domain: for explanations alone
}

// A rule is a compiled route.
type rule struct {
	route   *bottle.Route
	ports   []int
	matches []match // none: the whole host
}

type match struct {
	text    string
	method  string
	path    func(norm string) bool // nil: any path
	rank    pathRank
	headers []header
	query   []queryParam
}

type header struct {
	name  string // lower case
	match func(string) bool
}

// pathRank orders matches by how narrow their path is.
type pathRank struct{ kind, length int }

const (
	anyPath = iota
	prefixPath
	regexpPath
	exactPath
)

// Compile returns the table of the routes, which it makes canonical first. The error
// names the route that is wrong and wraps [bottle.ErrInvalid].
func Compile(routes []bottle.Route) (*Table, error) {
	if len(routes) > bottle.MaxRoutes {
		return nil, fmt.Errorf("routes: %d of them; at most %d: %w", len(routes), bottle.MaxRoutes, bottle.ErrInvalid)
	}
	t := &Table{
		routes: make([]bottle.Route, len(routes)),
		rules:  make([]rule, len(routes)),
		exact:  map[bottle.Host][]int{},
		wild:   map[string][]int{},
		site:   map[string][]int{},
	}
	for i, r := range routes {
		c, err := r.Canonical()
		if err != nil {
			return nil, fmt.Errorf("routes[%d]: %w", i, err)
		}
		t.routes[i] = c
		if t.rules[i], err = compileRule(&t.routes[i]); err != nil {
			return nil, fmt.Errorf("routes[%d]: %w", i, err)
		}
		if base, wild := strings.CutPrefix(string(c.Host), "*."); wild {
			t.wild[base] = append(t.wild[base], i)
		} else {
			t.exact[c.Host] = append(t.exact[c.Host], i)
		}
		s := site(c.Host)
		t.site[s] = append(t.site[s], i)
	}
	return t, nil
}

// Routes returns a copy of the table's routes, in canonical form and in the order given.
func (t *Table) Routes() []bottle.Route { return slices.Clone(t.routes) }

func compileRule(r *bottle.Route) (rule, error) {
	out := rule{route: r, ports: r.AllPorts()}
	for _, m := range r.Matches {
		c, err := compileMatch(m)
		if err != nil {
			return rule{}, err
		}
		out.matches = append(out.matches, c)
	}
	return out, nil
}

func compileMatch(m bottle.Match) (match, error) {
	out := match{text: m.String(), method: m.Method}
	if m.Path != nil {
		v := m.Path.Value
		switch m.Path.Type {
		case bottle.Exact:
			out.path = func(p string) bool { return p == v }
			out.rank = pathRank{exactPath, len(v)}
		case bottle.PathPrefix:
			out.path = func(p string) bool { return below(p, v) }
			out.rank = pathRank{prefixPath, len(v)}
		case bottle.RegularExpression:
			re, err := whole(v)
			if err != nil {
				return match{}, err
			}
			out.path = re.MatchString
			out.rank = pathRank{regexpPath, len(v)}
		}
	}
	for _, h := range m.Headers {
		fits, err := compileValue(h.Type, h.Value)
		if err != nil {
			return match{}, err
		}
		out.headers = append(out.headers, header{h.Name, fits})
	}
	var err error
	out.query, err = compileQuery(m.Query)
	return out, err
}

// compileValue compiles what a header's or a parameter's value is compared with.
func compileValue(kind bottle.MatchType, value string) (func(string) bool, error) {
	if kind != bottle.RegularExpression {
		return func(v string) bool { return v == value }, nil
	}
	re, err := whole(value)
	if err != nil {
		return nil, err
	}
	return re.MatchString, nil
}

// whole compiles an expression that must fit the whole value.
func whole(expr string) (*regexp.Regexp, error) {
	re, err := regexp.Compile(`\A(?:` + expr + `)\z`)
	if err != nil {
		return nil, fmt.Errorf("regular expression %q: %w (%w)", expr, err, bottle.ErrInvalid)
	}
	return re, nil
}

// below reports whether the path is the prefix or lies below it, by whole segments. Both
// are in normal form; a prefix other than / has no slash at its end.
func below(path, prefix string) bool {
	if prefix == "/" {
		return true
	}
	rest, ok := strings.CutPrefix(path, prefix)
	return ok && (rest == "" || rest[0] == '/')
}

// candidates returns the routes whose host covers h: the name's own, then the wildcards.
// h is a name, not a pattern. Since "*." covers one label, one parent is all there is to
// look up. A name that is not canonical has none, whatever its parent.
func (t *Table) candidates(h bottle.Host) (named, wild []int) {
	named = t.exact[h]
	_, parent, ok := strings.Cut(string(h), ".")
	if !ok {
		return named, nil
	}
	if wild = t.wild[parent]; wild != nil {
		if c, err := bottle.ParseHost(string(h)); err != nil || c != h {
			return named, nil
		}
	}
	return named, wild
}

// site is the registrable domain of a host or pattern, or the name itself if it has none.
func site(h bottle.Host) string {
	name := strings.TrimPrefix(string(h), "*.")
	if s, err := publicsuffix.EffectiveTLDPlusOne(name); err == nil {
		return s
	}
	return name
}
