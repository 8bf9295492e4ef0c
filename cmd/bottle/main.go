// Command bottle is the operator's side: it starts bottles, shows what their agents ask
// for, and carries out what the operator decides.
package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"bottle/bottle"
	"bottle/bottle/prompt"
)

// Exit codes, as documented in README.md.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitChanged     = 4
	exitUnconfirmed = 5
)

func main() {
	// First of all: the environment of start and of the keeper holds tokens, and until this is
	// done, every process of the same uid can read it in /proc, the agent's included on the
	// local backend. It goes for all commands, which the operator runs with the same environment.
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) // it can't fail
	// A descriptor that the caller left open is not for the keeper and the daemons, which
	// would hold it for as long as the bottle runs.
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)                                       // an old kernel can't
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP) // HUP: the terminal's window was closed
	code := run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

// run is main without the process: it returns the exit code.
func run(ctx context.Context, args []string) int {
	root := newRoot(os.Stdin, os.Stdout, os.Stderr)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err != nil {
		if msg := err.Error(); msg != "" {
			fmt.Fprintln(os.Stderr, "bottle: "+prompt.Text(plain(msg)))
		}
	}
	return exitCode(err)
}

// plain makes one line for people of an error's text: of errors that were joined, and without
// the kinds at their ends that are for programs; other kinds tell people something. A context
// that is cancelled here is an operator who interrupted.
func plain(msg string) string {
	var parts []string
	for part := range strings.SplitSeq(msg, "\n") {
		for _, kind := range []error{bottle.ErrNotFound, bottle.ErrAmbiguous, bottle.ErrInvalid, bottle.ErrLimit, bottle.ErrState} {
			part = strings.TrimSuffix(part, ": "+kind.Error())
		}
		if part != "" {
			parts = append(parts, part)
		}
	}
	return strings.ReplaceAll(strings.Join(parts, "; "), context.Canceled.Error(), "interrupted")
}

// A usageError is a call that the command line does not permit.
type usageError struct{ error }

func (u usageError) Unwrap() error { return u.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// A silentExit is the code of a command that was run for the operator, who saw its output.
type silentExit int

func (silentExit) Error() string { return "" }

// A codedError has an exit code of its own, as the shell gives it for a command that it
// can't run.
type codedError struct {
	code int
	error
}

// exitCode is the one table of errors and exit codes.
func exitCode(err error) int {
	var usage usageError
	var coded codedError
	var silent silentExit
	var child *exec.ExitError
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &silent):
		return int(silent)
	case errors.As(err, &coded):
		return coded.code
	case errors.As(err, &usage):
		return exitUsage
	case errors.Is(err, bottle.ErrChanged):
		return exitChanged
	case errors.Is(err, bottle.ErrUnconfirmed):
		return exitUnconfirmed
	case errors.Is(err, bottle.ErrNotFound):
		return exitNotFound
	case errors.Is(err, bottle.ErrAmbiguous):
		return exitUsage
	case errors.As(err, &child):
		return exitFailed
	}
	return exitFailed
}
