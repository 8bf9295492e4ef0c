package allow

import (
	"net/url"
	"strings"

	"bottle/bottle"
)

// Queries are read by every server in its own way: some split at ; too, take the first or the
// last of two equal names, make one name of q, Q, q[] and q.x, or read + as itself. A route
// that judges by a parameter must mean what the server will act on, so that a query fits only
// if all of these readings agree: each parameter that is judged is there once, under no other
// spelling beside it, in a query that splits and decodes in one way alone. The parameters that
// no match names are anybody's.

// A param of a query, decoded as a form does it. plus is the value with + as it is, the same
// unless it has one.
type param struct{ name, value, plus string }

// params splits a raw query. why is not empty if servers could split or decode it in more than
// one way.
func params(raw string) (list []param, why string) {
	if raw == "" {
		return nil, ""
	}
	if strings.ContainsRune(raw, ';') {
		return nil, "the query has a semicolon, at which some servers split it; write %3B"
	}
	for part := range strings.SplitSeq(raw, "&") {
		name, value, _ := strings.Cut(part, "=")
		var p param
		var err error
		if p.name, err = url.QueryUnescape(name); err == nil {
			if p.value, err = url.QueryUnescape(value); err == nil {
				p.plus, err = url.PathUnescape(value)
			}
		}
		if err != nil {
			return nil, "the query has a percent sign that escapes nothing; write %25"
		}
		list = append(list, p)
	}
	return list, ""
}

// one returns the parameter of that name if there is exactly one, under any spelling.
func one(list []param, name string) (found param, why string) {
	n, loose := 0, bottle.LooseName(name)
	for _, p := range list {
		switch {
		case p.name == name:
			found = p
		case bottle.LooseName(p.name) != loose:
			continue
		}
		n++
	}
	switch {
	case n == 0:
		return param{}, "is missing"
	case n > 1:
		return param{}, "is there more than once, under one spelling or another, and one value is judged"
	case found.name != name:
		return param{}, "is there under another spelling alone"
	}
	return found, ""
}

// A queryParam is a compiled [bottle.QueryMatch].
type queryParam struct {
	name  string
	match func(string) bool
}

func compileQuery(in []bottle.QueryMatch) ([]queryParam, error) {
	var out []queryParam
	for _, q := range in {
		match, err := compileValue(q.Type, q.Value)
		if err != nil {
			return nil, err
		}
		out = append(out, queryParam{q.Name, match})
	}
	return out, nil
}

// tryQuery judges a raw query. why is empty if it fits.
func tryQuery(want []queryParam, raw string) (why string) {
	if len(want) == 0 {
		return ""
	}
	list, why := params(raw)
	if why != "" {
		return why
	}
	for _, w := range want {
		p, why := one(list, w.name)
		if why != "" {
			return "query parameter " + quote(w.name) + " " + why
		}
		if !w.match(p.value) || !w.match(p.plus) {
			return "query parameter " + quote(w.name) + " has another value"
		}
	}
	return ""
}
