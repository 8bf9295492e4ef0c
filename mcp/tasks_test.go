package mcp_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"bottle/bottle"
	"bottle/mcp"
)

// What Claude Code 2.1.330 says of itself with each request, in its interactive mode and, without
// tasks, in -p.
const (
	keepsTasks = `"_meta": {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientInfo": {"name": "claude-code", "title": "Claude Code", "version": "2.1.330"}, "io.modelcontextprotocol/clientCapabilities": {"roots": {"listChanged": true}, "elicitation": {"form": {}, "url": {}}, "extensions": {"io.modelcontextprotocol/tasks": {}}}}`
	plain      = `"_meta": {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientInfo": {"name": "claude-code", "title": "Claude Code", "version": "2.1.330"}, "io.modelcontextprotocol/clientCapabilities": {"roots": {"listChanged": true}}}`
)

func askFor(id int, host, meta string) string {
	return fmt.Sprintf(`{"jsonrpc": "2.0", "id": %d, "method": "tools/call", "params": {"name": "request_allowlist_change", "arguments": {"add": [{"host": %q}], "reason": "x"}, %s}}`, id, host, meta)
}

func onTask(id int, method, task string) string {
	return fmt.Sprintf(`{"jsonrpc": "2.0", "id": %d, "method": %q, "params": {"taskId": %q, %s}}`, id, method, task, keepsTasks)
}

// A taskAnswer is an answer that may be a task.
type taskAnswer struct {
	ID     int
	Error  *struct{ Code int }
	Result struct {
		ResultType     string
		TaskID         string
		Status         string
		PollIntervalMs int
		Result         json.RawMessage
	}
	raw json.RawMessage // the result
}

func (c *bridged) task(line string) taskAnswer {
	c.t.Helper()
	c.send(line)
	if !c.out.Scan() {
		c.t.Fatalf("no more lines: %v", c.out.Err())
	}
	return readTask(c.t, c.out.Bytes())
}

func readTask(t *testing.T, line []byte) taskAnswer {
	t.Helper()
	var a taskAnswer
	var raw struct{ Result json.RawMessage }
	if err := json.Unmarshal(line, &a); err != nil {
		t.Fatalf("%v: %s", err, line)
	}
	if err := json.Unmarshal(line, &raw); err != nil {
		t.Fatalf("%v: %s", err, line)
	}
	a.raw = raw.Result
	return a
}

// The server dies while a task is made, while it is polled, and while it is cancelled: the
// client never learns of it, and one request was filed.
func TestTasksOverRestarts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mcp.sock")
	q := &stubborn{fakeQueue: newFakeQueue(), filed: make(chan struct{}, 1), stall: true}
	in, out := newBridged(t, path)
	c := &bridged{t, in, out}

	stop := serve(t, path, q)
	c.send(askFor(1, "a.example.com", keepsTasks))
	<-q.filed
	stop()
	stop = serve(t, path, q.fakeQueue)
	if !out.Scan() {
		t.Fatal(out.Err())
	}
	made := readTask(t, out.Bytes())
	if made.ID != 1 || made.Result.ResultType != "task" || made.Result.Status != "working" || made.Result.TaskID != firstID {
		t.Fatalf("after the first restart: %s", out.Text())
	}
	stop()
	c.send(onTask(2, "tasks/get", firstID)) // while nobody serves
	stop = serve(t, path, q.fakeQueue)
	if !out.Scan() {
		t.Fatal(out.Err())
	}
	if a := readTask(t, out.Bytes()); a.ID != 2 || a.Result.ResultType != "complete" || a.Result.Status != "working" {
		t.Fatalf("after the second restart: %s", out.Text())
	}
	stop()
	c.send(onTask(3, "tasks/cancel", firstID))
	serve(t, path, q.fakeQueue)
	if !out.Scan() {
		t.Fatal(out.Err())
	}
	if a := readTask(t, out.Bytes()); a.ID != 3 || a.Error != nil || a.Result.ResultType != "complete" {
		t.Fatalf("after the third restart: %s", out.Text())
	}
	if a := c.task(onTask(4, "tasks/get", firstID)); a.Result.Status != "cancelled" {
		t.Fatalf("not cancelled: %s", out.Text())
	}
	tickets, err := q.List(t.Context())
	if err != nil || len(tickets) != 1 || tickets[0].Request.Attempts != 1 {
		t.Fatalf("%d requests (%v): %+v", len(tickets), err, tickets)
	}
}

// Of two clients that ask the same at once, one keeps tasks: each is answered in its own way,
// and both learn the same, to the letter.
func TestTasksBesideAPlainClient(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mcp.sock")
	q := newFakeQueue()
	serve(t, path, q)
	with, without := &bridged{t: t}, &bridged{t: t}
	with.in, with.out = newBridged(t, path)
	without.in, without.out = newBridged(t, path)

	made := with.task(askFor(1, "a.example.com", keepsTasks))
	if made.Result.ResultType != "task" {
		t.Fatalf("no task: %s", made.raw)
	}
	if a := without.task(askFor(1, "a.example.com", plain)); a.Result.ResultType != "complete" || !bytes.Contains(a.raw, []byte("structuredContent")) {
		t.Fatalf("a client that declared nothing got %s", a.raw)
	}
	if a := without.task(strings.Replace(onTask(2, "tasks/get", made.Result.TaskID), keepsTasks, plain, 1)); a.Error == nil || a.Error.Code != -32021 {
		t.Fatalf("a client that declared nothing polled: %s", a.raw)
	}
	q.decide("r1", bottle.Answer{Status: bottle.Denied, Note: "no"})
	polled := with.task(onTask(2, "tasks/get", made.Result.TaskID))
	waited := without.task(fmt.Sprintf(`{"jsonrpc": "2.0", "id": 3, "method": "tools/call", "params": {"name": "wait_for_decision", "arguments": {"id": "r1"}, %s}}`, plain))
	if polled.Result.Status != "completed" || !bytes.Equal(polled.Result.Result, waited.raw) {
		t.Errorf("the task's result is\n%s\nand the tool's\n%s", polled.Result.Result, waited.raw)
	}
}

// A client that polls without a pause is answered each time, and one that asks for more than may
// wait is told so, and gets no task for it.
func TestTasksUnderAFlood(t *testing.T) {
	const polls = 5000
	path := filepath.Join(t.TempDir(), "mcp.sock")
	q := newFakeQueue()
	stop := serve(t, path, q)
	c := dial(t, path)
	var ids []string
	for i := range q.limit + 5 {
		if _, err := fmt.Fprintln(c.nc, askFor(i, fmt.Sprintf("h%d.example.com", i), keepsTasks)); err != nil {
			t.Fatal(err)
		}
		if !c.out.Scan() {
			t.Fatal(c.out.Err())
		}
		a := readTask(t, c.out.Bytes())
		switch {
		case i < q.limit && a.Result.ResultType == "task" && !slices.Contains(ids, a.Result.TaskID):
			ids = append(ids, a.Result.TaskID)
		case i < q.limit || a.Result.ResultType != "complete" || !bytes.Contains(a.raw, []byte(`"isError":true`)):
			t.Fatalf("request %d: %s", i, a.raw)
		}
	}
	got, err := c.pipeline(polls, mcp.MaxCalls, func(i int) string { return onTask(i, "tasks/get", ids[i%len(ids)]) })
	if err != nil {
		t.Errorf("%d of %d polls answered: %v", len(got), polls, err)
	}
	stop()
}
