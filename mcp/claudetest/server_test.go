package claudetest_test

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"bottle/mcp/claudetest"
)

// ask sends a request with one tool and the given conversation, and returns the answer's lines.
func ask(t *testing.T, s *claudetest.Server, stream bool, messages string) []string {
	t.Helper()
	body, err := json.Marshal(map[string]any{
		"model": "m", "stream": stream, "tools": []any{map[string]any{"name": "Bash"}}, "messages": json.RawMessage(messages),
	})
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL()+"/v1/messages?beta=true", strings.NewReader(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var lines []string
	for sc := bufio.NewScanner(resp.Body); sc.Scan(); {
		if sc.Text() != "" {
			lines = append(lines, sc.Text())
		}
	}
	return lines
}

const said = `[{"role": "user", "content": "an old word"}, {"role": "assistant", "content": "x"}, {"role": "user", "content": [{"type": "tool_result", "content": [{"type": "text", "text": "go on"}]}, {"type": "text", "text": "now"}]}]`

func TestAStepIsStreamed(t *testing.T) {
	s := claudetest.New(claudetest.Step{On: "go on", Say: "I do.", Calls: []claudetest.Call{{Tool: "Bash", Input: map[string]string{"command": "ls"}}}})
	defer s.Close()
	want := []string{
		`event: message_start`,
		`data: {"message":{"id":"msg_1","type":"message","role":"assistant","model":"m","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":1000,"output_tokens":10}},"type":"message_start"}`,
		`event: content_block_start`,
		`data: {"content_block":{"type":"text","text":""},"index":0,"type":"content_block_start"}`,
		`event: content_block_delta`,
		`data: {"delta":{"text":"I do.","type":"text_delta"},"index":0,"type":"content_block_delta"}`,
		`event: content_block_stop`,
		`data: {"index":0,"type":"content_block_stop"}`,
		`event: content_block_start`,
		`data: {"content_block":{"type":"tool_use","id":"toolu_msg_1_0","name":"Bash","input":{}},"index":1,"type":"content_block_start"}`,
		`event: content_block_delta`,
		`data: {"delta":{"partial_json":"{\"command\":\"ls\"}","type":"input_json_delta"},"index":1,"type":"content_block_delta"}`,
		`event: content_block_stop`,
		`data: {"index":1,"type":"content_block_stop"}`,
		`event: message_delta`,
		`data: {"delta":{"stop_reason":"tool_use","stop_sequence":null},"type":"message_delta","usage":{"input_tokens":1000,"output_tokens":10}}`,
		`event: message_stop`,
		`data: {"type":"message_stop"}`,
	}
	if got := ask(t, s, true, said); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if left, err := s.Left(); len(left) != 0 || err != nil {
		t.Errorf("left %v, %v", left, err)
	}
	if err := s.Await(t.Context(), 0); err != nil {
		t.Error(err)
	}
}

func TestWhatFitsNoStepChangesNothing(t *testing.T) {
	s := claudetest.New(claudetest.Step{On: "an old word", Say: "never"})
	defer s.Close()
	_, changed := s.Requests()
	got := strings.Join(ask(t, s, false, said), "\n")
	if !strings.Contains(got, `"text":"Noted."`) || !strings.Contains(got, `"stop_reason":"end_turn"`) {
		t.Errorf("got %s", got)
	}
	<-changed
	requests, _ := s.Requests()
	if len(requests) != 1 || requests[0].Last != "go on\nnow" || !requests[0].Offers("Bash") || requests[0].Messages != 3 {
		t.Errorf("requests: %+v", requests)
	}
	if left, err := s.Left(); len(left) != 1 || err != nil {
		t.Errorf("left %v, %v", left, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Await(ctx, 0); err == nil || !strings.Contains(err.Error(), `the next on "an old word"`) || !strings.Contains(err.Error(), `"go on\nnow"`) {
		t.Errorf("await: %v", err)
	}
}

func TestAFaultIsKept(t *testing.T) {
	for name, c := range map[string]struct {
		step     claudetest.Step
		messages string
		want     string
	}{
		"an input that is no JSON":  {claudetest.Step{Calls: []claudetest.Call{{Tool: "Bash", Input: func() {}}}}, said, "input of Bash"},
		"a request of another form": {claudetest.Step{}, `"none"`, "cannot unmarshal"},
	} {
		t.Run(name, func(t *testing.T) {
			s := claudetest.New(c.step)
			defer s.Close()
			ask(t, s, true, c.messages)
			if _, err := s.Left(); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("err = %v, want %q", err, c.want)
			}
		})
	}
}

func TestPrepareTrustsTheDirectory(t *testing.T) {
	home, dir := t.TempDir(), t.TempDir()
	if err := claudetest.Prepare(home, dir); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(home, ".claude", ".claude.json"))
	if err != nil {
		t.Fatal(err)
	}
	var state struct {
		Projects map[string]struct{ HasTrustDialogAccepted bool }
	}
	if err := json.Unmarshal(b, &state); err != nil || !state.Projects[dir].HasTrustDialogAccepted {
		t.Errorf("%v: %s", err, b)
	}
	if !slices.Contains(claudetest.Environ(home, "http://x"), "CLAUDE_CONFIG_DIR="+filepath.Join(home, ".claude")) {
		t.Error("Environ names another directory")
	}
}
