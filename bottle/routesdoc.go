package bottle

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// A RoutesDoc is a routes.yaml that can be edited without touching what an operator wrote
// in it. An edit replaces, removes or adds the lines of one route; every other byte stays
// (yaml.v3 says where a node is; written back whole, it would drop blank lines and
// reindent). Comments stay too, but for those within the lines of a route that changes.
//
// A RoutesDoc is not safe for concurrent use.
type RoutesDoc struct {
	body  []byte // as parsed, without revision line
	orig  []span // the lines of each route in body; nil if body has a layout that can't be cut
	count int    // of the routes in body
	items []routeItem
}

// A span is a range of lines, counted from 0, the end not included.
type span struct{ start, end int }

type routeItem struct {
	route Route
	orig  int  // index of the route in body, -1 for a new one
	dirty bool // differs from what body says
}

// routesFile is the whole vocabulary of routes.yaml at its top.
type routesFile struct {
	Routes []Route `yaml:"routes"`
}

// ParseRoutes reads a routes.yaml, sealed or not (see [CheckSeal]); each route is returned
// in canonical form. It refuses what [Route.Canonical] does, unknown and repeated keys,
// anchors, and more than 4 MiB or [MaxRoutes]. Errors name the line and wrap [ErrInvalid].
func ParseRoutes(b []byte) (*RoutesDoc, error) {
	body := Body(b)
	d := strictDecoder{RoutesFile}
	root, err := d.document(body)
	if err != nil {
		return nil, err
	}
	seq := child(root, "routes")
	if seq == nil {
		if len(root.Content) > 0 {
			if err := d.decode(root, reflect.ValueOf(&routesFile{}).Elem(), ""); err != nil {
				return nil, err
			}
		}
		return nil, d.errorf(root, "no key routes; write routes: [] to allow nothing")
	}
	if len(seq.Content) > MaxRoutes {
		return nil, d.errorf(seq, "%d routes; at most %d", len(seq.Content), MaxRoutes)
	}
	var file routesFile
	if err := d.decode(root, reflect.ValueOf(&file).Elem(), ""); err != nil {
		return nil, err
	}
	routes, err := d.routes(seq, file.Routes, "routes")
	if err != nil {
		return nil, err
	}
	doc := &RoutesDoc{body: bytes.Clone(body), orig: routeSpans(body, root, seq), count: len(routes)}
	for i, r := range routes {
		doc.items = append(doc.items, routeItem{route: r, orig: i})
	}
	return doc, nil
}

// routes makes decoded routes canonical; seq is where they stand, for the line in errors.
func (d strictDecoder) routes(seq *yaml.Node, in []Route, where string) ([]Route, error) {
	out := make([]Route, 0, len(in))
	for i, r := range in {
		n := element(seq, i)
		at := fmt.Sprintf("%s[%d]", where, i)
		// An empty list is as likely a slip as a wish, and would mean the wider thing.
		if r.Ports != nil && len(r.Ports) == 0 {
			return nil, d.errorf(n, "%s.ports is empty; name ports, or remove the key for 80 and 443", at)
		}
		if r.Matches != nil && len(r.Matches) == 0 {
			return nil, d.errorf(n, "%s.matches is empty; name a match, or remove the key to allow the whole host", at)
		}
		for j, m := range r.Matches {
			if m.Headers != nil && len(m.Headers) == 0 {
				return nil, d.errorf(element(child(n, "matches"), j), "%s.matches[%d].headers is empty; name a header or remove the key", at, j)
			}
			if m.Query != nil && len(m.Query) == 0 {
				return nil, d.errorf(element(child(n, "matches"), j), "%s.matches[%d].queryParams is empty; name a parameter or remove the key", at, j)
			}
		}
		c, err := r.Canonical()
		if err != nil {
			return nil, d.wrap(n, fmt.Errorf("%s: %w", at, err))
		}
		out = append(out, c)
	}
	return out, nil
}

// NewRoutes makes a document of routes, in their order.
func NewRoutes(routes []Route) (*RoutesDoc, error) {
	doc, err := ParseRoutes([]byte("# What the agent may reach; all else is refused.\n# Written by bottle: change it with bottle routes edit.\nroutes: []\n"))
	if err != nil {
		return nil, err
	}
	for i, r := range routes {
		if err := doc.Append(r); err != nil {
			return nil, fmt.Errorf("routes[%d]: %w", i, err)
		}
	}
	return doc, nil
}

