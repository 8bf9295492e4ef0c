package allow

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"bottle/bottle"
)

// describe names a route, or one match of it, in a line.
func (t *Table) describe(i int, text string) string {
	r := &t.routes[i]
	s := "route " + string(r.Host)
	if len(r.Ports) > 0 {
		s += ":" + joinPorts(r.Ports)
	}
	if text != "" {
		s += " " + text
	} else if len(r.Matches) == 1 {
		s += " " + r.Matches[0].String()
	}
	if r.Grant != nil {
		s += " (grant " + r.Grant.Request + ")"
	}
	return s
}

func (t *Table) nearestRule(m miss) string { return t.describe(m.route, m.text) + ": " + m.why }

// nearestHost finds a route that has to do with the host although it does not cover it.
func (t *Table) nearestHost(h bottle.Host) string {
	list := t.site[site(h)]
	if len(list) == 0 {
		return ""
	}
	best, shared := list[0], -1
	for _, i := range list {
		if n := commonLabels(t.routes[i].Host, h); n > shared {
			best, shared = i, n
		}
	}
	pattern := t.routes[best].Host
	base, wild := strings.CutPrefix(string(pattern), "*.")
	why := fmt.Sprintf("%s is another name", h)
	switch {
	case wild && base == string(h):
		why = fmt.Sprintf("a wildcard does not cover the name below which it stands, %s", base)
	case wild && strings.HasSuffix(string(h), "."+base):
		why = "a wildcard covers exactly one label"
	case strings.HasSuffix(string(h), "."+base):
		why = fmt.Sprintf("it does not cover names below %s", base)
	case strings.HasSuffix(base, "."+string(h)):
		why = fmt.Sprintf("it does not cover the names above it, such as %s", h)
	}
	return t.describe(best, "") + ": " + why
}

// commonLabels counts the labels that two names share from the right.
func commonLabels(a, b bottle.Host) int {
	x, y := strings.Split(string(a), "."), strings.Split(string(b), ".")
	n := 0
	for n < len(x) && n < len(y) && x[len(x)-1-n] == y[len(y)-1-n] {
		n++
	}
	return n
}

func portList(p []int) string {
	if len(p) == 1 {
		return "the route's port " + strconv.Itoa(p[0])
	}
	return "the route's ports " + joinPorts(p)
}

func joinPorts(p []int) string {
	s := make([]string, len(p))
	for i, n := range p {
		s[i] = strconv.Itoa(n)
	}
	return strings.Join(s, ",")
}

// quote shows agent text in a line: escaped, in ASCII, and short.
func quote(s string) string {
	const limit = 80
	if len(s) > limit {
		return strconv.QuoteToASCII(s[:limit]) + "..."
	}
	return strconv.QuoteToASCII(s)
}

// reason is an error's text without the sentinel that it wraps.
func reason(err error) string {
	s := err.Error()
	if errors.Is(err, bottle.ErrInvalid) {
		s = strings.TrimSuffix(s, ": "+bottle.ErrInvalid.Error())
	}
	return s
}
