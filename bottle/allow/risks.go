package allow

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"bottle/bottle"
)

// The levels of a risk.
const (
	High   = "high"
	Medium = "medium"
	Low    = "low"
)

// The codes of [Risks], stable for programs.
const (
	RiskLookAlike  = "look-alike"
	RiskSpelling   = "spelling"
	RiskWildcard   = "wildcard"
	RiskWholeHost  = "whole-host"
	RiskWrite      = "write"
	RiskCredential = "credential"
	RiskPort       = "port"
	RiskPlain      = "plain-http"
	RiskRegexp     = "regexp"
	RiskUpload     = "public-upload"
	RiskPermanent  = "permanent"
	RiskSession    = "session"
)

// uploads are sites on which whoever may write can publish to the world. It is a reminder
// for the best known, not a guard.
var uploads = []string{
	"gist.github.com", "gist.githubusercontent.com", "pastebin.com", "paste.ee", "transfer.sh", "file.io",
	"webhook.site", "requestbin.com", "ngrok.io", "ngrok-free.app", "trycloudflare.com",
}

// Risks lists what an operator should weigh before adding the entries: the worst first,
// otherwise in the order of the entries, each once. The entries are canonical; current are
// the routes in force, for look-alikes of their hosts.
func Risks(add []bottle.Entry, credential string, d bottle.Duration, current []bottle.Route) []bottle.Risk {
	known := make([]bottle.Host, len(current))
	for i, r := range current {
		known[i] = r.Host
	}
	var out []bottle.Risk
	risk := func(level, code, format string, args ...any) {
		r := bottle.Risk{Level: level, Code: code, Text: fmt.Sprintf(format, args...)}
		if !slices.Contains(out, r) {
			out = append(out, r)
		}
	}
	for _, e := range add {
		hostRisks(e.Host, known, risk)
		matchRisks(e, credential, risk)
		ports := e.Ports
		if len(ports) == 0 {
			ports = bottle.DefaultPorts()
		}
		for _, p := range ports {
			if p == 80 {
				risk(Low, RiskPlain, "port 80 is unencrypted: what passes there can be read and changed on the way")
			}
			if !slices.Contains(bottle.DefaultPorts(), p) {
				risk(Medium, RiskPort, "port %d of %s is not a usual web port", p, e.Host)
			}
		}
	}
	if credential != "" {
		risk(High, RiskCredential, "requests carry the credential %s: they act in your name", credential)
	}
	if len(add) > 0 {
		switch d.Kind {
		case bottle.Permanent:
			risk(High, RiskPermanent, "permanent: it outlives this bottle's session")
		case bottle.Session:
			risk(Low, RiskSession, "open until the bottle stops")
		case bottle.Once, bottle.TTL:
		}
	}
	level := map[string]int{High: 0, Medium: 1, Low: 2}
	slices.SortStableFunc(out, func(a, b bottle.Risk) int { return cmp.Compare(level[a.Level], level[b.Level]) })
	return out
}

func hostRisks(h bottle.Host, known []bottle.Host, risk func(level, code, format string, args ...any)) {
	if like, why, ok := LookAlike(h, known); ok {
		risk(High, RiskLookAlike, "%s looks like the allowed %s: %s", h, like, why)
	}
	for i, n := range HostNotes(h) {
		level := High
		if i == 0 { // that it is punycode is no crime yet
			level = Medium
		}
		risk(level, RiskSpelling, "%s", n)
	}
	if h.Wildcard() {
		risk(High, RiskWildcard, "%s covers every name directly below it, those made up later included", h)
	}
	name := strings.TrimPrefix(string(h), "*.")
	for _, u := range uploads {
		if name == u || strings.HasSuffix(name, "."+u) {
			risk(High, RiskUpload, "%s publishes what is sent to it: data can leave through it", h)
		}
	}
}

func matchRisks(e bottle.Entry, credential string, risk func(level, code, format string, args ...any)) {
	if len(e.Matches) == 0 {
		level := Medium
		if credential != "" {
			level = High
		}
		risk(level, RiskWholeHost, "every method and path of %s, uploads included", e.Host)
		return
	}
	for _, m := range e.Matches {
		switch m.Method {
		case "GET", "HEAD", "OPTIONS":
		case "":
			risk(Medium, RiskWrite, "%s: any method, so it can write as well as read", e.Host)
		default:
			risk(Medium, RiskWrite, "%s: %s can change or send data", e.Host, m.Method)
		}
		if m.Path == nil || m.Path.Type == bottle.PathPrefix && m.Path.Value == "/" {
			risk(Low, RiskWholeHost, "%s of every path of %s", cmp.Or(m.Method, "any method"), e.Host)
		}
		if m.Path != nil && m.Path.Type == bottle.RegularExpression {
			risk(Medium, RiskRegexp, "%s: the path is a regular expression, easily wider than it looks", e.Host)
		}
		for _, h := range m.Headers {
			if h.Type == bottle.RegularExpression {
				risk(Low, RiskRegexp, "%s: header %s is matched by a regular expression", e.Host, h.Name)
			}
		}
		for _, q := range m.Query {
			if q.Type == bottle.RegularExpression {
				risk(Low, RiskRegexp, "%s: query parameter %q is matched by a regular expression", e.Host, q.Name)
			}
		}
	}
}
