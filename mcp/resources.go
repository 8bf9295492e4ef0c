package mcp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	protocol "github.com/mark3labs/mcp-go/mcp"
	mcpserver "github.com/mark3labs/mcp-go/server"

	"bottle/bottle"
)

// Resources say what the tools list_routes, list_requests and get_request say.
const (
	routesURI   = "bottle://routes"
	requestsURI = "bottle://requests"
	requestURI  = requestsURI + "/{id}"
	mimeJSON    = "application/json"
)

func (s *Server) addResources() {
	s.lib.AddResource(
		protocol.NewResource(routesURI, "routes", protocol.WithResourceDescription("What may be reached: the routes in force."), protocol.WithMIMEType(mimeJSON)),
		s.resource(func(ctx context.Context, _ string) (any, error) { return s.routes(ctx, "") }))
	s.lib.AddResource(
		protocol.NewResource(requestsURI, "requests", protocol.WithResourceDescription("This bottle's requests, newest first."), protocol.WithMIMEType(mimeJSON)),
		s.resource(func(ctx context.Context, _ string) (any, error) { return s.listRequests(ctx, request{}) }))
	s.lib.AddResourceTemplate(
		protocol.NewResourceTemplate(requestURI, "request", protocol.WithTemplateDescription("One request, by its id or short id."), protocol.WithTemplateMIMEType(mimeJSON)),
		s.resource(func(ctx context.Context, uri string) (any, error) {
			t, err := known(ctx, s.queue.Get, strings.TrimPrefix(uri, requestsURI+"/"))
			if err != nil {
				return nil, err
			}
			return newTicketResult(t), nil
		}))
}

func (s *Server) resource(read func(ctx context.Context, uri string) (any, error)) func(context.Context, protocol.ReadResourceRequest) ([]protocol.ResourceContents, error) {
	return func(ctx context.Context, req protocol.ReadResourceRequest) ([]protocol.ResourceContents, error) {
		out, err := read(ctx, req.Params.URI)
		if err != nil {
			return nil, s.unread(ctx, req.Params.URI, err)
		}
		b, err := json.Marshal(out)
		if err != nil {
			return nil, fmt.Errorf("encode: %w", err)
		}
		return []protocol.ResourceContents{protocol.TextResourceContents{URI: req.Params.URI, MIMEType: mimeJSON, Text: string(b)}}, nil
	}
}

// notFoundCode is the code for a resource that isn't there in the request's own era, which
// may be another than that of the connection's initialize.
func notFoundCode(ctx context.Context) int {
	if protocol.IsModernProtocol(mcpserver.RequestProtocolVersion(ctx)) {
		return protocol.INVALID_PARAMS
	}
	return protocol.RESOURCE_NOT_FOUND
}

// unread words an error as for a tool. There is no isError here, so it is a protocol error.
func (s *Server) unread(ctx context.Context, uri string, err error) error {
	if c, ok := ctx.Value(callerKey{}).(*caller); ok && errors.Is(err, bottle.ErrNotFound) {
		c.errorCode = notFoundCode(ctx)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return errors.New(s.explain("resource "+clip(uri, 80), err))
}
