package mcp_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"bottle/bottle"
	"bottle/mcp"
)

// maxToolList bounds tools/list, in bytes: a client keeps it before its model all the time.
const maxToolList = 22 << 10

// A toolbox is a server whose results are checked against what it advertises.
type toolbox struct {
	srv     *mcp.Server
	outputs map[string]*jsonschema.Schema
}

func newToolbox(t *testing.T, q mcp.Queue, e mcp.Enforcer) *toolbox {
	t.Helper()
	srv, err := mcp.NewServer(mcp.Config{Queue: q, Enforcer: e})
	if err != nil {
		t.Fatal(err)
	}
	b := &toolbox{srv, map[string]*jsonschema.Schema{}}
	raw := b.handle(t, "tools/list", struct{}{})
	if len(raw) > maxToolList {
		t.Errorf("tools/list has %d bytes; at most %d", len(raw), maxToolList)
	}
	var list struct {
		Result struct {
			Tools []struct {
				Name                      string
				InputSchema, OutputSchema json.RawMessage
			}
		}
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		t.Fatal(err)
	}
	for _, tool := range list.Result.Tools {
		compileSchema(t, tool.Name+".in", tool.InputSchema)
		b.outputs[tool.Name] = compileSchema(t, tool.Name+".out", tool.OutputSchema)
	}
	return b
}

// compileSchema holds the schema against the metaschema of 2020-12.
func compileSchema(t *testing.T, name string, raw json.RawMessage) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(string(raw)))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	c.AssertFormat()
	if err := c.AddResource("mem:///"+name, doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("mem:///" + name)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return s
}

func (b *toolbox) handle(t *testing.T, method string, params any) []byte {
	t.Helper()
	msg, err := json.Marshal(map[string]any{"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(b.srv.HandleMessage(t.Context(), msg))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// call returns the text of a tool's result, which must fit the tool's output schema unless it
// is an error.
func (b *toolbox) call(t *testing.T, tool, args string) (text string, isError bool) {
	t.Helper()
	raw := b.handle(t, "tools/call", map[string]any{"name": tool, "arguments": json.RawMessage(args)})
	var resp struct {
		Result struct {
			IsError           bool
			StructuredContent json.RawMessage
			Content           []struct{ Text string }
		}
	}
	if err := json.Unmarshal(raw, &resp); err != nil || len(resp.Result.Content) != 1 {
		t.Fatalf("%s: %v in %s", tool, err, raw)
	}
	text = resp.Result.Content[0].Text
	if resp.Result.IsError {
		return text, true
	}
	v, err := jsonschema.UnmarshalJSON(strings.NewReader(string(resp.Result.StructuredContent)))
	if err != nil {
		t.Fatalf("%s: %v in %s", tool, err, raw)
	}
	if err := b.outputs[tool].Validate(v); err != nil {
		t.Errorf("%s: %v\n%s", tool, err, resp.Result.StructuredContent)
	}
	return text, false
}

// TestResultsFitTheirSchemas has each tool return what it can, with every field set somewhere.
func TestResultsFitTheirSchemas(t *testing.T) {
	q := newFakeQueue()
	b := newToolbox(t, q, &fakeEgress{})
	match := `{"method":"GET","path":{"type":"PathPrefix","value":"/v1"},"headers":[{"name":"accept","type":"RegularExpression","value":"a.*"}]}`
	ask := `{"kind":"access","add":[{"host":"h%d.example.com","ports":[443,8443],"matches":[` + match + `]},{"host":"*.example.org"}],` +
		`"remove":[{"host":"old.example.com"}],"credential":"example","ttl_seconds":60,"reason":"x"}`
	ends := time.Now().Add(time.Minute)
	granted := bottle.Answer{
		Status: bottle.Applied, Add: []bottle.Entry{{Host: "h.example.com", Ports: []int{8443}, Matches: []bottle.Match{{Method: "GET"}}}},
		Remove: []bottle.Entry{{Host: "old.example.com"}}, Credential: "example", Duration: "10m0s", ExpiresAt: &ends,
		Edited: []string{"add"}, Note: "less", Revision: map[string]bottle.Hash{"routes.yaml": "sha256:2222"},
	}
	failed, revoked := granted, granted
	failed.Status, failed.Error = bottle.Failed, "refused"
	revoked.Status = bottle.Revoked
	states := []bottle.Answer{
		{Status: bottle.Pending},
		{Status: bottle.Approved},
		{Status: bottle.Denied, Note: "no"},
		{Status: bottle.Expired},
		{Status: bottle.Cancelled},
		granted, failed, revoked,
	}
	for i, a := range states {
		mustCall(t, b, "request_allowlist_change", fmt.Sprintf(ask, i))
		id := fmt.Sprintf(`{"id":"r%d"`, i+1)
		mustCall(t, b, "request_allowlist_change", fmt.Sprintf(ask, i)) // joined
		q.decide(fmt.Sprintf("r%d", i+1), a)
		mustCall(t, b, "get_request", id+`}`)
		mustCall(t, b, "wait_for_decision", id+`,"timeout_seconds":0}`)
	}
	// What the operator said with the yes is no reason for taking it back.
	if text := mustCall(t, b, "get_request", `{"id":"r8"}`); !strings.Contains(text, "the operator has taken it back; if") || strings.Contains(text, "back: less") {
		t.Error(text)
	}
	mustCall(t, b, "list_requests", `{}`)
	mustCall(t, b, "cancel_request", `{"id":"r1"}`)
	mustCall(t, b, "list_routes", `{}`)
	mustCall(t, b, "list_routes", `{"host":"unknown.example.com"}`)
	mustCall(t, b, "check_access", `{"url":"https://api.example.com/v1"}`)
	mustCall(t, b, "check_access", `{"url":"https://other.example.com/"}`)
	mustCall(t, b, "check_access", `{"url":"https://10.0.0.1/"}`)
	mustCall(t, b, "list_denials", `{}`)
	mustCall(t, b, "list_denials", `{"limit":1}`)
	empty := newToolbox(t, newFakeQueue(), &fakeEgress{})
	mustCall(t, empty, "list_requests", `{}`)
}

func mustCall(t *testing.T, b *toolbox, tool, args string) string {
	t.Helper()
	text, isError := b.call(t, tool, args)
	if isError {
		t.Errorf("%s %s: %s", tool, args, text)
	}
	return text
}
