package mcp

import (
	"context"
	"errors"
	"strings"

	protocol "github.com/mark3labs/mcp-go/mcp"

	"bottle/bottle"
)

// An egressError is a failure to ask egress what is in force.
type egressError struct{ error }

func (e egressError) Unwrap() error { return e.error }

// advice is the one table from the domain's errors to what a model is told. The first that
// fits counts. What is said comes after the error's own text; nothing is where that names the
// fix already, as those of a bound and of an unknown request do. Where hide is set the error's own text stays in the log: it is about the
// machinery, and the agent can do nothing with it.
var advice = []struct {
	is   error
	hide bool
	say  string
}{
	{bottle.ErrInvalid, false, "correct that field and call again"},
	{bottle.ErrLimit, false, ""},
	{bottle.ErrAmbiguous, false, "give the whole id; list_requests shows it"},
	{bottle.ErrNotFound, false, ""},
	{bottle.ErrState, false, "look with get_request at what has become of it"},
	{bottle.ErrChanged, false, "look with get_request at what has become of it"},
	{bottle.ErrLocked, true, "the queue is in use by another process: try again in a few seconds"},
	{bottle.ErrTampered, true, "the queue's files don't agree with each other: tell the operator"},
	{bottle.ErrCorrupt, true, "a file of the queue is damaged: tell the operator"},
	{bottle.ErrNewer, true, "the queue was written by a newer bottle: tell the operator"},
}

// failure turns an error into a result that says what to do. Only a call that nobody waits
// for any longer ends in a protocol error, which is not sent.
func (s *Server) failure(ctx context.Context, name string, err error) (*protocol.CallToolResult, error) {
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return protocol.NewToolResultError(s.explain(name, err)), nil
}

// explain says what to do about an error of the named tool, resource or method.
func (s *Server) explain(name string, err error) string {
	if _, ok := errors.AsType[egressError](err); ok {
		s.log.Warn("mcp: egress doesn't answer", "tool", name, "err", err)
		return "the proxy can't be asked at the moment: it may be restarting, so try again in a few seconds; if that lasts, tell the operator"
	}
	for _, a := range advice {
		if !errors.Is(err, a.is) {
			continue
		}
		if a.hide {
			s.log.Error("mcp: queue", "tool", name, "err", err)
			return a.say
		}
		text := bare(err.Error())
		if a.say != "" {
			text += "; " + a.say
		}
		return text
	}
	s.log.Error("mcp: tool failed", "tool", name, "err", err)
	return "that could not be done just now: call again in a few seconds (the same request is filed only once); if that lasts, tell the operator"
}

// bare drops the sentinels' own texts, which wrapping puts at the end of a sentence. They
// sort errors for programs and tell a reader nothing that the sentence doesn't.
func bare(s string) string {
	for _, label := range []error{bottle.ErrInvalid, bottle.ErrLimit, bottle.ErrAmbiguous, bottle.ErrNotFound, bottle.ErrState} {
		tail := ": " + label.Error()
		s = strings.ReplaceAll(s, tail+";", ";")
		for strings.HasSuffix(s, tail) {
			s = strings.TrimSuffix(s, tail)
		}
	}
	return s
}
