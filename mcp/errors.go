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
// fits counts. Where hide is set the error's own text stays in the log: it is about the
// machinery, and the agent can do nothing with it.
var advice = []struct {
	is   error
	hide bool
	say  string
}{
	{bottle.ErrInvalid, false, "correct that field and call again"},
	{bottle.ErrLimit, false, "wait until the operator has decided what is pending, or take back with cancel_request what you no longer need"},
	{bottle.ErrAmbiguous, false, "give the whole id; list_requests shows it"},
	{bottle.ErrNotFound, false, "check the id; list_requests shows your requests"},
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
	if _, ok := errors.AsType[egressError](err); ok {
		s.log.Warn("mcp: egress doesn't answer", "tool", name, "err", err)
		return protocol.NewToolResultError("the proxy can't be asked at the moment: it may be restarting, so try again in a few seconds; if that lasts, tell the operator"), nil
	}
	for _, a := range advice {
		if !errors.Is(err, a.is) {
			continue
		}
		if a.hide {
			s.log.Error("mcp: queue", "tool", name, "err", err)
			return protocol.NewToolResultError(a.say), nil
		}
		return protocol.NewToolResultError(trimSentinel(err, a.is) + "; " + a.say), nil
	}
	s.log.Error("mcp: tool failed", "tool", name, "err", err)
	return protocol.NewToolResultError("that could not be done just now: call again in a few seconds (the same request is filed only once); if that lasts, tell the operator"), nil
}

// trimSentinel drops the sentinel's own text, which wrapping put at the end.
func trimSentinel(err, sentinel error) string {
	s := err.Error()
	if t := strings.TrimSuffix(s, ": "+sentinel.Error()); t != "" {
		return t
	}
	return s
}
