// Package bridge connects an MCP client that speaks on stdin and stdout to a bottle's unix
// socket. It runs in the agent's sandbox, as bottle-mcp.
//
// The model: lines are forwarded as they are, and what it takes to outlive the other side is
// remembered. A client that loses its stdio server forgets its session and stops to look at
// what it had in the background, so the bridge never ends while its input is open. When the
// bundle is replaced it dials again, says again what the client once said to begin the session
// (initialize, or each open subscriptions/listen), and sends again each call in flight that
// does no harm twice. A request_allowlist_change is among them because the bridge gives each
// one a key, by which the queue knows it again. Any other lost call is answered with what to
// do. While there is no bundle calls wait for it, but for less than their client would; a look at a
// task (tasks/get) always does, for its client would soon take the task for lost. The bridge knows no tasks:
// they are the bundle's, which finds them again on disk.
//
// The trust boundary: none. The bridge has no right that the agent has not, and the server
// believes nothing of it; so it imports nothing of the bottle, and bounds what it holds only
// to be a good neighbour in the sandbox.
package bridge
