package mcp

import (
	"time"

	protocol "github.com/mark3labs/mcp-go/mcp"

	"bottle/bottle"
)

// pollEvery is how often a client should look: an operator's decision is not felt to be late,
// and a look costs little.
const pollEvery = 2 * time.Second

// The states of a task. One of ours needs no input, and does not fail: what became of a request
// is a result, even if it could not be put in force.
const (
	taskWorking   = "working"
	taskCompleted = "completed"
	taskCancelled = "cancelled"
)

// A task is a request as the extension shows it. A result comes with the task that is
// completed, and tells what the request is by then: a grant may have ended since.
type task struct {
	protocol.Result

	ID             string                   `json:"taskId"`
	Status         string                   `json:"status"`
	StatusMessage  string                   `json:"statusMessage"` // repeats nothing that an agent wrote
	CreatedAt      time.Time                `json:"createdAt"`
	LastUpdatedAt  time.Time                `json:"lastUpdatedAt"`
	TTLMs          *int64                   `json:"ttlMs"` // always null: it lasts as long as the queue keeps the request
	PollIntervalMs int64                    `json:"pollIntervalMs"`
	Outcome        *protocol.CallToolResult `json:"result,omitempty"`
}

func newTask(t bottle.Ticket) task {
	k := task{
		ID: t.Request.ID, Status: taskCompleted, StatusMessage: "request " + nameOf(t) + ": " + string(t.Status()),
		CreatedAt: t.Request.CreatedAt, LastUpdatedAt: t.Request.CreatedAt, PollIntervalMs: pollEvery.Milliseconds(),
	}
	if t.Answer != nil && t.Answer.UpdatedAt.After(k.LastUpdatedAt) {
		k.LastUpdatedAt = t.Answer.UpdatedAt
	}
	switch t.Status() {
	case bottle.Pending:
		k.Status, k.StatusMessage = taskWorking, "request "+nameOf(t)+" waits for the operator"
	case bottle.Approved:
		k.Status, k.StatusMessage = taskWorking, "request "+nameOf(t)+" is approved, and being put in force"
	case bottle.Cancelled:
		k.Status, k.StatusMessage = taskCancelled, "request "+nameOf(t)+" was taken back; nothing was changed"
	}
	return k
}

// createTask is the answer to the call that became the task.
func (s *Server) createTask(t bottle.Ticket) task {
	k := newTask(t)
	s.stamp(&k.Result, "task")
	return k
}

// getTask is the answer to tasks/get. The result in it is the one that the tool would have
// given, had it waited.
func (s *Server) getTask(t bottle.Ticket) (task, error) {
	k := newTask(t)
	s.stamp(&k.Result, protocol.ResultTypeComplete)
	if k.Status != taskCompleted {
		return k, nil
	}
	outcome, err := protocol.NewToolResultJSON(newTicketResult(t))
	if err != nil {
		return k, err
	}
	s.stamp(&outcome.Result, protocol.ResultTypeComplete)
	k.Outcome = outcome
	return k, nil
}

// stamp sets what 2026-07-28 wants in each result.
func (s *Server) stamp(r *protocol.Result, kind protocol.ResultType) {
	r.SetResultType(kind)
	r.EnsureResultMeta().SetServerInfo(s.info)
}
