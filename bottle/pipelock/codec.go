package pipelock

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"gopkg.in/yaml.v3"

	"bottle/bottle"
)

// MaxBytes bounds a pipelock.yaml.
const MaxBytes = 4 << 20

// placeholder stands for the empty allowlist, which pipelock refuses in strict mode. No
// name below .invalid ever resolves (RFC 6761, 6.4), and no route may use it either.
const placeholder = "bottle.invalid"

// The keys that are read here. All others are kept as they are.
const (
	keyMode      = "mode"
	keyAllowlist = "api_allowlist"
	keyEnforce   = "enforce"
	keyAgents    = "agents"
	modeStrict   = "strict"
)

// A Doc is a parsed pipelock.yaml. It keeps what it does not know, comments included.
type Doc struct {
	raw   []byte // without its revision line
	root  *yaml.Node
	allow []bottle.AllowEntry
	dirty bool
}

// New returns a document with the keys that real pipelock needs to act as bottle's second
// layer, and the allowlist.
func New(allow []bottle.AllowEntry) (*Doc, error) {
	doc, err := Parse([]byte("# The second layer's allowlist. bottle keeps api_allowlist in step with routes.yaml.\n" +
		"version: 1\nmode: strict\nforward_proxy: {enabled: true}\napi_allowlist:\n  - " + placeholder + "\n"))
	if err != nil {
		return nil, err
	}
	return doc, doc.SetAllowlist(allow)
}

// Parse reads a pipelock.yaml, with or without revision line, whose seal it does not check.
// It refuses whatever would let through more than the list: a mode other than strict, an
// agent's profile with one, enforce: false, and a key that is there twice or comes by alias.
// Errors name the key and the fix and wrap [bottle.ErrInvalid].
func Parse(b []byte) (*Doc, error) {
	if len(b) > MaxBytes {
		return nil, invalid("%d bytes; at most %d", len(b), MaxBytes)
	}
	b = bottle.Body(b)
	if len(bytes.TrimSpace(b)) == 0 {
		return nil, invalid("the file is empty; it needs mode: strict and api_allowlist")
	}
	dec := yaml.NewDecoder(bytes.NewReader(b))
	var root yaml.Node
	if err := dec.Decode(&root); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, invalid("the file holds comments alone; it needs mode: strict and api_allowlist")
		}
		return nil, invalid("not YAML: %v", err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, invalid("more than one YAML document; keep the first")
	}
	doc := &Doc{raw: bytes.Clone(b), root: &root}
	if err := doc.check(); err != nil {
		return nil, err
	}
	list, err := find(doc.top(), keyAllowlist)
	if err != nil {
		return nil, err
	}
	if doc.allow, err = readAllowlist(list); err != nil {
		return nil, err
	}
	return doc, nil
}

func (d *Doc) top() *yaml.Node { return d.root.Content[0] }

func (d *Doc) check() error {
	top := d.top()
	if top.Kind != yaml.MappingNode {
		return invalid("line %d: not a mapping of keys to values", top.Line)
	}
	if err := checkKeys(top); err != nil {
		return err
	}
	mode, err := find(top, keyMode)
	if err != nil {
		return err
	}
	if mode == nil {
		return invalid("mode: missing, and pipelock would take balanced, which lets unlisted hosts through; write mode: strict")
	}
	if err := checkStrict("mode", mode); err != nil {
		return err
	}
	if err := checkEnforce("enforce", top); err != nil {
		return err
	}
	agents, err := find(top, keyAgents)
	if err != nil || agents == nil || agents.Kind != yaml.MappingNode {
		return err
	}
	for i := 0; i+1 < len(agents.Content); i += 2 {
		name, profile := "agents."+agents.Content[i].Value, agents.Content[i+1]
		if profile.Kind != yaml.MappingNode {
			continue
		}
		mode, err := find(profile, keyMode)
		if err != nil {
			return err
		}
		if mode != nil {
			if err := checkStrict(name+".mode", mode); err != nil {
				return err
			}
		}
		if err := checkEnforce(name+".enforce", profile); err != nil {
			return err
		}
	}
	return nil
}

