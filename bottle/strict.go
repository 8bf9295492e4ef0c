package bottle

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// Config files are read more strictly than YAML is: one document; no anchors, aliases,
// merge keys or tags (each is a way to say something that a reader does not see where it
// takes effect); no key twice; no unknown key; no key without a value, since a list whose
// entries were all commented out would else mean the default, which may be wider.
const (
	maxConfig = 4 << 20 // bytes of a config file
	maxDepth  = 20      // of its nesting; the deepest legal file has 8
)

// An invalidError is an [ErrInvalid] with a text of its own, which names field and fix.
type invalidError string

func (e invalidError) Error() string { return string(e) }
func (e invalidError) Unwrap() error { return ErrInvalid }

// A fileError puts file and line before what is wrong there: "manifest.yaml:12: ...".
type fileError struct {
	file string
	line int
	err  error
}

func (e *fileError) Error() string {
	if e.line < 1 {
		return e.file + ": " + e.err.Error()
	}
	return e.file + ":" + strconv.Itoa(e.line) + ": " + e.err.Error()
}
func (e *fileError) Unwrap() error { return e.err }

// A strictDecoder decodes the nodes of one file into structs with yaml tags.
type strictDecoder struct {
	file string // for errors
}

func (d strictDecoder) errorf(n *yaml.Node, format string, args ...any) error {
	return d.wrap(n, invalidError(fmt.Sprintf(format, args...)))
}

func (d strictDecoder) wrap(n *yaml.Node, err error) error {
	return &fileError{d.file, n.Line, err}
}

var yamlErrorForm = regexp.MustCompile(`\Ayaml: (?:line (\d+): )?((?s).*)\z`)

// document parses b, which holds one document, and returns its root, a mapping.
func (d strictDecoder) document(b []byte) (*yaml.Node, error) {
	top := &yaml.Node{}
	switch {
	case len(b) > maxConfig:
		return nil, d.errorf(top, "%d bytes; at most %d", len(b), maxConfig)
	case !utf8.Valid(b):
		return nil, d.errorf(top, "not UTF-8")
	}
	dec := yaml.NewDecoder(bytes.NewReader(b))
	var doc, more yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil, d.errorf(top, "empty")
	} else if err != nil {
		return nil, d.yamlError(err)
	}
	if err := dec.Decode(&more); err == nil {
		return nil, d.errorf(&more, "a second document; keep one, without --- after it")
	} else if !errors.Is(err, io.EOF) {
		return nil, d.yamlError(err)
	}
	if err := d.plain(&doc, 0); err != nil {
		return nil, err
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return nil, d.errorf(root, "must be a mapping (key: value), not %s", describe(root))
	}
	return root, nil
}

// yamlError makes one line of what the YAML parser says.
func (d strictDecoder) yamlError(err error) error {
	m := yamlErrorForm.FindStringSubmatch(err.Error())
	if m == nil {
		return d.errorf(&yaml.Node{}, "not YAML: %s", oneLine(err.Error()))
	}
	line, _ := strconv.Atoi(m[1])
	return d.errorf(&yaml.Node{Line: line}, "not YAML: %s", oneLine(m[2]))
}

func oneLine(s string) string { return clip(strings.Join(strings.Fields(s), " "), 200) }

