package mcp

import (
	"bytes"
	"encoding/json"

	protocol "github.com/mark3labs/mcp-go/mcp"
)

// codeUnavailable is the server's own error code: the message itself was in order.
const codeUnavailable = -32000

// An envelope is what the transport must know of a message. Params stay raw.
type envelope struct {
	JSONRPC string          `json:"jsonrpc"`
	Method  *string         `json:"method"`
	ID      json.RawMessage `json:"id"`
	Params  json.RawMessage `json:"params"`
}

// idKey returns a map key for an id that JSON-RPC permits, a string or a number. 3 and "3"
// are two ids. Strings are compared by what they say, not by how they are escaped.
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

// rpcError makes an error response; a nil id is null.
func rpcError(id json.RawMessage, code int, message string) protocol.JSONRPCError {
	return protocol.JSONRPCError{
		JSONRPC: protocol.JSONRPC_VERSION,
		ID:      rawID(id),
		Error:   protocol.NewJSONRPCErrorDetails(code, message, nil),
	}
}

// withID gives a response the id's own bytes: mcp-go reads numbers as float64, so that a
// large one would come back as another.
func withID(resp protocol.JSONRPCMessage, id json.RawMessage) protocol.JSONRPCMessage {
	switch r := resp.(type) {
	case protocol.JSONRPCResponse:
		r.ID = rawID(id)
		return r
	case protocol.JSONRPCError:
		r.ID = rawID(id)
		return r
	}
	return resp
}

func rawID(id json.RawMessage) protocol.RequestId {
	if id == nil {
		return protocol.NewRequestId(nil)
	}
	return protocol.NewRequestId(id)
}
