package bottle

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Bounds of a request, and the queue's defaults.
const (
	MaxRequestBytes = 64 << 10
	MaxEntries      = 50
	MaxReason       = 4000 // bytes of a reason or a note
	MaxPending      = 10   // per bottle
	MaxPerMinute    = 30   // submissions per bottle
	PendingTTL      = 24 * time.Hour
)

// KindAccess is a request to change the allowlist; further kinds (push) come beside it.
const KindAccess = "access"

// An Ask is what an agent wants, before it has a name. The agent wrote all of it.
type Ask struct {
	Kind       string  `json:"kind"`
	Add        []Entry `json:"add,omitempty"`
	Remove     []Entry `json:"remove,omitempty"`
	Reason     string  `json:"reason"`
	TTLSeconds int     `json:"ttl_seconds,omitempty"` // 0: the operator's default
	Credential string  `json:"credential,omitempty"`  // by name
}

// Canonical checks the ask's bounds and returns it in canonical form. Errors name the
// field and the fix and wrap [ErrInvalid] or [ErrLimit].
func (a Ask) Canonical() (Ask, error) {
	if a.Kind == "" {
		a.Kind = KindAccess
	}
	switch {
	case a.Kind != KindAccess:
		return Ask{}, invalid("kind", "%q is not a kind of request; use access", clip(a.Kind, 40))
	case len(a.Add)+len(a.Remove) == 0:
		return Ask{}, invalid("add", "nothing is asked for; name at least one entry in add or remove")
	case len(a.Add)+len(a.Remove) > MaxEntries:
		return Ask{}, fmt.Errorf("add: %d entries in one request; at most %d: %w", len(a.Add)+len(a.Remove), MaxEntries, ErrLimit)
	case strings.TrimSpace(a.Reason) == "":
		return Ask{}, invalid("reason", "empty; say in a sentence what you need it for")
	case len(a.Reason) > MaxReason:
		return Ask{}, fmt.Errorf("reason: %d bytes; at most %d: %w", len(a.Reason), MaxReason, ErrLimit)
	}
	if a.TTLSeconds != 0 {
		if _, err := ForTTL(time.Duration(a.TTLSeconds) * time.Second); a.TTLSeconds < 0 || a.TTLSeconds > int(MaxTTL/time.Second) || err != nil {
			return Ask{}, invalid("ttl_seconds", "%d; use 1 to %d, or leave it out", a.TTLSeconds, int(MaxTTL/time.Second))
		}
	}
	if a.Credential != "" {
		if err := CheckName(a.Credential); err != nil {
			return Ask{}, invalid("credential", "%v", err)
		}
	}
	var err error
	if a.Add, err = canonicalEntries("add", a.Add); err != nil {
		return Ask{}, err
	}
	if a.Remove, err = canonicalEntries("remove", a.Remove); err != nil {
		return Ask{}, err
	}
	return a, nil
}

// Digest identifies what is asked: the same ask has the same digest, whatever its reason.
func (a Ask) Digest() Hash {
	a.Reason = ""
	return digestJSON("bottle ask 1", a)
}

// A Request is an ask with a name, as the bundle writes it into queue/requests. Attempts,
// LastAt and Keys may change while it is pending; nothing else may.
type Request struct {
	Schema    int       `json:"schema"`
	ID        string    `json:"id"` // UUIDv7
	Ask       Ask       `json:"ask"`
	CreatedAt time.Time `json:"created_at"`
	Attempts  int       `json:"attempts"`
	LastAt    time.Time `json:"last_at"`
	Keys      []string  `json:"keys,omitempty"` // idempotency keys of the last attempts, the bundle's own
}

// FirstDigest covers what must not change after first sight: everything but attempts and
// their keys.
func (r Request) FirstDigest() Hash {
	r.Attempts, r.LastAt, r.Keys = 0, time.Time{}, nil
	r.CreatedAt = r.CreatedAt.UTC()
	return digestJSON("bottle request 1", r)
}

// Status is where a request is in its life.
type Status string

// The states of a request.
const (
	Pending   Status = "pending"
	Approved  Status = "approved" // decided, its apply under way
	Applied   Status = "applied"  // in force
	Failed    Status = "failed"   // a daemon refused it; the old config is in force
	Denied    Status = "denied"
	Cancelled Status = "cancelled" // by the agent
	Expired   Status = "expired"   // undecided in time, or its grant ran out
	Revoked   Status = "revoked"   // by an operator
)

var transitions = map[Status][]Status{
	Pending:  {Approved, Denied, Cancelled, Expired},
	Approved: {Applied, Failed},
	Applied:  {Revoked, Expired},
}

// Final reports whether nothing can follow s.
func (s Status) Final() bool { return len(transitions[s]) == 0 }

// Decided reports whether the agent need not wait any longer.
func (s Status) Decided() bool { return s != Pending && s != Approved }

// State is a status and since when. Only [Record.Transition] makes another of it.
type State struct {
	status Status
	since  time.Time
}

