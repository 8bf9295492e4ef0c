// Package mcp is the bundle's MCP server: the one door through which an agent may ask for
// a change of what its bottle lets through, and learn what was decided.
//
// The model: a unix socket, which init makes and holds so that it outlives the server,
// newline-delimited JSON-RPC on it, and one session of ours for each connection, which feeds
// mcp-go's HandleMessage. Both eras of the protocol are served:
// 2026-07-28, which is stateless, and the older ones, which begin with initialize. mcp-go's
// own transports are not used: its stdio session is one global, so that progress reaches the
// wrong client, and its HTTP transport loses streams when the server is replaced. For a client
// that keeps tasks (SEP-2663) a pending request is one.
//
// The trust boundary: everything that comes over the socket was written by an agent that may
// have been talked into anything. So lines, calls in flight, connections and waiting times
// are bounded; arguments are checked against the very schemas that are advertised; who is
// calling is what the kernel says of the socket's peer, never clientInfo; and the text that
// an agent wrote is not repeated in notifications.
//
// What can propose cannot apply: the package knows a [Queue], into which requests go, and an
// [Enforcer], which tells what is in force. It imports nothing that could write a rule.
package mcp
