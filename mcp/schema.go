package mcp

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
	"golang.org/x/text/language"
	"golang.org/x/text/message"
)

// A node is a JSON Schema (2020-12) as it is advertised.
type node = map[string]any

// object is a strict object: a key that it doesn't name is an error.
func object(props node, required ...string) node {
	n := node{"type": "object", "properties": props, "additionalProperties": false}
	if len(required) > 0 {
		n["required"] = required
	}
	return n
}

// defined adds the definitions that the refs in n refer to.
func defined(n, defs node) node {
	n["$defs"] = defs
	return n
}

func ref(name, desc string) node { return described(node{"$ref": "#/$defs/" + name}, desc) }

func list(items node, limit int, desc string) node {
	n := node{"type": "array", "items": items}
	if limit > 0 {
		n["maxItems"] = limit
	}
	return described(n, desc)
}

func text(desc string) node { return described(node{"type": "string"}, desc) }

func oneOf(desc string, values ...string) node {
	return described(node{"type": "string", "enum": values}, desc)
}

func bounded(n node, limit int) node {
	n["minLength"], n["maxLength"] = 1, limit
	return n
}

func integer(low, high int, desc string) node {
	return described(node{"type": "integer", "minimum": low, "maximum": high}, desc)
}

func boolean(desc string) node { return described(node{"type": "boolean"}, desc) }

func instant(desc string) node {
	return described(node{"type": "string", "format": "date-time"}, desc)
}

func described(n node, desc string) node {
	if desc != "" {
		n["description"] = desc
	}
	return n
}

// An inputSchema checks a tool's arguments against what was advertised. The library can do
// so too, but its message names neither the field in the words of the call nor the fix.
type inputSchema struct {
	doc      node
	compiled *jsonschema.Schema
	printer  *message.Printer
}

func compile(name string, doc node) (*inputSchema, json.RawMessage, error) {
	raw, err := json.Marshal(doc)
	if err != nil {
		return nil, nil, fmt.Errorf("schema of %s: %w", name, err)
	}
	parsed, err := jsonschema.UnmarshalJSON(strings.NewReader(string(raw)))
	if err != nil {
		return nil, nil, fmt.Errorf("schema of %s: %w", name, err)
	}
	c := jsonschema.NewCompiler()
	url := "mem:///" + name
	if err := c.AddResource(url, parsed); err != nil {
		return nil, nil, fmt.Errorf("schema of %s: %w", name, err)
	}
	compiled, err := c.Compile(url)
	if err != nil {
		return nil, nil, fmt.Errorf("schema of %s: %w", name, err)
	}
	return &inputSchema{doc, compiled, message.NewPrinter(language.English)}, raw, nil
}

// check returns an error that says, for each fault, which field it is in, what is wrong and
// what the field is for; or nil.
func (s *inputSchema) check(raw json.RawMessage) error {
	v, err := jsonschema.UnmarshalJSON(strings.NewReader(string(raw)))
	if err != nil {
		return fmt.Errorf("arguments: not JSON: %w", err)
	}
	verr, err := validationError(s.compiled.Validate(v))
	if err != nil {
		return fmt.Errorf("arguments: %w", err)
	}
	if verr == nil {
		return nil
	}
	var faults []string
	s.collect(verr, &faults)
	if n := len(faults); n > maxFaults {
		faults = append(faults[:maxFaults], fmt.Sprintf("and %d more", n-maxFaults))
	}
	return fmt.Errorf("arguments not accepted: %s", strings.Join(faults, "; "))
}

// validationError takes an error of Validate apart, which may also be of the schema itself.
func validationError(err error) (*jsonschema.ValidationError, error) {
	if v, ok := errors.AsType[*jsonschema.ValidationError](err); ok {
		return v, nil
	}
	return nil, err
}

// maxFaults bounds how many faults of one call are listed.
const maxFaults = 5

func (s *inputSchema) collect(e *jsonschema.ValidationError, faults *[]string) {
	if len(e.Causes) > 0 {
		for _, c := range e.Causes {
			s.collect(c, faults)
		}
		return
	}
	where, here := s.locate(e.InstanceLocation)
	switch k := e.ErrorKind.(type) {
	case *kind.AdditionalProperties:
		*faults = append(*faults, fmt.Sprintf("%s: unknown field %s; it takes %s", where, clip(strings.Join(k.Properties, ", "), 80), keys(here)))
	case *kind.Required:
		for _, m := range k.Missing {
			*faults = append(*faults, fmt.Sprintf("%s: missing; %s", strings.TrimPrefix(where+"."+m, "arguments."), description(child(here, m))))
		}
	default:
		fault := where + ": " + clip(e.ErrorKind.LocalizedString(s.printer), 200)
		if d := description(here); d != "" {
			fault += "; " + d
		}
		*faults = append(*faults, fault)
	}
}

// locate turns [add 0 ports] into add[0].ports, and finds its schema.
func (s *inputSchema) locate(path []string) (string, node) {
	var b strings.Builder
	at := s.doc
	for _, p := range path {
		if items, ok := at["items"].(node); ok {
			b.WriteString("[" + p + "]")
			at = s.resolve(items)
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('.')
		}
		b.WriteString(clip(p, 40))
		at = s.resolve(child(at, p))
	}
	if b.Len() == 0 {
		return "arguments", at
	}
	return b.String(), at
}

// resolve follows a reference to one of the document's definitions.
func (s *inputSchema) resolve(n node) node {
	to, ok := n["$ref"].(string)
	if !ok {
		return n
	}
	defs, _ := s.doc["$defs"].(node)
	def, _ := defs[strings.TrimPrefix(to, "#/$defs/")].(node)
	return def
}

func child(n node, name string) node {
	props, _ := n["properties"].(node)
	c, _ := props[name].(node)
	return c
}

func description(n node) string {
	d, _ := n["description"].(string)
	return d
}