// Status returns the status; that of a zero State is pending.
func (s State) Status() Status {
	if s.status == "" {
		return Pending
	}
	return s.status
}

// Since returns when the status was entered.
func (s State) Since() time.Time { return s.since }

type stateJSON struct {
	Status Status    `json:"status"`
	Since  time.Time `json:"since"`
}

// MarshalJSON implements [json.Marshaler].
func (s State) MarshalJSON() ([]byte, error) { return json.Marshal(stateJSON{s.Status(), s.since}) }

// UnmarshalJSON implements [json.Unmarshaler].
func (s *State) UnmarshalJSON(b []byte) error {
	var j stateJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	switch j.Status {
	case Pending, Approved, Applied, Failed, Denied, Cancelled, Expired, Revoked:
		*s = State{j.Status, j.Since}
		return nil
	}
	return fmt.Errorf("status %q: %w", clip(string(j.Status), 40), ErrCorrupt)
}

// Actor is who decided: a uid of this host, from the kernel, and its name.
type Actor struct {
	UID  int    `json:"uid"`
	Name string `json:"name"`
}

// String is the form in grants: "1000 operator".
func (a Actor) String() string { return fmt.Sprintf("%d %s", a.UID, a.Name) }

// A Decision is what an operator (or the clock) made of a request. For an approval it
// says what was granted, which may be less than, or other than, what was asked.
type Decision struct {
	By         Actor     `json:"by"`
	At         time.Time `json:"at"`
	Digest     Hash      `json:"digest,omitempty"` // of the proposal that was shown
	Add        []Entry   `json:"add,omitempty"`
	Remove     []Entry   `json:"remove,omitempty"`
	Credential string    `json:"credential,omitempty"`
	Duration   Duration  `json:"duration,omitzero"`
	Edited     []string  `json:"edited,omitempty"` // fields that differ from the ask
	Note       string    `json:"note,omitempty"`   // to the agent; of a denial, its reason
	Change     string    `json:"change,omitempty"` // apply's change ID
}

// A Record is the host's own copy of a request, in records/, which the bundle can't reach.
type Record struct {
	Schema    int             `json:"schema"`
	Short     string          `json:"short"` // r7
	Request   Request         `json:"request"`
	First     Hash            `json:"first"` // Request.FirstDigest at first sight
	FirstSeen time.Time       `json:"first_seen"`
	ExpiresAt time.Time       `json:"expires_at"` // if undecided until then
	State     State           `json:"state"`
	Decision  *Decision       `json:"decision,omitempty"`
	Revision  map[string]Hash `json:"revision,omitempty"` // file -> revision in force since applied
	GrantEnds *time.Time      `json:"grant_ends,omitempty"`
	Error     string          `json:"error,omitempty"` // why it failed, in the daemon's words
}

// Transition is the one place where a request's status changes. It returns an error that
// wraps [ErrState] if to can't follow; the record is then as before.
func (r *Record) Transition(to Status, at time.Time) error {
	from := r.State.Status()
	for _, s := range transitions[from] {
		if s == to {
			r.State = State{to, at.UTC()}
			return nil
		}
	}
	return fmt.Errorf("request %s is %s and can't become %s: %w", r.Short, from, to, ErrState)
}

// An Answer is what the bundle may know of a record: the host writes it to decisions/ID.json.
type Answer struct {
	Schema     int             `json:"schema"`
	ID         string          `json:"id"`
	Short      string          `json:"short"`
	Status     Status          `json:"status"`
	UpdatedAt  time.Time       `json:"updated_at"`
	Add        []Entry         `json:"add,omitempty"` // granted
	Remove     []Entry         `json:"remove,omitempty"`
	Credential string          `json:"credential,omitempty"`
	Duration   string          `json:"duration,omitempty"`
	ExpiresAt  *time.Time      `json:"expires_at,omitempty"`
	Edited     []string        `json:"edited,omitempty"`
	Note       string          `json:"note,omitempty"`
	Revision   map[string]Hash `json:"revision,omitempty"`
	Error      string          `json:"error,omitempty"`
}

// Answer returns the record's public face.
func (r *Record) Answer() Answer {
	a := Answer{
		Schema: Schema, ID: r.Request.ID, Short: r.Short, Status: r.State.Status(), UpdatedAt: r.State.Since(),
		ExpiresAt: r.GrantEnds, Revision: r.Revision, Error: r.Error,
	}
	if d := r.Decision; d != nil {
		a.Add, a.Remove, a.Credential, a.Edited, a.Note = d.Add, d.Remove, d.Credential, d.Edited, d.Note
		a.Duration = d.Duration.String()
	}
	return a
}

func canonicalEntries(field string, in []Entry) ([]Entry, error) {
	var out []Entry
	for i, e := range in {
		c, err := e.Canonical()
		if err != nil {
			return nil, fmt.Errorf("%s[%d]: %w", field, i, err)
		}
		out = append(out, c)
	}
	return sortEntries(out), nil
}
