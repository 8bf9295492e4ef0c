package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"bottle/bottle"
	"bottle/bottle/prompt"
)

// Permanent grants live in the manifest copy of the state directory, with who gave them
// and when, and are carried over to each start. The operator's own manifest is theirs: it
// is offered the lines to take over, and left alone.

// keepPermanent writes a grant that was just applied into the manifest copy, if it is a
// permanent one, and returns the lines that the operator's own manifest lacks.
func (c *cell) keepPermanent(ctx context.Context, short string) (offer string, err error) {
	err = c.updateManifest(ctx, func(routes []bottle.Route) ([]bottle.Route, error) {
		b, err := os.ReadFile(c.dir.Routes())
		if err != nil {
			return nil, err
		}
		granted, err := permanentRoutes(b)
		if err != nil {
			return nil, err
		}
		granted = slices.DeleteFunc(granted, func(r bottle.Route) bool { return r.Grant.Request != short })
		offer, err = manifestLines(granted)
		return append(routes, granted...), err
	})
	return offer, err
}

// forgetPermanent takes a revoked grant out of the manifest copy.
func (c *cell) forgetPermanent(ctx context.Context, short string) error {
	return c.updateManifest(ctx, func(routes []bottle.Route) ([]bottle.Route, error) {
		kept := routes[:0:0]
		for _, r := range routes {
			if r.Grant == nil || r.Grant.Request != short {
				kept = append(kept, r)
			}
		}
		return kept, nil
	})
}

func (c *cell) updateManifest(ctx context.Context, change func([]bottle.Route) ([]bottle.Route, error)) error {
	return c.locked(ctx, func() error {
		m, err := loadAccepted(c.dir)
		if err != nil {
			return err
		}
		routes, err := change(m.Egress.Routes)
		if err != nil {
			return err
		}
		if len(routes) == len(m.Egress.Routes) {
			return nil
		}
		m.Egress.Routes = routes
		text, err := m.Encode()
		if err != nil {
			return fmt.Errorf("write the manifest copy: %w", err)
		}
		if err := bottle.WriteFile(c.dir.Manifest(), text, 0o600); err != nil {
			return err
		}
		c.manifest = m
		return nil
	})
}

// ownRoutes are the manifest's routes without the permanent grants of its copy: those come
// from the records.
func ownRoutes(m *bottle.Manifest) []bottle.Route {
	var out []bottle.Route
	for _, r := range m.EgressRoutes() {
		if r.Grant == nil {
			out = append(out, r)
		}
	}
	return out
}

// permanentRoutes are the permanent grants of a routes.yaml.
func permanentRoutes(b []byte) ([]bottle.Route, error) {
	doc, err := bottle.ParseRoutes(b)
	if err != nil {
		return nil, err
	}
	var out []bottle.Route
	for _, r := range doc.Routes() {
		if r.Grant != nil && r.Grant.Duration.Kind == bottle.Permanent {
			out = append(out, r)
		}
	}
	return out, nil
}

// manifestLines is a permanent grant as the operator may take it over into their own file:
// JSON, which is YAML too, in ASCII, since an agent wrote the paths and headers in it.
func manifestLines(routes []bottle.Route) (string, error) {
	var b strings.Builder
	for _, r := range routes {
		g := r.Grant
		r.Grant = nil
		text, err := json.Marshal(r)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "  # %s, granted by %s at %s\n  - %s\n", g.Request, g.By, g.At.UTC().Format(time.RFC3339), prompt.ASCII(text))
	}
	return strings.TrimSuffix(b.String(), "\n"), nil
}