// Len returns the number of routes.
func (doc *RoutesDoc) Len() int { return len(doc.items) }

// Routes returns the routes, canonical, in the order of the document.
func (doc *RoutesDoc) Routes() []Route {
	out := make([]Route, len(doc.items))
	for i, it := range doc.items {
		out[i] = it.route
	}
	return out
}

// Append adds a route at the end.
func (doc *RoutesDoc) Append(r Route) error {
	c, err := r.Canonical()
	if err != nil {
		return err
	}
	if len(doc.items) >= MaxRoutes {
		return fmt.Errorf("routes: at most %d: %w", MaxRoutes, ErrLimit)
	}
	doc.items = append(doc.items, routeItem{route: c, orig: -1, dirty: true})
	return nil
}

// Set replaces the i-th route. One that is equal to what stands there changes no byte.
func (doc *RoutesDoc) Set(i int, r Route) error {
	c, err := r.Canonical()
	if err != nil {
		return err
	}
	if i < 0 || i >= len(doc.items) {
		return fmt.Errorf("routes[%d]: there are %d: %w", i, len(doc.items), ErrNotFound)
	}
	if !reflect.DeepEqual(doc.items[i].route, c) {
		doc.items[i].route, doc.items[i].dirty = c, true
	}
	return nil
}

// Remove takes the i-th route out; those after it move up. It panics if there is none,
// as an index of a slice does.
func (doc *RoutesDoc) Remove(i int) { doc.items = slices.Delete(doc.items, i, i+1) }

// Bytes returns the sealed document and its revision. What it returns parses to the same
// [RoutesDoc.Routes], or there is an error.
func (doc *RoutesDoc) Bytes() ([]byte, Hash, error) {
	body, err := doc.render()
	if err != nil {
		return nil, "", fmt.Errorf("write %s: %w", RoutesFile, err)
	}
	if len(body) > maxConfig {
		return nil, "", fmt.Errorf("write %s: %d bytes; at most %d: %w", RoutesFile, len(body), maxConfig, ErrLimit)
	}
	b, rev := Seal(body)
	return b, rev, nil
}

func (doc *RoutesDoc) render() ([]byte, error) {
	if doc.clean() {
		return doc.body, nil
	}
	if body, ok := doc.splice(); ok && doc.means(body) {
		return body, nil
	}
	body, err := doc.rewrite()
	if err != nil {
		return nil, err
	}
	if !doc.means(body) {
		return nil, fmt.Errorf("what was written would not be read back alike: %w", ErrCorrupt)
	}
	return body, nil
}

// clean reports whether the items are exactly those of body.
func (doc *RoutesDoc) clean() bool {
	for i, it := range doc.items {
		if it.dirty || it.orig != i {
			return false
		}
	}
	return len(doc.items) == doc.count
}

// means reports whether body says what the document does.
func (doc *RoutesDoc) means(body []byte) bool {
	back, err := ParseRoutes(body)
	return err == nil && reflect.DeepEqual(back.Routes(), doc.Routes())
}

// An AllowEntry is a host of the allowlist and the ports in use on it.
type AllowEntry struct {
	Host  Host  `json:"host"`
	Ports []int `json:"ports"` // ascending, never empty
}

// Allowlist returns the second layer's list for these routes: each host once, sorted, with
// the ports of all its routes. It is at least as wide as the routes and no wider than
// hosts and ports can say.
func Allowlist(routes []Route) []AllowEntry {
	ports := map[Host][]int{}
	for _, r := range routes {
		ports[r.Host] = append(ports[r.Host], r.AllPorts()...)
	}
	out := make([]AllowEntry, 0, len(ports))
	for h, p := range ports {
		slices.Sort(p)
		out = append(out, AllowEntry{Host: h, Ports: slices.Compact(p)})
	}
	slices.SortFunc(out, func(a, b AllowEntry) int { return strings.Compare(string(a.Host), string(b.Host)) })
	return out
}