// plain refuses what a config file does not need and a reader would not see through.
func (d strictDecoder) plain(n *yaml.Node, depth int) error {
	switch {
	case depth > maxDepth:
		return d.errorf(n, "nested deeper than %d levels", maxDepth)
	case n.Kind == yaml.AliasNode:
		return d.errorf(n, "an alias (*%s); write the value out", clip(n.Value, 40))
	case n.Anchor != "":
		return d.errorf(n, "an anchor (&%s); write the value out where it is needed", clip(n.Anchor, 40))
	case n.Style&yaml.TaggedStyle != 0:
		return d.errorf(n, "a tag (%s); remove it", clip(n.Tag, 40))
	}
	if n.Kind == yaml.MappingNode {
		seen := map[string]int{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			k := n.Content[i]
			if k.Kind != yaml.ScalarNode {
				return d.errorf(k, "a key must be a plain word, not %s", describe(k))
			}
			if k.Tag == "!!merge" {
				return d.errorf(k, "a merge key (<<); write the values out")
			}
			if first, ok := seen[k.Value]; ok {
				return d.errorf(k, "key %q a second time (first in line %d); keep one", clip(k.Value, 40), first)
			}
			seen[k.Value] = k.Line
		}
	}
	for _, c := range n.Content {
		if err := d.plain(c, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// decode sets v, which is settable, from n. What n does not mention keeps its value; a
// list or a map that it does mention is replaced whole. where is the path for errors.
func (d strictDecoder) decode(n *yaml.Node, v reflect.Value, where string) error {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return d.errorf(n, "%s has no value; give it one (%s) or remove the key", orFile(where), wanted(v.Type()))
	}
	if leaf(v.Type()) {
		return d.scalar(n, v, where)
	}
	wrong := func() error {
		return d.errorf(n, "%s must be %s, not %s", orFile(where), wanted(v.Type()), describe(n))
	}
	switch v.Kind() {
	case reflect.Pointer:
		p := reflect.New(v.Type().Elem())
		if err := d.decode(n, p.Elem(), where); err != nil {
			return err
		}
		v.Set(p)
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			return wrong()
		}
		s := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
		for i, c := range n.Content {
			if err := d.decode(c, s.Index(i), where+"["+strconv.Itoa(i)+"]"); err != nil {
				return err
			}
		}
		v.Set(s)
	case reflect.Map:
		if n.Kind != yaml.MappingNode {
			return wrong()
		}
		m := reflect.MakeMapWithSize(v.Type(), len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			k, e := n.Content[i], reflect.New(v.Type().Elem()).Elem()
			if err := d.decode(n.Content[i+1], e, join(where, clip(k.Value, 40))); err != nil {
				return err
			}
			m.SetMapIndex(reflect.ValueOf(k.Value).Convert(v.Type().Key()), e)
		}
		v.Set(m)
	case reflect.Struct:
		if n.Kind != yaml.MappingNode {
			return wrong()
		}
		return d.fields(n, v, where)
	default:
		return d.errorf(n, "%s is of a kind that config files do not have (%s)", orFile(where), v.Type())
	}
	return nil
}

func (d strictDecoder) fields(n *yaml.Node, v reflect.Value, where string) error {
	known, index := keysOf(v.Type())
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		f, ok := index[k.Value]
		if !ok {
			in, hint := "", "; known here: "+strings.Join(known, ", ")
			if where != "" {
				in = " in " + where
			}
			if near := Nearest(k.Value, known); near != "" {
				hint = fmt.Sprintf("; did you mean %q?", near)
			}
			return d.errorf(k, "unknown key %q%s%s", clip(k.Value, 40), in, hint)
		}
		if err := d.decode(n.Content[i+1], v.Field(f), join(where, k.Value)); err != nil {
			return err
		}
	}
	return nil
}

var (
	timeType     = reflect.TypeFor[time.Time]()
	durationType = reflect.TypeFor[time.Duration]()
	prefixType   = reflect.TypeFor[netip.Prefix]()
	addrType     = reflect.TypeFor[netip.Addr]()
)

func leaf(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.String, reflect.Int, reflect.Int64, reflect.Float64, reflect.Bool:
		return true
	default:
		return t == timeType || reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
	}
}

