package claudetest

import (
	"encoding/json"
	"slices"
	"strings"
)

// A Step is one turn of the model's.
type Step struct {
	On    string // must occur in what came last; empty: anything does
	Say   string // text
	Calls []Call // tools that are called after it
}

// A Call is one call of a tool. MCP tools are named mcp__SERVER__TOOL.
type Call struct {
	Tool  string
	Input any // encoded as JSON; nil: {}
}

// A Request is what Claude Code asked the model.
type Request struct {
	Tools    []string // names of those that the model may call
	Last     string   // all text that came since the model spoke last, as the model sees it
	Messages int      // in the conversation
}

// Offers reports whether the model may call the tool. A request that offers none is not part of
// the conversation with the user.
func (r Request) Offers(tool string) bool { return slices.Contains(r.Tools, tool) }

// A wireRequest is what the API is sent, as far as it matters here.
type wireRequest struct {
	Model    string `json:"model"`
	Stream   bool   `json:"stream"`
	Messages []struct {
		Role    string          `json:"role"`
		Content json.RawMessage `json:"content"`
	} `json:"messages"`
	Tools []struct {
		Name string `json:"name"`
	} `json:"tools"`
}

func (w *wireRequest) request() Request {
	r := Request{Messages: len(w.Messages)}
	for _, t := range w.Tools {
		r.Tools = append(r.Tools, t.Name)
	}
	var last []string
	for _, m := range slices.Backward(w.Messages) {
		if m.Role == "assistant" {
			break
		}
		last = append(last, texts(m.Content))
	}
	slices.Reverse(last)
	r.Last = strings.Join(last, "\n")
	return r
}

// texts joins all that is text in a message's content: a string, or blocks, of which a tool's
// result has again a content.
func texts(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return s
	}
	var blocks []struct {
		Text    string          `json:"text"`
		Content json.RawMessage `json:"content"`
	}
	if json.Unmarshal(raw, &blocks) != nil {
		return ""
	}
	var all []string
	for _, b := range blocks {
		if b.Text != "" {
			all = append(all, b.Text)
		}
		if b.Content != nil {
			all = append(all, texts(b.Content))
		}
	}
	return strings.Join(all, "\n")
}