// checkKeys refuses, at any depth, what makes one file mean different things to different
// readers.
func checkKeys(n *yaml.Node) error {
	if n.Kind == yaml.AliasNode {
		return invalid("line %d: an alias (*%s); write the value out", n.Line, n.Value)
	}
	if n.Kind == yaml.MappingNode {
		seen := map[string]bool{}
		for i := 0; i < len(n.Content); i += 2 {
			k := n.Content[i]
			switch {
			case k.Tag == "!!merge" || k.Value == "<<":
				return invalid("line %d: a merge key (<<); write the keys out", k.Line)
			case seen[k.Value]:
				return invalid("line %d: %s is there twice; keep one", k.Line, k.Value)
			}
			seen[k.Value] = true
		}
	}
	for _, c := range n.Content {
		if err := checkKeys(c); err != nil {
			return err
		}
	}
	return nil
}

func checkStrict(key string, n *yaml.Node) error {
	if n.Kind != yaml.ScalarNode || n.Value != modeStrict {
		return invalid("line %d: %s is %q; only strict keeps unlisted hosts out", n.Line, key, n.Value)
	}
	return nil
}

func checkEnforce(key string, in *yaml.Node) error {
	n, err := find(in, keyEnforce)
	if err != nil || n == nil || n.Tag == "!!null" {
		return err
	}
	var on bool
	if err := n.Decode(&on); err != nil || !on {
		return invalid("line %d: %s is %q, and pipelock would let through what it finds; remove it", n.Line, key, n.Value)
	}
	return nil
}

// find returns the value of a key of a mapping, nil if it is not there.
func find(m *yaml.Node, key string) (*yaml.Node, error) {
	if m.Kind != yaml.MappingNode {
		return nil, invalid("line %d: not a mapping of keys to values", m.Line)
	}
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == key {
			return m.Content[i+1], nil
		}
	}
	return nil, nil
}

// Bytes returns the sealed file and its revision. A document that was not changed comes
// back byte for byte.
func (d *Doc) Bytes() ([]byte, bottle.Hash, error) {
	body := d.raw
	if d.dirty {
		var buf bytes.Buffer
		enc := yaml.NewEncoder(&buf)
		enc.SetIndent(2)
		if err := enc.Encode(d.root); err != nil {
			return nil, "", fmt.Errorf("pipelock.yaml: encode: %w", err)
		}
		if err := enc.Close(); err != nil {
			return nil, "", fmt.Errorf("pipelock.yaml: encode: %w", err)
		}
		body = buf.Bytes()
		// What is written must read back as what was meant, comments that carry ports included.
		back, err := Parse(body)
		if err != nil {
			return nil, "", fmt.Errorf("pipelock.yaml: does not read back: %w", err)
		}
		if diff := bottle.DiffLines(bottle.PipelockFile, Lines(d), Lines(back)); !diff.Empty() {
			return nil, "", fmt.Errorf("pipelock.yaml: reads back otherwise (+%v -%v): %w", diff.Add, diff.Remove, bottle.ErrCorrupt)
		}
	}
	out, rev := bottle.Seal(body)
	return out, rev, nil
}

// Keys returns the top-level keys that the built-in gate keeps but does not enforce. It is a
// forward proxy, as bottle's own files say for the real one.
func (d *Doc) Keys() []string {
	var out []string
	for i := 0; i < len(d.top().Content); i += 2 {
		switch k, v := d.top().Content[i].Value, d.top().Content[i+1]; {
		case k == keyMode, k == keyAllowlist, k == keyEnforce, k == "version":
		case k == "forward_proxy" && len(v.Content) == 2 && v.Content[0].Value == "enabled" && v.Content[1].Value == "true":
		default:
			out = append(out, k)
		}
	}
	return out
}

// Lines describes the allowlist for a semantic diff, a line for each host.
func Lines(d *Doc) []string {
	out := make([]string, len(d.allow))
	for i, e := range d.allow {
		out[i] = string(e.Host) + "  ports " + joinPorts(e.Ports)
	}
	return out
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("pipelock.yaml: %s: %w", fmt.Sprintf(format, args...), bottle.ErrInvalid)
}
