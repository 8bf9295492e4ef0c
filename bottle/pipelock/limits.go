package pipelock

import "time"

// How long the gate waits, for whom; docs/design.md has the same as a table. Each is counted from
// its beginning. What has none is a tunnel, and the answer to a plain request: egress ends both.
const (
	headerTimeout  = 10 * time.Second // egress, to send a request's head
	idleTimeout    = 90 * time.Second // a kept connection, on either side, between two requests
	resolveTimeout = 10 * time.Second // the resolver
	dialTimeout    = 10 * time.Second // the upstream, at all addresses of a name together
	drainTimeout   = 800 * time.Millisecond
	// A connection that was passed to egress, which has closed it: the upstream, to end its side; and
	// to take what egress had written before.
	partingFor = time.Second
	lingerFor  = time.Minute
	tidyEvery  = 5 * time.Second // see tidier
)

// Bounds. The gate's only client is egress, but a hijacked one must not exhaust it.
const (
	maxHeader         = 64 << 10  // bytes of a request's head
	maxResponseHeader = 256 << 10 // bytes of the head of a plain request's response
	maxFlows          = 16 << 10  // tunnels and plain requests at once, if the descriptors are enough

	flowDescriptors  = 6  // of a tunnel: a connection on each side, and a pipe each way
	otherDescriptors = 64 // those that the gate needs besides
)

// flowsFor is how many flows that many descriptors allow, so that one too many is told so, and
// does not wait for an accept, or find that it can't be resolved or dialled. At least one is.
func flowsFor(descriptors uint64) int {
	if descriptors <= otherDescriptors+flowDescriptors {
		return 1
	}
	return int(min(maxFlows, (descriptors-otherDescriptors)/flowDescriptors))
}