// scalar reads by the field's type and not by what YAML resolves a plain word to: a host
// named no is no false, and port 0443 is not 291.
func (d strictDecoder) scalar(n *yaml.Node, v reflect.Value, where string) error {
	if n.Kind != yaml.ScalarNode {
		return d.errorf(n, "%s must be %s, not %s", orFile(where), wanted(v.Type()), describe(n))
	}
	wrong := d.errorf(n, "%s must be %s, not %q", orFile(where), wanted(v.Type()), clip(n.Value, 40))
	switch {
	case v.Type() == timeType:
		t, err := time.Parse(time.RFC3339, n.Value)
		if err != nil {
			return wrong
		}
		v.Set(reflect.ValueOf(t.UTC()))
	case v.Type() == durationType:
		t, err := time.ParseDuration(n.Value)
		if err != nil {
			return wrong
		}
		v.SetInt(int64(t))
	case v.Kind() == reflect.String:
		v.SetString(n.Value)
	case v.Kind() == reflect.Bool:
		if n.Value != "true" && n.Value != "false" {
			return wrong
		}
		v.SetBool(n.Value == "true")
	case v.Kind() == reflect.Int || v.Kind() == reflect.Int64:
		i, err := strconv.ParseInt(n.Value, 10, v.Type().Bits())
		if err != nil || strconv.FormatInt(i, 10) != n.Value {
			return wrong
		}
		v.SetInt(i)
	case v.Kind() == reflect.Float64:
		f, err := strconv.ParseFloat(n.Value, 64)
		if err != nil || f-f != 0 { // f-f is NaN for an infinity and a NaN
			return wrong
		}
		v.SetFloat(f)
	default:
		u, ok := v.Addr().Interface().(encoding.TextUnmarshaler)
		if !ok {
			return wrong
		}
		if err := u.UnmarshalText([]byte(n.Value)); err != nil {
			if v.Type() == prefixType || v.Type() == addrType {
				return wrong
			}
			return d.wrap(n, fmt.Errorf("%s: %w", orFile(where), err))
		}
	}
	return nil
}

// keysOf returns a struct's keys in order, and the field of each.
func keysOf(t reflect.Type) (known []string, index map[string]int) {
	index = map[string]int{}
	for i := range t.NumField() {
		key, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ",")
		if key == "" || key == "-" {
			continue
		}
		known = append(known, key)
		index[key] = i
	}
	return known, index
}

// child returns the node at a key of a mapping, or nil.
func child(n *yaml.Node, key string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// nodeAt follows keys (string) and indexes (int) as far as they go, for the line of an error.
func nodeAt(n *yaml.Node, path ...any) *yaml.Node {
	for _, p := range path {
		next := n
		switch p := p.(type) {
		case string:
			next = child(n, p)
		case int:
			next = element(n, p)
		}
		if next == nil {
			return n
		}
		n = next
	}
	return n
}

// element returns the i-th node of a sequence, or the sequence itself.
func element(n *yaml.Node, i int) *yaml.Node {
	if n != nil && n.Kind == yaml.SequenceNode && i < len(n.Content) {
		return n.Content[i]
	}
	return n
}

func join(where, key string) string {
	if where == "" {
		return key
	}
	return where + "." + key
}

func orFile(where string) string {
	if where == "" {
		return "the file"
	}
	return where
}

func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.ScalarNode:
		if n.Tag == "!!null" {
			return "nothing"
		}
		return strconv.Quote(clip(n.Value, 40))
	case yaml.AliasNode:
		return "an alias"
	case yaml.DocumentNode:
		return "a document"
	}
	return "something else"
}

func wanted(t reflect.Type) string {
	switch {
	case t == timeType:
		return "a time such as 2026-01-02T15:04:05Z"
	case t == durationType:
		return "a time span such as 10m or 24h"
	case t == reflect.TypeFor[Duration]():
		return "once, session, permanent, or a time span such as 10m"
	case t == prefixType:
		return "a network such as 10.1.0.0/16"
	case t == addrType:
		return "an address such as 10.1.2.3"
	}
	switch t.Kind() {
	case reflect.Pointer:
		return wanted(t.Elem())
	case reflect.Slice:
		return "a list ([] if empty)"
	case reflect.Map:
		return "a mapping ({} if empty)"
	case reflect.Struct:
		known, _ := keysOf(t)
		return "a mapping with " + strings.Join(known, ", ")
	case reflect.Int, reflect.Int64:
		return "a whole number"
	case reflect.Float64:
		return "a number"
	case reflect.Bool:
		return "true or false"
	default:
		return `text ("" if empty)`
	}
}
