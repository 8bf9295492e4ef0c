package launch

import (
	"context"
	"os"

	"bottle/bottle"
)

// A Backend runs one bottle's bundle, and agents beside it.
type Backend interface {
	// Running reports whether the bundle that the host started runs, by the host's own
	// knowledge and not by the bundle's word.
	Running(ctx context.Context) (bool, error)
	// Ensure starts the bundle if it does not run, and reports whether it had to. It does
	// not wait until it is ready.
	Ensure(ctx context.Context) (started bool, err error)
	// WaitReady waits until init says ready. If it ends instead, the error has its reason.
	WaitReady(ctx context.Context) (bottle.InitStatus, error)
	// Signal sends a signal to the bundle's init, and to no other process.
	Signal(ctx context.Context, s bottle.Signal) error
	// Stop ends the bundle and what was made for it. It is no error if it is gone already.
	Stop(ctx context.Context) error
}

// An Agent is a program to run in the bottle's sandbox.
type Agent struct {
	Argv         []string // required
	Env          []string // beside what the backend sets
	Dir          string   // working directory, below the workspace; empty: the workspace
	In, Out, Err *os.File
	TTY          bool // In and Out are a terminal, which the agent gets
}

var _ Backend = (*Local)(nil)
