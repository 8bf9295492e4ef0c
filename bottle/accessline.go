package bottle

import "time"

// What became of a request, in the access log.
const (
	AccessAllowed = "allowed" // it was let through, and there was a response
	AccessRefused = "refused" // a rule, or pipelock, forbade it, or it was malformed
	AccessFailed  = "failed"  // nothing forbade it, but it did not work
)

// How an allowed exchange or tunnel ended, if not by itself.
const (
	EndCut     = "cut"     // a reload, or the end of a grant, took back what had allowed it
	EndAborted = "aborted" // the agent or the upstream broke it off
)

// An AccessLine is one line of egress' access log: a request and its response, or a tunnel that
// was passed through. Lines are written when they end. Texts are bounded, but those that the agent wrote
// (host, method, path, request ID) may hold what a terminal acts on: escape them.
//
// Of a query the number of parameters is kept alone. Their values are secrets too often (signed
// URLs, API keys), and so is the name of one that has no value (?TOKEN). No header is kept
// but the request ID, and no body.
type AccessLine struct {
	Time    time.Time `json:"time"` // when it ended, UTC
	Verdict string    `json:"verdict"`
	// LeftOut, if not 0, is all that the line says: so many lines of its verdict are missing here.
	LeftOut uint64 `json:"left_out,omitempty"`

	Layer    string `json:"layer,omitempty"` // of a refusal or failure: egress, pipelock, upstream
	Host     string `json:"host,omitempty"`  // canonical; of a refusal maybe as asked
	Port     int    `json:"port,omitempty"`
	Method   string `json:"method,omitempty"`   // CONNECT for a tunnel
	Path     string `json:"path,omitempty"`     // as sent on, or as asked
	Query    int    `json:"query,omitempty"`    // the number of parameters
	Protocol string `json:"protocol,omitempty"` // h1, h2, websocket, tunnel
	Route    string `json:"route,omitempty"`    // of what was allowed: the route, as routes are listed
	Grant    string `json:"grant,omitempty"`    // the request that the operator granted
	Status   int    `json:"status,omitempty"`   // that the agent got
	Reason   string `json:"reason,omitempty"`
	End      string `json:"end,omitempty"`
	// Bytes of bodies, or of all that flowed in a tunnel or websocket, as they are inside TLS (but for a tunnel).
	BytesUp    int64   `json:"bytes_up"`   // from the agent
	BytesDown  int64   `json:"bytes_down"` // to the agent
	Millis     float64 `json:"ms"`         // from the request's head to its end
	RequestID  string  `json:"request_id,omitempty"`
	Credential string  `json:"credential,omitempty"` // that was put in, by name
}

// Refusal reports whether the line is of a request that did not get through. Such lines lie in
// a file of their own, so that no amount of allowed requests pushes them out.
func (l *AccessLine) Refusal() bool { return l.Verdict != AccessAllowed }
