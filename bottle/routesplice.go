package bottle

import (
	"bytes"
	"strings"

	"gopkg.in/yaml.v3"
)

// Characters that YAML takes for line breaks, or skips, and a cut by \n would not.
const oddBreaks = "\r\u0085\u2028\u2029\ufeff"

// routeSpans finds the lines of each route in body. It returns nil, and not an empty list,
// for a layout that can't be cut by lines: flow style, two routes in a line, odd breaks.
func routeSpans(body []byte, root, seq *yaml.Node) []span {
	if root.Style&yaml.FlowStyle != 0 || bytes.ContainsAny(body, oddBreaks) {
		return nil
	}
	if len(seq.Content) == 0 {
		return []span{}
	}
	if seq.Style&yaml.FlowStyle != 0 {
		return nil
	}
	lines := bytes.Split(body, []byte{'\n'})
	spans := make([]span, len(seq.Content))
	for i, n := range seq.Content {
		at := n.Line - 1
		if at < 0 || at >= len(lines) || (i > 0 && at <= spans[i-1].start) || !bytes.HasPrefix(bytes.TrimLeft(lines[at], " "), []byte("- ")) {
			return nil
		}
		spans[i].start = at
	}
	for i := range spans {
		end := len(lines)
		if i+1 < len(spans) {
			end = spans[i+1].start
		}
		for end > spans[i].start+1 && blankOrComment(lines[end-1]) {
			end--
		}
		spans[i].end = end
	}
	return spans
}

func blankOrComment(line []byte) bool {
	line = bytes.TrimLeft(line, " \t")
	return len(line) == 0 || line[0] == '#'
}

// splice writes the document by lines. Its result is to be checked by the caller: it does
// not know every layout that YAML allows.
func (doc *RoutesDoc) splice() ([]byte, bool) {
	if doc.orig == nil {
		return nil, false
	}
	kept := make(map[int]routeItem, len(doc.items))
	for _, it := range doc.items {
		if it.orig >= 0 {
			kept[it.orig] = it
		}
	}
	lines := strings.SplitAfter(string(doc.body), "\n")
	indent := "  "
	if len(doc.orig) > 0 {
		first := lines[doc.orig[0].start]
		indent = first[:len(first)-len(strings.TrimLeft(first, " "))]
	}
	var out strings.Builder
	next := 0
	for i, s := range doc.orig {
		out.WriteString(strings.Join(lines[next:s.start], ""))
		it, ok := kept[i]
		switch {
		case ok && !it.dirty:
			out.WriteString(strings.Join(lines[s.start:s.end], ""))
		case ok:
			text, err := routeText(it.route, indent)
			if err != nil {
				return nil, false
			}
			out.WriteString(text)
		}
		next = s.end
	}
	out.WriteString(strings.Join(lines[next:], ""))
	text := out.String()
	switch {
	case len(doc.orig) == 0 && len(doc.items) > 0:
		text = replaceOnce(text, "routes: []", "routes:")
	case len(doc.orig) > 0 && len(doc.items) == 0:
		text = replaceOnce(text, "routes:", "routes: []")
	}
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	for _, it := range doc.items {
		if it.orig >= 0 {
			continue
		}
		add, err := routeText(it.route, indent)
		if err != nil {
			return nil, false
		}
		text += add
	}
	return []byte(text), true
}

// replaceOnce replaces old where a line begins with it; routes is a top-level key, and the
// caller checks that it was no line of a comment or a text.
func replaceOnce(s, old, to string) string {
	if strings.HasPrefix(s, old) {
		return to + s[len(old):]
	}
	return strings.Replace(s, "\n"+old, "\n"+to, 1)
}

// routeText is one route as an entry of a list.
func routeText(r Route, indent string) (string, error) {
	b, err := encodeYAML([]Route{r})
	if err != nil {
		return "", err
	}
	var out strings.Builder
	for line := range strings.Lines(string(b)) {
		out.WriteString(indent + line)
	}
	return out.String(), nil
}

// rewrite is for layouts that splice can't cut: the same edit on YAML's own tree. It keeps
// comments, but not blank lines and indentation.
func (doc *RoutesDoc) rewrite() ([]byte, error) {
	var top yaml.Node
	if err := yaml.Unmarshal(doc.body, &top); err != nil {
		return nil, err
	}
	root := top.Content[0]
	key, seq := root.Content[0], root.Content[1] // routes is the only key
	root.Style &^= yaml.FlowStyle
	seq.Style &^= yaml.FlowStyle
	if seq.LineComment != "" { // which a list in block style has no line for
		key.HeadComment = strings.TrimPrefix(key.HeadComment+"\n"+seq.LineComment, "\n")
		seq.LineComment = ""
	}
	var content []*yaml.Node
	for _, it := range doc.items {
		if it.orig >= 0 && !it.dirty {
			content = append(content, seq.Content[it.orig])
			continue
		}
		n := &yaml.Node{}
		if err := n.Encode(it.route); err != nil {
			return nil, err
		}
		if it.orig >= 0 {
			old := seq.Content[it.orig]
			n.HeadComment, n.LineComment, n.FootComment = old.HeadComment, old.LineComment, old.FootComment
		}
		content = append(content, n)
	}
	seq.Content = content
	return encodeYAML(&top)
}

func encodeYAML(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	if err := enc.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
