package mcp

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"bottle/bottle"
)

// maxRoutes bounds one answer: a model has little use for more, and there may be 10,000.
const maxRoutes = 300

type routesResult struct {
	Revision bottle.Hash        `json:"revision"`
	LoadedAt time.Time          `json:"loaded_at"`
	Routes   []bottle.RouteInfo `json:"routes"`
	Total    int                `json:"total"`
	Next     string             `json:"next"`
}

func (s *Server) listRoutes(ctx context.Context, req request) (any, error) {
	in, err := decode[struct {
		Host string `json:"host"`
	}](req)
	if err != nil {
		return nil, err
	}
	var host bottle.Host
	if in.Host != "" {
		if host, err = bottle.ParsePattern(in.Host); err != nil {
			return nil, err
		}
	}
	return s.routes(ctx, host)
}

func (s *Server) routes(ctx context.Context, host bottle.Host) (routesResult, error) {
	f, err := s.enforcer.Routes(ctx)
	if err != nil {
		return routesResult{}, egressError{err}
	}
	out := routesResult{Revision: f.Revision, LoadedAt: f.LoadedAt, Routes: []bottle.RouteInfo{}}
	for _, r := range f.Routes {
		if host != "" && !r.Host.Covers(host) && !host.Covers(r.Host) {
			continue
		}
		if out.Total++; len(out.Routes) < maxRoutes {
			if r.Ports == nil {
				r.Ports = bottle.DefaultPorts()
			}
			out.Routes = append(out.Routes, r)
		}
	}
	switch {
	case out.Total > len(out.Routes):
		out.Next = fmt.Sprintf("only the first %d of %d are shown; name a host to see its own", len(out.Routes), out.Total)
	case out.Total == 0 && host != "":
		out.Next = fmt.Sprintf("no route concerns %s; ask for one with request_allowlist_change", host)
	default:
		out.Next = "all else is refused; ask for what is missing with request_allowlist_change"
	}
	return out, nil
}

type checkResult struct {
	bottle.Check
	Next string `json:"next"`
}

func (s *Server) checkAccess(ctx context.Context, req request) (any, error) {
	in, err := decode[struct {
		URL    string `json:"url"`
		Method string `json:"method"`
	}](req)
	if err != nil {
		return nil, err
	}
	in.Method = strings.ToUpper(orDefault(in.Method, "GET"))
	u, err := url.Parse(in.URL)
	switch {
	case err != nil:
		return nil, fmt.Errorf("url: not a URL; write it like https://api.example.com/v1/items: %w", bottle.ErrInvalid)
	case u.Scheme != "https" && u.Scheme != "http" || u.Host == "":
		return nil, fmt.Errorf("url: must be absolute and begin with https:// or http://: %w", bottle.ErrInvalid)
	case !httpguts.ValidHeaderFieldName(in.Method):
		return nil, fmt.Errorf("method: not an HTTP method; use for instance GET: %w", bottle.ErrInvalid)
	}
	c, err := s.enforcer.Check(ctx, in.URL, in.Method)
	if err != nil {
		return nil, egressError{err}
	}
	c.Reason, c.Nearest = bare(c.Reason), bare(c.Nearest)
	out := checkResult{Check: c}
	switch {
	case c.Allowed:
		out.Next = "allowed: send the request"
	case c.Ask != nil:
		out.Next = "refused: call request_allowlist_change with what ask says and your own reason"
	default:
		out.Next = "refused, and no request can change that: " + c.Reason
	}
	return out, nil
}

type denialsResult struct {
	Denials []bottle.Denial `json:"denials"`
	Next    string          `json:"next"`
}

func (s *Server) listDenials(ctx context.Context, req request) (any, error) {
	in, err := decode[struct {
		Limit int `json:"limit"`
	}](req)
	if err != nil {
		return nil, err
	}
	d, err := s.enforcer.Denials(ctx, orDefault(in.Limit, 20))
	if err != nil {
		return nil, egressError{err}
	}
	out := denialsResult{Denials: d, Next: "call request_allowlist_change with what ask says and your own reason, for what you really need"}
	d = slices.Clone(d)
	for i := range d {
		d[i].Reason, d[i].Nearest = bare(d[i].Reason), bare(d[i].Nearest)
	}
	if len(d) == 0 {
		out.Denials, out.Next = []bottle.Denial{}, "nothing was refused lately"
	}
	return out, nil
}
