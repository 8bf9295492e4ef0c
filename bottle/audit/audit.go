// Package audit is a bottle's log of who decided what: append-only, durable before the decision takes effect, and
// chained by hashes.
//
// Every state change that an operator or the keeper makes passes through [Log.Append]; the caller must not go on when
// it fails. A line that Append returned for survives a power cut. A line it failed for is taken back, or, when even
// that failed, is dropped or adopted by the next Append, so that a chain is never broken by a crash or a full disk.
//
// # Disk format, schema 1
//
//	audit.jsonl   one line an entry, at most 64 KiB, printable ASCII (all else is escaped, so that `cat` is harmless)
//
//	    {"schema":1,"seq":1,...,"prev":"sha256:0000...","hash":"sha256:9f3c..."}\n
//	                                                          |
//	                            .-----------------------------'
//	                            v
//	    {"schema":1,"seq":2,...,"prev":"sha256:9f3c...","hash":"sha256:51aa..."}\n
//
//	    hash = SHA-256 of the line's bytes without its last member: `{"schema":1,...,"prev":"..."}`
//	    seq counts from 1 without gaps; the first prev is 64 zeros
//
//	audit.head    {"schema":1,"seq":2,"hash":"sha256:51aa...","size":1234}   the last acknowledged line, and where it ends
//
//	audit.jsonl.lock   empty; flock(2) is taken on it, never on a file that anything else can open
//
// The head exists before the first line and is replaced by rename after each line is on disk. So the log is never
// more than one line ahead of its head, and what lies past the head was never acknowledged to anyone: a whole,
// well-chained line there is adopted, a torn one is cut off. Anything else that differs was not done by this
// package and is reported, not mended.
//
// # Trust boundary
//
// All three files are the host's alone (mode 0600 in a directory of mode 0700); the bundle and the agent never see
// them. The chain finds edits, losses and mix-ups. It cannot find a forger who runs as the operator and rewrites log
// and head together: for that, keep [Report.Head] elsewhere and compare.
package audit

import (
	"errors"
	"time"
)

// Schema is the version of the disk format that this package writes, and the newest that it reads.
const Schema = 1

// MaxLine bounds a line of the log in bytes, its newline included.
const MaxLine = 64 << 10

var (
	// ErrTampered is returned when the log and its head disagree in a way that no crash explains.
	ErrTampered = errors.New("audit log does not match its head")

	// ErrNewer is returned for a file that a newer program wrote.
	ErrNewer = errors.New("audit log has a newer schema than this program knows: use the newer bottle")
)

// Event says what happened.
type Event string

// The events of a request's life, of an apply, and of a bottle's life.
const (
	RequestSeen          Event = "request-seen"
	RequestJoined        Event = "request-joined"
	Tampered             Event = "tampered"
	Approved             Event = "approved"
	Denied               Event = "denied"
	Cancelled            Event = "cancelled"
	Expired              Event = "expired"
	ApplyStarted         Event = "apply-started"
	Applied              Event = "applied"
	Failed               Event = "failed"
	Revoked              Event = "revoked"
	RolledBack           Event = "rolled-back"
	NarrowingUnconfirmed Event = "narrowing-unconfirmed"
	Recovered            Event = "recovered"
	ConfigKeptAside      Event = "config-kept-aside"
	Edited               Event = "edited"
	CredentialHanded     Event = "credential-handed"
	ManifestAccepted     Event = "manifest-accepted"
	Started              Event = "started"
	Stopped              Event = "stopped"
)

// Actor is the operating system user on whose behalf an entry was written.
type Actor struct {
	UID  int    `json:"uid"`
	Name string `json:"name"`
}

// Entry is one line of the log. Everything but Event is optional; Schema, Seq, Prev and Hash are the log's to set.
//
// Event, Bottle, Request, Short, Change, Digest and Actor.Name are at most 256 bytes each, or Append refuses. The
// others are shortened, with a mark where, until the line fits in [MaxLine].
type Entry struct {
	Schema int       `json:"schema"`
	Seq    uint64    `json:"seq"`
	Time   time.Time `json:"time"` // UTC; the zero time means now
	Event  Event     `json:"event"`

	Bottle  string `json:"bottle,omitempty"`  // empty: Config.Bottle
	Request string `json:"request,omitempty"` // the request's UUID
	Short   string `json:"short,omitempty"`   // the request's short ID, as operators type it
	Change  string `json:"change,omitempty"`  // the change ID of an apply; AppendOnce goes by it

	Actor  *Actor   `json:"actor,omitempty"`
	Digest string   `json:"digest,omitempty"` // of what the operator was shown
	Edited []string `json:"edited,omitempty"` // what the operator changed of what was asked

	Before   map[string][]string `json:"before,omitempty"`   // file -> lines of the semantic diff that went
	After    map[string][]string `json:"after,omitempty"`    // file -> lines of the semantic diff that came
	Revision map[string]string   `json:"revision,omitempty"` // file -> sha256:<hex>, in force afterwards

	Outcome string `json:"outcome,omitempty"`
	Detail  string `json:"detail,omitempty"`

	Prev string `json:"prev"`
	Hash string `json:"hash,omitempty"` // last, so that it can be cut off a line; see the package comment
}
