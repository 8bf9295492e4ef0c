package bridge

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
)

const version = "2.0"

// JSON-RPC error codes; the last is MCP's for a server's own.
const (
	codeParse          = -32700
	codeInvalidRequest = -32600
	codeUnavailable    = -32000
)

// An envelope is what the bridge must know of a message, of whichever kind.
type envelope struct {
	JSONRPC string          `json:"jsonrpc"`
	Method  string          `json:"method"`
	ID      json.RawMessage `json:"id"`
	Params  params          `json:"params"`
	Error   *struct {
		Message string `json:"message"`
	} `json:"error"`
}

type params struct {
	Name          string          `json:"name"`          // tools/call
	RequestID     json.RawMessage `json:"requestId"`     // notifications/cancelled
	ProgressToken json.RawMessage `json:"progressToken"` // notifications/progress
	Progress      float64         `json:"progress"`
	Total         float64         `json:"total"`
	Meta          struct {
		ProgressToken json.RawMessage `json:"progressToken"`
		Version       string          `json:"io.modelcontextprotocol/protocolVersion"`
		Subscription  json.RawMessage `json:"io.modelcontextprotocol/subscriptionId"`
	} `json:"_meta"`
}

// parse returns what the line says, or the answer to what is no message at all. Params of
// another form are for the other side to complain of.
func parse(line []byte) (env envelope, fault []byte) {
	err := json.Unmarshal(line, &env)
	wrong, isType := errors.AsType[*json.UnmarshalTypeError](err)
	switch {
	case err == nil, isType && strings.HasPrefix(wrong.Field, "params"):
		return env, nil
	case isType:
		return env, rpcError(nil, codeInvalidRequest, "not a JSON-RPC message (batches are not supported): send one object on one line")
	}
	return env, rpcError(nil, codeParse, "not JSON: "+err.Error())
}

// idKey returns a map key for an id or token, which is a string or a number; 3 and "3" are
// two. Strings are compared by what they say, not by how they are escaped.
func idKey(id json.RawMessage) (string, bool) {
	id = bytes.TrimSpace(id)
	if len(id) == 0 {
		return "", false
	}
	switch c := id[0]; {
	case c == '"':
		var s string
		if json.Unmarshal(id, &s) != nil {
			return "", false
		}
		return "s:" + s, true
	case c == '-' || c >= '0' && c <= '9':
		return "n:" + string(id), true
	}
	return "", false
}

func rpcError(id json.RawMessage, code int, message string) []byte {
	type detail struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	}
	return marshal(struct {
		JSONRPC string          `json:"jsonrpc"`
		ID      json.RawMessage `json:"id"`
		Error   detail          `json:"error"`
	}{version, id, detail{code, message}})
}

type object = map[string]json.RawMessage

// edit changes a JSON object, and no byte of the values that do not change. What isn't an
// object is returned as it is.
func edit(raw []byte, change func(object)) []byte {
	var m object
	if json.Unmarshal(raw, &m) != nil || m == nil {
		return raw
	}
	change(m)
	return marshal(m)
}

// marshal encodes what can't fail to be: our own structs, and JSON that was parsed before.
func marshal(v any) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic("bridge: " + err.Error())
	}
	return bytes.TrimRight(b.Bytes(), "\n")
}

func clip(line []byte) string {
	const limit = 80
	if len(line) <= limit {
		return string(line)
	}
	return strings.ToValidUTF8(string(line[:limit]), "") + "..."
}
