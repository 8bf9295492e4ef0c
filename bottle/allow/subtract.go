package allow

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"bottle/bottle"
)

// Kept is a route that stays after a removal.
type Kept struct {
	Index   int          // in the routes that were given
	Route   bottle.Route // with fewer ports or matches if Changed
	Changed bool
}

// Subtract takes what the entries describe out of the routes, and returns the routes that
// stay, in order. Afterwards nothing that an entry describes is allowed any more.
//
// An entry without matches takes the whole host, one without ports every port. Where a
// route can't lose exactly what is asked (a prefix of which only a part goes, a wildcard
// of which one name goes), it loses the whole match, port or route that overlaps: too
// little may stay open, never too much. [Overreach] says where that is so.
//
// An entry that touches no route is an error that names it and wraps [bottle.ErrInvalid].
func Subtract(routes []bottle.Route, remove []bottle.Entry) ([]Kept, error) {
	kept, _, err := subtract(routes, remove)
	return kept, err
}

// Overreach lists, a line each, what [Subtract] closes beyond what was asked. Entries on
// which Subtract fails have none.
func Overreach(routes []bottle.Route, remove []bottle.Entry) []string {
	_, notes, err := subtract(routes, remove)
	if err != nil {
		return nil
	}
	return notes
}

func subtract(routes []bottle.Route, remove []bottle.Entry) (kept []Kept, notes []string, err error) {
	remove = slices.Clone(remove)
	for i, e := range remove {
		if remove[i], err = e.Canonical(); err != nil {
			return nil, nil, fmt.Errorf("remove[%d]: %w", i, err)
		}
	}
	touched := make([]bool, len(remove))
	for i, route := range routes {
		if route, err = route.Canonical(); err != nil {
			return nil, nil, fmt.Errorf("routes[%d]: %w", i, err)
		}
		left, gone, changed := route, false, false
		for j, e := range remove {
			// What an entry touches is judged on the original, so that the order of entries
			// does not matter; what is left is cut down further by each.
			if _, _, hit, over := cut(route, e); hit {
				touched[j] = true
				notes = append(notes, over...)
			} else {
				continue
			}
			if !gone {
				var hit bool
				left, gone, hit, _ = cut(left, e)
				changed = changed || hit
			}
		}
		if !gone {
			kept = append(kept, Kept{Index: i, Route: left, Changed: changed})
		}
	}
	for j, ok := range touched {
		if !ok {
			return nil, nil, fmt.Errorf("remove[%d]: no route allows any of %s: %w", j, strings.Join(remove[j].Lines(), "; "), bottle.ErrInvalid)
		}
	}
	return kept, notes, nil
}

// cut takes e out of r. hit: r allowed some of it; gone: nothing of r is left.
func cut(r bottle.Route, e bottle.Entry) (left bottle.Route, gone, hit bool, notes []string) {
	wholeHost := e.Host.Covers(r.Host) || e.Host == r.Host
	if !wholeHost && !r.Host.Covers(e.Host) {
		return r, false, false, nil
	}
	note := func(what string) {
		notes = append(notes, fmt.Sprintf("%s goes too: %s can be taken from it only with the rest", what, strings.Join(e.Lines(), "; ")))
	}
	ports := r.AllPorts()
	rest := []int{}
	if len(e.Ports) > 0 {
		rest = slices.DeleteFunc(slices.Clone(ports), func(p int) bool { return slices.Contains(e.Ports, p) })
		if len(rest) == len(ports) {
			return r, false, false, nil
		}
	}
	if len(e.Matches) == 0 || len(r.Matches) == 0 {
		if !wholeHost || len(e.Matches) > 0 {
			note(strings.Join(r.Lines(), "; "))
		}
		if len(rest) == 0 {
			return r, true, true, notes
		}
		return withPorts(r, rest), false, true, notes
	}
	var matches []bottle.Match
	for _, m := range r.Matches {
		over, covered := false, false
		for _, x := range e.Matches {
			over = over || overlaps(m, x)
			covered = covered || covers(x, m)
		}
		switch {
		case !over:
			matches = append(matches, m)
		case !covered || !wholeHost || len(rest) > 0:
			note(string(r.Host) + "  " + m.String())
		}
	}
	if len(matches) == len(r.Matches) {
		return r, false, false, nil
	}
	r.Matches = matches
	return r, len(matches) == 0, true, notes
}

