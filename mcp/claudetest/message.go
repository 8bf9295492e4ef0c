package claudetest

import (
	"encoding/json"
	"fmt"
	"io"
)

// A message is the model's turn on the wire.
type message struct {
	ID         string  `json:"id"`
	Type       string  `json:"type"`
	Role       string  `json:"role"`
	Model      string  `json:"model"`
	Content    []block `json:"content"`
	StopReason *string `json:"stop_reason"`
	StopSeq    *string `json:"stop_sequence"`
	Usage      usage   `json:"usage"`
}

type usage struct {
	InputTokens  int `json:"input_tokens"`
	OutputTokens int `json:"output_tokens"`
}

// A block is text or a call of a tool.
type block struct {
	Type  string          `json:"type"`
	Text  *string         `json:"text,omitempty"`
	ID    string          `json:"id,omitempty"`
	Name  string          `json:"name,omitempty"`
	Input json.RawMessage `json:"input,omitempty"`
}

func newMessage(id, model string, step Step) (message, error) {
	stop := "end_turn"
	m := message{ID: id, Type: "message", Role: "assistant", Model: model, Content: []block{}, StopReason: &stop, Usage: usage{1000, 10}}
	if step.Say != "" {
		m.Content = append(m.Content, block{Type: "text", Text: &step.Say})
	}
	for i, c := range step.Calls {
		stop = "tool_use"
		input := json.RawMessage("{}")
		if c.Input != nil {
			var err error
			if input, err = json.Marshal(c.Input); err != nil {
				return message{}, fmt.Errorf("input of %s: %w", c.Tool, err)
			}
		}
		m.Content = append(m.Content, block{Type: "tool_use", ID: fmt.Sprintf("toolu_%s_%d", id, i), Name: c.Tool, Input: input})
	}
	return m, nil
}

// An event is one of a streamed message.
type event struct {
	name string
	data map[string]any
}

func (e event) write(w io.Writer) error {
	e.data["type"] = e.name
	b, err := json.Marshal(e.data)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "event: %s\ndata: %s\n\n", e.name, b)
	return err
}

// events returns the message as it is streamed: each block begins empty.
func (m message) events() []event {
	begin := m
	begin.Content, begin.StopReason = []block{}, nil
	all := []event{{"message_start", map[string]any{"message": begin}}}
	for i, b := range m.Content {
		delta := map[string]any{"type": "text_delta", "text": b.Text}
		if b.Type == "tool_use" {
			delta = map[string]any{"type": "input_json_delta", "partial_json": string(b.Input)}
			b.Input = json.RawMessage("{}")
		} else {
			b.Text = new(string)
		}
		all = append(all,
			event{"content_block_start", map[string]any{"index": i, "content_block": b}},
			event{"content_block_delta", map[string]any{"index": i, "delta": delta}},
			event{"content_block_stop", map[string]any{"index": i}})
	}
	return append(all,
		event{"message_delta", map[string]any{"delta": map[string]any{"stop_reason": m.StopReason, "stop_sequence": nil}, "usage": m.Usage}},
		event{"message_stop", map[string]any{}})
}
