package main_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"

	"bottle/bottle"
)

// A soakWire is an MCP connection: JSON-RPC, a line each, on the socket itself, so that a
// cut shows. (bottle-mcp would hide it; that is its job.)
type soakWire struct {
	conn  net.Conn
	r     *bufio.Reader
	last  int // id
	began time.Time
}

// A soakAnswer is a tool's result, as far as the soak reads it.
type soakTicket struct {
	ID       string        `json:"id"`
	Status   bottle.Status `json:"status"`
	Attempts int           `json:"attempts"`
	Note     string        `json:"note"`
	Error    string        `json:"error"`
	Asked    struct {
		Add []bottle.Entry `json:"add"`
	} `json:"asked"`
	Requests []soakTicket `json:"requests"` // of list_requests
}

func (t soakTicket) asks(path string) bool {
	return len(t.Asked.Add) == 1 && len(t.Asked.Add[0].Matches) == 1 && t.Asked.Add[0].Matches[0].Path != nil &&
		t.Asked.Add[0].Matches[0].Path.Value == path
}

// errTool is a result with isError.
var errTool = errors.New("refused")

func dialWire(ctx context.Context, socket string) (*soakWire, error) {
	ctx, cancel := context.WithTimeout(ctx, soakPatience)
	defer cancel()
	w := &soakWire{began: time.Now()}
	var err error
	if w.conn, err = (&net.Dialer{}).DialContext(ctx, "unix", socket); err != nil {
		return nil, err
	}
	w.r = bufio.NewReader(w.conn)
	if _, err = w.call("initialize", map[string]any{
		"protocolVersion": "2025-11-25", "capabilities": map[string]any{},
		"clientInfo": map[string]string{"name": "soak", "version": "1"},
	}, soakPatience); err == nil {
		err = w.send(map[string]any{"jsonrpc": "2.0", "method": "notifications/initialized"})
	}
	if err != nil {
		return nil, errors.Join(err, w.conn.Close())
	}
	return w, nil
}

func (w *soakWire) send(msg any) error {
	_ = w.conn.SetWriteDeadline(time.Now().Add(soakPatience))
	return json.NewEncoder(w.conn).Encode(msg)
}

// call waits for the answer to it, and passes over notifications.
func (w *soakWire) call(method string, params any, patience time.Duration) (json.RawMessage, error) {
	w.last++
	if err := w.send(map[string]any{"jsonrpc": "2.0", "id": w.last, "method": method, "params": params}); err != nil {
		return nil, err
	}
	_ = w.conn.SetReadDeadline(time.Now().Add(patience))
	for {
		line, err := w.r.ReadBytes('\n')
		if err != nil {
			return nil, err
		}
		var msg struct {
			ID     *int            `json:"id"`
			Result json.RawMessage `json:"result"`
			Error  json.RawMessage `json:"error"`
		}
		if err := json.Unmarshal(line, &msg); err != nil {
			return nil, fmt.Errorf("%q: %w", line, err)
		}
		switch {
		case msg.ID == nil:
		case *msg.ID != w.last:
			return nil, fmt.Errorf("an answer to call %d, which is not under way", *msg.ID)
		case msg.Error != nil:
			return nil, fmt.Errorf("%s: %s", method, msg.Error)
		default:
			return msg.Result, nil
		}
	}
}

// tool calls a tool. An error that wraps errTool is the tool's own.
func (w *soakWire) tool(name string, args any, patience time.Duration) (soakTicket, error) {
	raw, err := w.call("tools/call", map[string]any{"name": name, "arguments": args}, patience)
	if err != nil {
		return soakTicket{}, err
	}
	var res struct {
		IsError    bool       `json:"isError"`
		Structured soakTicket `json:"structuredContent"`
		Content    []struct {
			Text string `json:"text"`
		} `json:"content"`
	}
	if err := json.Unmarshal(raw, &res); err != nil {
		return soakTicket{}, fmt.Errorf("%s: %w", name, err)
	}
	if res.IsError {
		return soakTicket{}, fmt.Errorf("%s: %v: %w", name, res.Content, errTool)
	}
	return res.Structured, nil
}
