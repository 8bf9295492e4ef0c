package apply

import (
	"context"
	"errors"
	"time"

	"bottle/bottle"
)

// DefaultConfirmTimeout is how long a daemon may take to say that a revision is in force.
const DefaultConfirmTimeout = 5 * time.Second

// ErrNotRunning is returned when a change needs a bundle and there is none that is ready. Nothing was changed; a
// request stays pending.
var ErrNotRunning = errors.New("the bottle's daemons are not running")

// ErrHandEdited is returned when a config file was changed by something other than this package. Nothing is applied
// on top of it until it is adopted through [Applier.Edit] (bottle routes edit).
var ErrHandEdited = errors.New("a config file was edited by hand")

// Records are the host's copies of requests. Calls are made under the bottle's lock.
type Records interface {
	// Find takes a UUID or a short ID; an unknown one is a [bottle.ErrNotFound].
	Find(ctx context.Context, id string) (*bottle.Record, error)
	// Save makes the record durable, then the decision file that the bundle reads. It is idempotent.
	Save(ctx context.Context, rec *bottle.Record) error
	// Approved returns the records that are approved or applied: under way, or in force.
	Approved(ctx context.Context) ([]*bottle.Record, error)
	// Granted returns the records that were ever approved, whatever became of them since.
	Granted(ctx context.Context) ([]*bottle.Record, error)
}

// Trail is the audit log.
type Trail interface {
	// Record writes a line durably, or fails, and then the change must not go on.
	Record(ctx context.Context, e bottle.Event) error
	// RecordOnce is Record unless a line with the same change ID and name is there already.
	RecordOnce(ctx context.Context, e bottle.Event) (written bool, err error)
}

// Signaler reaches the bundle's PID 1.
type Signaler interface {
	// Running reports whether the bundle's PID 1 is alive, by the host's own knowledge of it: status/init.json of a
	// bundle that lost its power still says ready.
	Running(ctx context.Context) (bool, error)
	// Signal sends s. A nil error proves nothing but that it was sent.
	Signal(ctx context.Context, s bottle.Signal) error
	// Stop ends the bundle's PID 1, and with it the daemons, by the host's own knowledge of it and whatever it says.
	// One that is gone already is no error. The keeper starts it again, and then it loads the files as they are.
	Stop(ctx context.Context) error
}

// Codec reads and writes pipelock.yaml.
type Codec interface {
	// Allowlist returns the hosts that the file allows.
	Allowlist(b []byte) ([]bottle.AllowEntry, error)
	// SetAllowlist returns the file, sealed, with that allowlist and all else as it was. An empty b means a new
	// file. The same list gives the same bytes again.
	SetAllowlist(b []byte, list []bottle.AllowEntry) ([]byte, error)
	// Validate refuses what the daemon would refuse to load after from (nil: to start with).
	Validate(from, to []byte) error
	// NeedsReplacement reports whether the daemon takes the change only by being started anew.
	NeedsReplacement(from, to []byte) bool
	// Lines describes the file for a semantic diff.
	Lines(b []byte) ([]string, error)
}

// Config is what an Applier works with.
type Config struct {
	Dir      *bottle.Dir // required, and created
	Records  Records     // required
	Trail    Trail       // required: without an audit trail nothing is applied
	Signaler Signaler    // required
	Pipelock Codec       // required

	// Credentials are those that the operator defined; a request that names another is refused.
	Credentials map[string]bottle.Credential
	// BaseRoutes returns the routes of the manifest as accepted, from which a torn file is rebuilt together with
	// the records. Nil: a torn file is reported and not rebuilt.
	BaseRoutes func() ([]bottle.Route, error)
	// BasePipelock returns pipelock.yaml as the bottle was started with, for a rebuild. Nil: a new file.
	BasePipelock func() ([]byte, error)

	ConfirmTimeout time.Duration                                  // per daemon; 0 means DefaultConfirmTimeout
	ResignalEvery  time.Duration                                  // on silence; 0 means a tenth of ConfirmTimeout
	Now            func() time.Time                               // nil means time.Now
	Boot           func() (id string, seconds float64, err error) // nil means bottle.BootClock
	Fault          func(step string)                              // tests: called before each step of an apply or recovery; nil means none
}

// An Applier changes the config of one bottle. It holds no state between calls and may be used from several
// goroutines and processes at once: every call that changes something takes the bottle's lock.
type Applier struct {
	cfg Config
	// chunk bounds one pwrite, in bytes.
	chunk int
	// writeJSON makes a journal durable.
	writeJSON func(path string, v any) error
}

// New checks the config and returns an Applier. It touches no file.
func New(cfg Config) (*Applier, error) {
	switch {
	case cfg.Dir == nil:
		return nil, errors.New("apply: Config.Dir is required")
	case cfg.Records == nil:
		return nil, errors.New("apply: Config.Records is required")
	case cfg.Trail == nil:
		return nil, errors.New("apply: Config.Trail is required: a change that can't be audited is not made")
	case cfg.Signaler == nil:
		return nil, errors.New("apply: Config.Signaler is required")
	case cfg.Pipelock == nil:
		return nil, errors.New("apply: Config.Pipelock is required: a config that can't be validated is not written")
	case cfg.ConfirmTimeout < 0 || cfg.ResignalEvery < 0:
		return nil, errors.New("apply: Config.ConfirmTimeout and ResignalEvery must not be negative")
	}
	if cfg.ConfirmTimeout == 0 {
		cfg.ConfirmTimeout = DefaultConfirmTimeout
	}
	if cfg.ResignalEvery == 0 {
		cfg.ResignalEvery = cfg.ConfirmTimeout / 10
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Boot == nil {
		cfg.Boot = bottle.BootClock
	}
	if cfg.Fault == nil {
		cfg.Fault = func(string) {}
	}
	return &Applier{cfg: cfg, chunk: 1 << 20, writeJSON: bottle.WriteJSON}, nil
}

// An Outcome says what came of a change.
type Outcome struct {
	Change   string                 // change ID, as in the audit trail
	Status   bottle.Status          // of the request, afterwards; empty for an edit
	Revision map[string]bottle.Hash // file -> revision that is now in it
	Took     time.Duration          // from the lock to in force (or rolled back), without the bookkeeping after
	Detail   string                 // for people: a daemon's reason, what was killed
	Plan     *Plan                  // what was applied or, with ErrChanged, what would be now
}
