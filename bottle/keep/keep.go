// Package keep is the keeper, a bottle's standing process on the host.
//
// It does what must happen without an operator at hand: it takes in what the bundle asks
// for, ends what has run out, hands the operator's tokens to egress, starts the bundle
// anew when it died, and finishes or undoes what a killed apply left. It decides nothing
// that opens a way out. Everything goes through the same locked transitions as the
// operator's commands, so a keeper may be killed, missing or late at any instant: requests
// wait, credentialed routes fail closed, and egress ends grants by its own clocks.
//
// What it reads of the bundle (the queue, the status files) only tells it when to look; a
// bundle that lies can make it look more often, within bounds, or less often, until the
// next backstop. A step that fails or panics is logged, told in keeper.json, and tried
// again with growing pauses; it does not keep the others from their work.
package keep

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"time"

	"bottle/bottle"
	"bottle/bottle/queue"
)

// Desk is the host's side of the queue. Intake and ExpirePending are called under the
// bottle's lock.
type Desk interface {
	Intake(ctx context.Context) ([]*bottle.Record, []queue.Problem, error)
	ExpirePending(ctx context.Context) ([]*bottle.Record, error)
	Approved(ctx context.Context) ([]*bottle.Record, error)
}

// Applier changes the config. It takes the bottle's lock by itself.
type Applier interface {
	// Recover finishes or undoes what a killed apply left, and says what it did.
	Recover(ctx context.Context) (did []string, err error)
	// Expire takes ended grants out of the config and returns how many.
	Expire(ctx context.Context) (n int, err error)
}

// Bundle is the bottle's set of daemons.
type Bundle interface {
	// Ensure starts the bundle if it does not run, without waiting for it to be ready.
	Ensure(ctx context.Context) (started bool, err error)
}

// Keys hands tokens, by credential name, to the egress that runs.
type Keys interface {
	Hand(ctx context.Context, tokens map[string]string) error
}

// Trail is the audit log.
type Trail interface {
	RecordOnce(ctx context.Context, ev bottle.Event) (bool, error)
}

var _ Desk = (*queue.Desk)(nil)

// Config is what a Keeper works with.
type Config struct {
	Dir     *bottle.Dir // required, and created
	Desk    Desk        // required
	Applier Applier     // required
	Bundle  Bundle      // required
	Keys    Keys        // required if there are Credentials
	Trail   Trail       // required

	Credentials map[string]bottle.Credential     // those of the manifest
	Env         func(name string) (string, bool) // where tokens are; nil means os.LookupEnv

	Every  time.Duration    // how often it looks by itself; 0 means 500 ms
	Now    func() time.Time // nil means time.Now
	Logger *slog.Logger     // nil discards
}

// How often steps are done though nothing told to, and how long they may take: a step that
// waits for the bottle's lock, which an apply holds for seconds, lets the others go first.
// Ended grants leave pipelock within 10 s.
const (
	defaultEvery = 500 * time.Millisecond
	grantsEvery  = 5 * time.Second
	queueEvery   = 10 * time.Second
	lockWait     = 2 * time.Second
	stepLimit    = time.Minute
	handWait     = 5 * time.Second
)

// A Keeper keeps one bottle. See [New].
type Keeper struct {
	cfg    Config
	tokens map[string]string // by credential name
	unset  map[string]string // credential name -> the variable that is missing
	steps  []*step
	told   string // what keeper.json says

	problems map[string][]string // of the last time, by step
	handed   string              // the egress instance that has the tokens
	untold   string              // the one whose handover is not audited yet
	pace     pace                // of handovers
	ready    string              // the init that recovery was run for
	started  time.Time           // when the bundle was, by us
	deaths   int                 // of bundles that we started, since one was healthy
	holdOff  time.Time           // not to start it before
}

// New reads the tokens from the environment and returns a Keeper. A token that is missing
// is a problem, not an error: routes that need it fail closed.
func New(cfg Config) (*Keeper, error) {
	switch {
	case cfg.Dir == nil:
		return nil, errors.New("keeper: Dir is required")
	case cfg.Desk == nil:
		return nil, errors.New("keeper: Desk is required")
	case cfg.Applier == nil:
		return nil, errors.New("keeper: Applier is required")
	case cfg.Bundle == nil:
		return nil, errors.New("keeper: Bundle is required")
	case cfg.Trail == nil:
		return nil, errors.New("keeper: Trail is required")
	case cfg.Keys == nil && len(cfg.Credentials) > 0:
		return nil, errors.New("keeper: Keys is required, since there are credentials to hand over")
	}
	if cfg.Env == nil {
		cfg.Env = os.LookupEnv
	}
	if cfg.Every <= 0 {
		cfg.Every = defaultEvery
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	k := &Keeper{cfg: cfg, tokens: map[string]string{}, unset: map[string]string{}, problems: map[string][]string{}}
	for _, name := range slices.Sorted(maps.Keys(cfg.Credentials)) {
		env := cfg.Credentials[name].TokenEnv
		if token, ok := cfg.Env(env); ok && token != "" {
			k.tokens[name] = token
		} else {
			k.unset[name] = env
			cfg.Logger.Warn("a credential has no token: routes that carry it fail closed", "credential", name, "variable", env)
		}
	}
	d := cfg.Dir
	k.steps = []*step{
		{name: "recover", do: k.recover, due: true, watch: []string{d.InitStatus()}},
		{name: "bundle", do: k.bundle, due: true, every: cfg.Every},
		{name: "queue", do: k.queue, due: true, every: queueEvery, watch: []string{d.Requests(), d.Cancels()}},
		{name: "grants", do: k.grants, due: true, every: grantsEvery, watch: []string{d.SpentFile()}},
		{name: "credentials", do: k.credentials, due: true, watch: []string{d.DaemonStatus(bottle.DaemonEgress)}},
	}
	return k, nil
}

// Run keeps the bottle until ctx is done, and then returns nil. If the bottle has a
// keeper already, it returns an error that wraps [bottle.ErrLocked].
func (k *Keeper) Run(ctx context.Context) error {
	release, err := k.cfg.Dir.Lease()
	if errors.Is(err, bottle.ErrLocked) {
		return fmt.Errorf("bottle %s has a keeper already: %w", k.cfg.Dir.Name(), err)
	}
	if err != nil {
		return fmt.Errorf("keeper: %w", err)
	}
	defer release()
	self, err := bottle.ProcessOf(os.Getpid())
	if err != nil {
		return fmt.Errorf("keeper: %w", err)
	}
	err = k.locked(ctx, func(context.Context) error {
		return k.cfg.Dir.UpdateMetadata(func(m *bottle.Metadata) error { m.Keeper = self; return nil })
	})
	if err != nil {
		return fmt.Errorf("keeper: %w", err)
	}
	k.cfg.Logger.Info("keeping", "bottle", k.cfg.Dir.Name(), "pid", self.PID)
	k.loop(ctx)
	return nil
}

func (k *Keeper) locked(ctx context.Context, do func(context.Context) error) error {
	wait, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	unlock, err := k.cfg.Dir.Lock(wait)
	if err != nil {
		return err
	}
	defer unlock()
	return do(ctx)
}
