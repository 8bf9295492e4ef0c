package bottle

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

const copyHead = "# The manifest as it was accepted at the last start, with permanent grants.\n# Written by bottle; your own file is the one to change.\n"

// Encode returns the canonical YAML form, with every key, for the copy in the state
// directory. Parsed from anywhere and in any environment it gives an equal manifest: paths
// are absolute, and only [Agent.Env] keeps its references.
func (m *Manifest) Encode() ([]byte, error) {
	c := *m
	c.Git = slices.Clone(m.Git)
	if m.Agent.Build != nil {
		b := *m.Agent.Build
		b.Args = maps.Clone(b.Args)
		c.Agent.Build = &b
	}
	for _, f := range c.expanded() {
		*f.s = escapeRefs(*f.s)
	}
	b, err := encodeYAML(&c)
	if err != nil {
		return nil, fmt.Errorf("write the manifest: %w", err)
	}
	return append([]byte(copyHead), b...), nil
}

// ManifestDiff says in lines what differs between two parsed manifests, whatever their
// comments, order of keys and spelling. A nil old is an empty one.
func ManifestDiff(old, m *Manifest) FileDiff {
	return DiffLines(ManifestFile, manifestLines(old), manifestLines(m))
}

func manifestLines(m *Manifest) []string {
	if m == nil {
		return nil
	}
	rest := *m
	rest.Egress.Routes = nil
	var top yaml.Node
	if err := top.Encode(&rest); err != nil {
		return []string{"not shown: " + err.Error()} // a diff that is not empty, so that it is asked about
	}
	var lines []string
	flatten("", &top, &lines)
	for _, r := range m.Egress.Routes {
		for _, l := range r.Lines() {
			lines = append(lines, "egress.routes: "+l)
		}
	}
	return lines
}

// flatten writes one line for each value, with its path. An empty list or map has none.
func flatten(where string, n *yaml.Node, lines *[]string) {
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			flatten(join(where, n.Content[i].Value), n.Content[i+1], lines)
		}
	case yaml.SequenceNode:
		for i, c := range n.Content {
			at := where
			if where == "agent.command" { // its order means something
				at += "[" + strconv.Itoa(i) + "]"
			}
			if c.Kind == yaml.MappingNode {
				at += "." + child(c, "name").Value // git remotes have one
			}
			flatten(at, c, lines)
		}
	default:
		if n.Tag == "!!str" && n.Value != "" {
			*lines = append(*lines, where+": "+quoteOdd(n.Value))
		} else if n.Value != "" {
			*lines = append(*lines, where+": "+n.Value)
		}
	}
}

// quoteOdd quotes what would not stand in a line as it is.
func quoteOdd(s string) string {
	if q := strconv.Quote(s); q != `"`+s+`"` || strings.TrimSpace(s) != s {
		return q
	}
	return s
}