func withPorts(r bottle.Route, ports []int) bottle.Route {
	r.Ports = ports
	if slices.Equal(ports, bottle.DefaultPorts()) {
		r.Ports = nil
	}
	return r
}

// covers reports whether whatever fits m fits x. It may say no where that is so.
func covers(x, m bottle.Match) bool {
	if x.Method != "" && x.Method != m.Method {
		return false
	}
	if x.Path != nil {
		switch {
		case m.Path == nil:
			return false
		case *x.Path == *m.Path:
		case x.Path.Type == bottle.PathPrefix && m.Path.Type != bottle.RegularExpression && below(m.Path.Value, x.Path.Value):
		case x.Path.Type == bottle.PathPrefix && x.Path.Value == "/":
		default:
			return false
		}
	}
	for _, h := range x.Headers {
		if !slices.Contains(m.Headers, h) {
			return false
		}
	}
	for _, q := range x.Query {
		if !slices.Contains(m.Query, q) {
			return false
		}
	}
	return true
}

// overlaps reports whether some request may fit both. It may say yes where none does.
func overlaps(a, b bottle.Match) bool {
	if a.Method != "" && b.Method != "" && a.Method != b.Method {
		return false
	}
	if a.Path != nil && b.Path != nil && !pathsOverlap(*a.Path, *b.Path) {
		return false
	}
	for _, x := range a.Headers {
		for _, y := range b.Headers {
			if x.Name == y.Name && !valuesOverlap(x.Type, x.Value, y.Type, y.Value) {
				return false
			}
		}
	}
	for _, x := range a.Query {
		for _, y := range b.Query {
			if x.Name == y.Name && !valuesOverlap(x.Type, x.Value, y.Type, y.Value) {
				return false
			}
		}
	}
	return true
}

func pathsOverlap(a, b bottle.PathMatch) bool {
	if a.Type == bottle.RegularExpression && b.Type != bottle.RegularExpression {
		a, b = b, a
	}
	switch {
	case a.Type == bottle.Exact && b.Type == bottle.Exact:
		return a.Value == b.Value
	case b.Type == bottle.RegularExpression && a.Type == bottle.Exact:
		re, err := whole(b.Value)
		return err != nil || re.MatchString(a.Value)
	case b.Type == bottle.RegularExpression:
		x, y := a.Value, literal(b.Value)
		if a.Type == bottle.RegularExpression {
			x = literal(a.Value)
		}
		return strings.HasPrefix(x, y) || strings.HasPrefix(y, x)
	case a.Type == bottle.Exact:
		return below(a.Value, b.Value)
	case b.Type == bottle.Exact:
		return below(b.Value, a.Value)
	}
	return below(a.Value, b.Value) || below(b.Value, a.Value)
}

// literal is what every value that fits the expression starts with; empty if unknown.
func literal(expr string) string {
	re, err := regexp.Compile(expr)
	if err != nil {
		return ""
	}
	s, _ := re.LiteralPrefix()
	return s
}

// valuesOverlap reports whether some value may fit both. One value is all that a header or a
// parameter has that a match judges.
func valuesOverlap(aType bottle.MatchType, a string, bType bottle.MatchType, b string) bool {
	if aType == bottle.RegularExpression {
		aType, a, bType, b = bType, b, aType, a
	}
	switch {
	case aType == bottle.RegularExpression:
		return true
	case bType == bottle.RegularExpression:
		re, err := whole(b)
		return err != nil || re.MatchString(a)
	}
	return a == b
}
