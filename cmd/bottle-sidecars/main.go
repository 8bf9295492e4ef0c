// Command bottle-sidecars is what runs in a bottle's sidecar bundle: the supervisor (init),
// the daemons but for bottle-supervise, and the launcher that confines a daemon that is not ours (exec).
//
// It is one static program, so that its pages are shared between the processes. Nobody types
// its commands: the host starts init, and init the rest.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"bottle/bottle"
	"bottle/bottle/bundle"
	"bottle/bottle/logfile"
)

// Exit codes; a bundle that ends because a daemon does not come up has that daemon's.
const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	// Before all else: until it is called, a signal ends init, as PID 1 too. Only for
	// init: the launcher must not swallow a TERM that is meant for what it becomes.
	var signals *bundle.Signals
	if len(os.Args) > 1 && os.Args[1] == "init" {
		signals = bundle.Notify()
	}
	os.Exit(run(signals, os.Args[1:]))
}

func run(signals *bundle.Signals, args []string) int {
	cmd := rootCommand(signals)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(context.Background())
	if err == nil {
		return 0
	}
	// The last line of a daemon is what init reports as the reason for its end.
	fmt.Fprintln(os.Stderr, "bottle-sidecars:", err)
	if e, ok := errors.AsType[*bundle.StartError](err); ok {
		return e.Code
	}
	if errors.Is(err, errUsage) {
		return exitUsage
	}
	return exitFailed
}

var errUsage = errors.New("see bottle-sidecars --help")

func usage(err error) error { return fmt.Errorf("%w (%w)", err, errUsage) }

func rootCommand(signals *bundle.Signals) *cobra.Command {
	root := &cobra.Command{
		Use:           "bottle-sidecars",
		Short:         "The supervisor and the daemons of a bottle's sidecar bundle",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usage(fmt.Errorf("unknown command %q", args[0]))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage(err) })
	root.AddCommand(
		initCommand(signals),
		execCommand(),
		daemonCommand(bottle.DaemonEgress, "Run the agent's proxy", runEgress),
		daemonCommand(bottle.DaemonPipelock, "Run the built-in gate between egress and the internet", runPipelock),
	)
	return root
}

func initCommand(signals *bundle.Signals) *cobra.Command {
	var root string
	cmd := &cobra.Command{
		Use:   "init --root DIR",
		Short: "Start the daemons and keep them, as PID 1 or as a child of the host",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := stateDir(root)
			if err != nil {
				return err
			}
			out := logfile.Bound(os.Stderr)
			s, err := bundle.New(bundle.Config{Dir: dir, Signals: signals, Output: out, Logger: newLogger(out)})
			if err != nil {
				return err
			}
			return s.Run(cmd.Context())
		},
	}
	rootFlag(cmd, &root)
	return cmd
}

func execCommand() *cobra.Command {
	var root, daemon string
	cmd := &cobra.Command{
		Use:   "exec --daemon NAME --root DIR -- COMMAND...",
		Short: "Confine this process to the rights of a daemon and become COMMAND",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage(errors.New("exec: no command"))
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			if daemon == "" {
				return usage(errors.New("exec: --daemon is required"))
			}
			dir, err := stateDir(root)
			if err != nil {
				return err
			}
			return bundle.Exec(bundle.LaunchConfig{
				Dir: dir, Daemon: daemon, Argv: args, Env: os.Environ(),
				Warn: func(gap string) { fmt.Fprintln(os.Stderr, "bottle-sidecars:", gap) },
			})
		},
	}
	rootFlag(cmd, &root)
	cmd.Flags().StringVar(&daemon, "daemon", "", "whose rights")
	return cmd
}

func daemonCommand(name, short string, run func(context.Context, *bundle.Daemon) error) *cobra.Command {
	var root string
	cmd := &cobra.Command{
		Use:   name + " --root DIR",
		Short: short,
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := stateDir(root)
			if err != nil {
				return err
			}
			logger := newLogger(os.Stderr)
			// net/http tells package log what an upstream sends unasked, in the words of the upstream,
			// which can hold a credential and come without end.
			slog.SetLogLoggerLevel(slog.LevelDebug)
			slog.SetDefault(logger)
			return bundle.Serve(cmd.Context(), name, dir, logger, run)
		},
	}
	rootFlag(cmd, &root)
	return cmd
}

func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usage(fmt.Errorf("unexpected argument %q", args[0]))
	}
	return nil
}

func rootFlag(cmd *cobra.Command, root *string) {
	cmd.Flags().StringVar(root, "root", "", "the bottle's state directory, or the parts of it that the bundle sees")
}

func stateDir(root string) (*bottle.Dir, error) {
	if root == "" {
		return nil, usage(errors.New("--root is required"))
	}
	abs, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("--root: %w", err)
	}
	return bottle.NewDir(abs)
}

func newLogger(w io.Writer) *slog.Logger { return slog.New(slog.NewJSONHandler(w, nil)) }
