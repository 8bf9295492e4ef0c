package mcp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	protocol "github.com/mark3labs/mcp-go/mcp"

	"bottle/bottle"
)

// instructions are what a client puts before its model.
const instructions = `You work in a bottle: a sandbox whose only way out is a proxy with an allowlist. A 403 with "blocked by bottle" means that a rule is missing, not that the site is down.
Its body names the rule that comes nearest and the call that would ask for the missing one; check_access and list_denials tell the same.
Ask with request_allowlist_change for the least that you need (host, path, method) and say why in one sentence: a human operator reads it and may grant less than you ask.
While a request is pending go on with other work, or call wait_for_decision; asking again changes nothing, and so does another spelling of the same host.
When it says applied, the rule is in force: try again what was refused. When it says denied, read the note and find another way.`

// keyMeta is where the bridge puts a call's idempotency key, so that a call that it re-sends
// after a lost connection counts no second attempt.
const keyMeta = "bottle/key"

// A tool is one entry of the table below.
type tool struct {
	name, title, desc string
	in, out           node
	readOnly          bool
	idempotent        bool
	alwaysLoad        bool // key tools stay out of Claude Code's tool search
	run               func(ctx context.Context, req request) (any, error)
}

// A request is a tool call whose arguments fit the tool's schema.
type request struct {
	args  json.RawMessage
	key   string
	token protocol.ProgressToken
}

func (s *Server) tools() []tool {
	return []tool{
		{
			name: toolRequest, title: "Ask for a change of the allowlist",
			desc: "Ask the operator to let this bottle reach something (add), or no longer (remove). The request is kept until it is decided; the same request again joins the pending one. " +
				"Answers with the request's id and status: with wait_seconds, after the decision if it comes in time; else pending, and wait_for_decision tells later. What is granted may be less than what you ask.",
			in: submitSchema(), out: requestOutput(), idempotent: true, alwaysLoad: true, run: s.submit,
		},
		{
			name: "wait_for_decision", title: "Wait for the operator's decision",
			desc: "Wait until a request is decided, at most timeout_seconds; then pending is the answer, and you may call it again.",
			in: object(node{
				"id":              idSchema(),
				"timeout_seconds": integer(0, waitLimit, "how many seconds to wait at most; absent: 60"),
			}, "id"),
			out: sameOutput(), readOnly: true, alwaysLoad: true, run: s.waitForDecision,
		},
		{
			name: "check_access", title: "Check whether a URL may be reached",
			desc: "Whether a request would be let through, by which rule, or which rule comes nearest and how to ask for the missing one. Nothing is sent.",
			in: object(node{
				"url":    bounded(text("an absolute URL, for instance https://api.example.com/v1/items"), 4096),
				"method": bounded(text("an HTTP method; absent: GET"), 32),
			}, "url"),
			out: checkOutput(), readOnly: true, alwaysLoad: true, run: s.checkAccess,
		},
		{
			name: "list_routes", title: "List what may be reached",
			desc: "The routes in force: hosts, ports, methods and paths that are let through, where each comes from, and when it ends.",
			in:   object(node{"host": bounded(text("a host name: only routes that concern it; absent: all"), 1024)}),
			out:  routesOutput(), readOnly: true, run: s.listRoutes,
		},
		{
			name: "list_denials", title: "List what was refused",
			desc: "Recent refusals, newest first, like ones grouped, each with the request that would ask for it.",
			in:   object(node{"limit": integer(1, 100, "how many at most; absent: 20")}),
			out:  denialsOutput(), readOnly: true, run: s.listDenials,
		},
		{
			name: "get_request", title: "Look a request up",
			desc: "A request's status, what was granted, and the operator's note, at once.",
			in:   object(node{"id": idSchema()}, "id"),
			out:  sameOutput(), readOnly: true, run: s.getRequest,
		},
		{
			name: "list_requests", title: "List this bottle's requests",
			desc: "This bottle's requests, newest first.",
			in:   object(node{}),
			out:  requestsOutput(), readOnly: true, run: s.listRequests,
		},
		{
			name: "cancel_request", title: "Cancel a pending request",
			desc: "Take back a request that is still pending.",
			in:   object(node{"id": idSchema()}, "id"),
			out:  sameOutput(), idempotent: true, run: s.cancelRequest,
		},
	}
}

func (s *Server) addTools() error {
	for _, t := range s.tools() {
		schema, rawIn, err := compile(t.name, t.in)
		if err != nil {
			return err
		}
		rawOut, err := json.Marshal(t.out)
		if err != nil {
			return fmt.Errorf("output schema of %s: %w", t.name, err)
		}
		def := protocol.Tool{
			Name: t.name, Title: t.title, Description: t.desc,
			RawInputSchema: rawIn, RawOutputSchema: rawOut,
			// All four are set, as the protocol's defaults are destructive and open world.
			Annotations: protocol.ToolAnnotation{
				Title:           t.title,
				ReadOnlyHint:    new(t.readOnly),
				DestructiveHint: new(false),
				IdempotentHint:  new(t.readOnly || t.idempotent),
				OpenWorldHint:   new(false),
			},
		}
		if t.alwaysLoad {
			def.Meta = &protocol.Meta{AdditionalFields: map[string]any{"anthropic/alwaysLoad": true}}
		}
		s.lib.AddTool(def, s.handler(t, schema))
	}
	return nil
}

// handler is the one path of every tool call: arguments are checked, the tool is run, and
// what it returns, error or not, becomes a result that the model can act on.
func (s *Server) handler(t tool, schema *inputSchema) func(context.Context, protocol.CallToolRequest) (*protocol.CallToolResult, error) {
	return func(ctx context.Context, call protocol.CallToolRequest) (*protocol.CallToolResult, error) {
		req := request{args: bytes.TrimSpace(call.Params.RawArguments)}
		if len(req.args) == 0 || bytes.Equal(req.args, []byte("null")) {
			req.args = json.RawMessage("{}")
		}
		if err := schema.check(req.args); err != nil {
			return protocol.NewToolResultError(err.Error()), nil
		}
		if m := call.Params.Meta; m != nil {
			req.token = m.ProgressToken
			if v, ok := m.AdditionalFields[keyMeta]; ok {
				if req.key, ok = v.(string); !ok || len(req.key) > maxKey {
					return protocol.NewToolResultError(fmt.Sprintf("_meta %s: must be a string of at most %d bytes", keyMeta, maxKey)), nil
				}
			}
		}
		out, err := t.run(ctx, req)
		if err != nil {
			return s.failure(ctx, t.name, err)
		}
		return protocol.NewToolResultJSON(out)
	}
}

// maxKey bounds an idempotency key, in bytes.
const maxKey = 128

// decode reads arguments that fit the schema; what the schema can't say (an integer that
// fits an int, a form that Go's decoder takes) may still be wrong.
func decode[T any](req request) (T, error) {
	var v T
	err := json.Unmarshal(req.args, &v)
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		field := wrong.Field[strings.LastIndexByte(wrong.Field, '.')+1:]
		return v, fmt.Errorf("%s: is a %s; write it as a plain %s: %w", field, wrong.Value, wrong.Type, bottle.ErrInvalid)
	}
	if err != nil {
		return v, fmt.Errorf("arguments: %w: %w", err, bottle.ErrInvalid)
	}
	return v, nil
}
