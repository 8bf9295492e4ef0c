package pipelock

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"bottle/bottle"
)

func readAllowlist(list *yaml.Node) ([]bottle.AllowEntry, error) {
	if list == nil || list.Kind != yaml.SequenceNode || len(list.Content) == 0 {
		return nil, invalid("api_allowlist: missing, empty or not a list; for an empty one write %s as its only entry", placeholder)
	}
	out := []bottle.AllowEntry{}
	seen := map[bottle.Host]bool{}
	for _, n := range list.Content {
		if n.Kind != yaml.ScalarNode || n.Tag != "!!str" {
			return nil, invalid("line %d: api_allowlist: an entry is a host name, or *. and one", n.Line)
		}
		if n.Value == placeholder {
			continue
		}
		h, err := bottle.ParsePattern(n.Value)
		if err != nil {
			return nil, fmt.Errorf("pipelock.yaml: line %d: api_allowlist: %w", n.Line, err)
		}
		if seen[h] {
			return nil, invalid("line %d: api_allowlist: %s is there twice; keep one", n.Line, h)
		}
		seen[h] = true
		ports, _, err := splitPorts(n.LineComment)
		if err != nil {
			return nil, fmt.Errorf("pipelock.yaml: line %d: api_allowlist: %s: %w", n.Line, h, err)
		}
		out = append(out, bottle.AllowEntry{Host: h, Ports: ports})
	}
	sortAllowlist(out)
	return out, nil
}

// splitPorts reads "# ports 443,8443" or "# ports 443; a note". A comment that does not
// start with the word ports is a note, and means the default ports.
func splitPorts(comment string) (ports []int, note string, err error) {
	text := strings.TrimSpace(strings.TrimLeft(comment, "#"))
	list, ok := strings.CutPrefix(text, "ports")
	if !ok || list != "" && list[0] != ' ' {
		return bottle.DefaultPorts(), text, nil
	}
	list, note, _ = strings.Cut(list, ";")
	for f := range strings.SplitSeq(list, ",") {
		f = strings.TrimSpace(f)
		n, err := strconv.ParseUint(f, 10, 16)
		if err != nil || n == 0 || strings.HasPrefix(f, "0") {
			return nil, "", invalid("the comment %q does not list ports; write # ports 443,8443", comment)
		}
		ports = append(ports, int(n))
	}
	slices.Sort(ports)
	return slices.Compact(ports), strings.TrimSpace(note), nil
}

func joinPorts(ports []int) string {
	s := make([]string, len(ports))
	for i, p := range ports {
		s[i] = strconv.Itoa(p)
	}
	return strings.Join(s, ",")
}

func sortAllowlist(list []bottle.AllowEntry) {
	slices.SortFunc(list, func(a, b bottle.AllowEntry) int { return strings.Compare(string(a.Host), string(b.Host)) })
}

// Allowlist returns the hosts and ports, sorted by host; the ports are never empty.
func (d *Doc) Allowlist() []bottle.AllowEntry {
	out := make([]bottle.AllowEntry, len(d.allow))
	for i, e := range d.allow {
		out[i] = bottle.AllowEntry{Host: e.Host, Ports: slices.Clone(e.Ports)}
	}
	return out
}

// SetAllowlist makes the list say what is given. Entries that stay keep their place and
// their comments, new ones come last. An entry without ports gets the default ones.
func (d *Doc) SetAllowlist(allow []bottle.AllowEntry) error {
	want := map[bottle.Host][]int{}
	for _, e := range allow {
		h, err := bottle.ParsePattern(string(e.Host))
		if err != nil {
			return fmt.Errorf("pipelock.yaml: api_allowlist: %w", err)
		}
		if _, ok := want[h]; ok || h == placeholder {
			return invalid("api_allowlist: %s is there twice or is the placeholder for an empty list", h)
		}
		ports := slices.Clone(e.Ports)
		if len(ports) == 0 {
			ports = bottle.DefaultPorts()
		}
		slices.Sort(ports)
		ports = slices.Compact(ports)
		if ports[0] < 1 || ports[len(ports)-1] > 65535 {
			return invalid("api_allowlist: %s: ports are 1 to 65535", h)
		}
		want[h] = ports
	}
	next := make([]bottle.AllowEntry, 0, len(want))
	for h, p := range want {
		next = append(next, bottle.AllowEntry{Host: h, Ports: p})
	}
	sortAllowlist(next)
	same := slices.EqualFunc(next, d.allow, func(a, b bottle.AllowEntry) bool {
		return a.Host == b.Host && slices.Equal(a.Ports, b.Ports)
	})
	if same {
		return nil
	}
	list, err := find(d.top(), keyAllowlist)
	if err != nil {
		return err
	}
	var nodes []*yaml.Node
	for _, n := range list.Content {
		h, err := bottle.ParsePattern(n.Value)
		if err != nil {
			continue
		}
		if ports, ok := want[h]; ok {
			setPorts(n, ports)
			nodes = append(nodes, n)
			delete(want, h)
		}
	}
	for _, e := range next {
		if ports, ok := want[e.Host]; ok {
			n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: string(e.Host)}
			if e.Host.Wildcard() {
				n.Style = yaml.DoubleQuotedStyle
			}
			setPorts(n, ports)
			nodes = append(nodes, n)
		}
	}
	if len(nodes) == 0 {
		nodes = []*yaml.Node{{Kind: yaml.ScalarNode, Tag: "!!str", Value: placeholder}}
	}
	list.Content = nodes
	list.Style &^= yaml.FlowStyle // comments on entries need a line each
	d.allow, d.dirty = next, true
	return nil
}

func setPorts(n *yaml.Node, ports []int) {
	have, note, err := splitPorts(n.LineComment)
	if err == nil && slices.Equal(have, ports) {
		return
	}
	switch {
	case slices.Equal(ports, bottle.DefaultPorts()) && note == "":
		n.LineComment = ""
	case slices.Equal(ports, bottle.DefaultPorts()):
		n.LineComment = "# " + note
	case note == "":
		n.LineComment = "# ports " + joinPorts(ports)
	default:
		n.LineComment = "# ports " + joinPorts(ports) + "; " + note
	}
}
