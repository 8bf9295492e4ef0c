package mcp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	protocol "github.com/mark3labs/mcp-go/mcp"

	"bottle/bottle"
)

// Tasks are the extension of 2026-07-28 by which a call is answered at once and its result is
// fetched later (SEP-2663, which mcp-go lacks). A request_allowlist_change that is not decided
// becomes one, if its client declared the extension.
//
// There is no table of tasks: a task is the request, and its id the request's UUID. So it is as
// durable as the queue, outlives any death of the server, and the model, which sees the id, can
// give it to get_request and cancel_request too. The extension wants an id that a third party
// can't guess: of a UUIDv7 as the queue makes them 62 bits come from the system's random source
// (the rest is the time). The short id, which counts up, names no task. And the id is not what
// guards a task: the peer's credentials do, and a peer of this socket may list all requests of
// its bottle, and cancel them, by tools.
//
// wait_for_decision does not become a task: it ends after timeout_seconds, which the request
// does not, and to cancel the wait must not cancel the request.
const (
	tasksExtension = "io.modelcontextprotocol/tasks"

	methodTasksGet    = "tasks/get"
	methodTasksUpdate = "tasks/update"
	methodTasksCancel = "tasks/cancel"

	toolRequest = "request_allowlist_change"
)

// A taskMessage is what decides whether a message has to do with tasks.
type taskMessage struct {
	ID     json.RawMessage `json:"id"`
	Method string          `json:"method"`
	Params struct {
		Meta          *protocol.Meta `json:"_meta"`
		Notifications struct {
			TaskIDs json.RawMessage `json:"taskIds"`
		} `json:"notifications"`
		TaskID json.RawMessage `json:"taskId"`
	} `json:"params"`
}

// modern reports whether the message is a valid one of the era that has the extension. Of an
// older one tasks/get and tasks/cancel mean something else, which the library knows.
func (m *taskMessage) modern() bool {
	version := m.Params.Meta.ProtocolVersion()
	return protocol.IsModernProtocol(version) && protocol.IsValidProtocolVersion(version) && m.Params.Meta.ClientCapabilities() != nil
}

// declared reports whether the client keeps tasks. What it may have said in another message
// does not count: the extension is declared with each request.
func (m *taskMessage) declared() bool {
	_, ok := m.Params.Meta.ClientCapabilities().Extensions[tasksExtension].(map[string]any)
	return ok
}

// A taskSlot is where submit leaves the ticket that is to become a task.
type taskSlot struct{ ticket *bottle.Ticket }

type taskSlotKey struct{}

// taskSlotOf returns nil if the client wants no task.
func taskSlotOf(ctx context.Context) *taskSlot {
	slot, _ := ctx.Value(taskSlotKey{}).(*taskSlot)
	return slot
}

// withTasks answers what belongs to the extension, and has next answer the rest.
func (s *Server) withTasks(next dispatcher) dispatcher {
	return func(ctx context.Context, message json.RawMessage) protocol.JSONRPCMessage {
		var m taskMessage
		if json.Unmarshal(message, &m) != nil || m.ID == nil || !m.modern() {
			return next(ctx, message)
		}
		declared := m.declared()
		switch m.Method {
		case methodTasksGet, methodTasksUpdate, methodTasksCancel:
			if !declared {
				return tasksUndeclared(m.ID)
			}
			return s.taskMethod(ctx, &m)
		case string(protocol.MethodSubscriptionsListen):
			// Of declared ones the library acknowledges none, so that the client goes on polling.
			if !declared && m.Params.Notifications.TaskIDs != nil {
				return tasksUndeclared(m.ID)
			}
		case string(protocol.MethodToolsCall):
			if !declared {
				break
			}
			slot := &taskSlot{}
			resp := next(context.WithValue(ctx, taskSlotKey{}, slot), message)
			if _, ok := resp.(protocol.JSONRPCResponse); ok && slot.ticket != nil {
				return protocol.NewJSONRPCResultResponse(rawID(m.ID), s.createTask(*slot.ticket))
			}
			return resp
		}
		return next(ctx, message)
	}
}

// taskMethod answers a call about one task. All of them may be sent twice.
func (s *Server) taskMethod(ctx context.Context, m *taskMessage) protocol.JSONRPCMessage {
	var id *string
	if json.Unmarshal(m.Params.TaskID, &id) != nil || id == nil {
		return rpcError(m.ID, protocol.INVALID_PARAMS, "taskId: must be a string; give the one that the task came with")
	}
	result, err := s.taskResult(ctx, m.Method, *id)
	switch {
	case errors.Is(err, bottle.ErrNotFound):
		return rpcError(m.ID, protocol.INVALID_PARAMS, fmt.Sprintf("taskId: no task %q in this bottle; list_requests shows what became of its requests", clip(*id, 80)))
	case err != nil:
		return rpcError(m.ID, protocol.INTERNAL_ERROR, s.explain(m.Method, err))
	}
	return protocol.NewJSONRPCResultResponse(rawID(m.ID), result)
}

func (s *Server) taskResult(ctx context.Context, method, id string) (any, error) {
	t, err := s.queue.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	if t.Request.ID != id { // a short id, or another spelling
		return nil, bottle.ErrNotFound
	}
	switch method {
	case methodTasksGet:
		return s.getTask(t)
	case methodTasksCancel:
		// What is decided can't be cancelled, and the next tasks/get tells that.
		if _, err := s.queue.Cancel(ctx, id); err != nil && !errors.Is(err, bottle.ErrState) {
			return nil, err
		}
	}
	// tasks/update is acknowledged too: no task here asks for input, and answers to what was not
	// asked are to be ignored.
	var ack protocol.Result
	s.stamp(&ack, protocol.ResultTypeComplete)
	return ack, nil
}

// tasksUndeclared is the answer that the extension prescribes.
func tasksUndeclared(id json.RawMessage) protocol.JSONRPCError {
	e := rpcError(id, protocol.MISSING_REQUIRED_CLIENT_CAPABILITY, "this needs the extension "+tasksExtension+": declare it in the request's client capabilities")
	e.Error.Data = map[string]any{"requiredCapabilities": map[string]any{"extensions": map[string]any{tasksExtension: struct{}{}}}}
	return e
}
