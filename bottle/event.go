package bottle

// An Event is a line of the audit trail before it is numbered, timed and chained. It is
// here, and not in the audit package, so that those who may not import that one can write
// to a trail through an interface of their own.
type Event struct {
	Name     string              `json:"name"`              // apply-started, applied, denied ...
	Request  string              `json:"request,omitempty"` // UUID
	Short    string              `json:"short,omitempty"`
	Change   string              `json:"change,omitempty"` // change ID; with Name it names the line
	By       *Actor              `json:"by,omitempty"`
	Digest   Hash                `json:"digest,omitempty"` // what was shown
	Edited   []string            `json:"edited,omitempty"`
	Before   map[string][]string `json:"before,omitempty"` // file -> lines that went
	After    map[string][]string `json:"after,omitempty"`  // file -> lines that came
	Revision map[string]Hash     `json:"revision,omitempty"`
	Outcome  string              `json:"outcome,omitempty"`
	Detail   string              `json:"detail,omitempty"`
}
