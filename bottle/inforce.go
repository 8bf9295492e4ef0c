package bottle

import "time"

// What egress tells of itself under http://egress.bottle.internal/. The MCP tools pass it
// on, so that what the agent reads is what is enforced. No secret is in it.

// InForce answers /routes.
type InForce struct {
	Revision Hash        `json:"revision"`
	LoadedAt time.Time   `json:"loaded_at"`
	Routes   []RouteInfo `json:"routes"`
}

// A RouteInfo is one route in force.
type RouteInfo struct {
	Host       Host       `json:"host"`
	Ports      []int      `json:"ports"`
	Matches    []Match    `json:"matches,omitempty"`
	TLS        TLSMode    `json:"tls"`
	Credential string     `json:"credential,omitempty"` // its name
	Source     string     `json:"source"`               // manifest or grant
	Grant      string     `json:"grant,omitempty"`      // short ID
	Duration   string     `json:"duration,omitempty"`
	ExpiresAt  *time.Time `json:"expires_at,omitempty"`
}

// A Denial is a group of like refusals, in /denials (newest first).
type Denial struct {
	Host    string    `json:"host"` // canonical, or as asked and escaped if it has no canonical form
	Port    int       `json:"port"`
	Method  string    `json:"method"`
	Path    string    `json:"path,omitempty"` // without the query
	Layer   string    `json:"layer"`          // egress or pipelock
	Reason  string    `json:"reason"`
	Nearest string    `json:"nearest,omitempty"`
	Count   int       `json:"count"`
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
	Ask     *Ask      `json:"ask,omitempty"` // ready-made arguments for request_allowlist_change
}

// A Check answers /check?url=&method=.
type Check struct {
	URL     string `json:"url"`
	Method  string `json:"method"`
	Allowed bool   `json:"allowed"`
	Rule    string `json:"rule,omitempty"`    // the route that allows it
	Nearest string `json:"nearest,omitempty"` // or the one that comes nearest
	Reason  string `json:"reason"`
	Ask     *Ask   `json:"ask,omitempty"`
}

// A Ticket is a request as the bundle knows it: the ask, and the host's answer so far.
type Ticket struct {
	Request Request `json:"request"`
	Answer  *Answer `json:"answer,omitempty"` // nil: the host has not seen it yet
	Joined  bool    `json:"joined,omitempty"` // the ask was already pending
}

// Status returns the ticket's status; without an answer it is pending.
func (t Ticket) Status() Status {
	if t.Answer == nil {
		return Pending
	}
	return t.Answer.Status
}
