package bottle

import "errors"

// Sentinel errors. cmd/bottle maps them to exit codes and mcp to tool results,
// each in one table.
var (
	// ErrNotFound: no bottle, request, grant or file of that name.
	ErrNotFound = errors.New("no such thing")
	// ErrAmbiguous: an ID prefix that fits more than one request.
	ErrAmbiguous = errors.New("ambiguous")
	// ErrChanged: what is there is no longer what the operator was shown.
	ErrChanged = errors.New("changed since you looked")
	// ErrUnconfirmed: a daemon refused a config or did not say that it is in force.
	ErrUnconfirmed = errors.New("not confirmed in force")
	// ErrInvalid: input that no retry will make valid; the text names field and fix.
	ErrInvalid = errors.New("invalid")
	// ErrLimit: a bound of the queue (pending, rate, size) was hit.
	ErrLimit = errors.New("limit reached")
	// ErrState: a transition that the request's state does not permit.
	ErrState = errors.New("not possible in this state")
	// ErrTampered: a file of the bundle differs from the host's record of it.
	ErrTampered = errors.New("tampered with")
	// ErrNewer: a file whose schema is newer than this program.
	ErrNewer = errors.New("written by a newer bottle")
	// ErrCorrupt: a file that is truncated, over its bound, or not what it should be.
	ErrCorrupt = errors.New("damaged")
	// ErrLocked: the lock or lease is held by another process.
	ErrLocked = errors.New("in use by another process")
)
