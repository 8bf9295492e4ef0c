package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"

	"bottle/apply"
	"bottle/bottle"
	"bottle/bottle/egress"
	"bottle/bottle/keep"
	"bottle/bottle/logfile"
	"bottle/bottle/prompt"
)

func (a *app) keepCmd() *cobra.Command {
	return &cobra.Command{
		Use: "keep NAME", Short: "run a bottle's keeper (bottle start does)",
		Long: `keep runs a bottle's keeper until it is interrupted: it takes in requests, hands credentials
to egress, ends grants, and starts the daemons anew when they died. bottle start runs one;
there is one at most for each bottle. Tokens are read from its environment.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			logger := slog.New(slog.NewJSONHandler(prompt.LogWriter{W: logfile.Bound(a.err)}, nil))
			c, err := a.open(args[0], logger)
			if err != nil {
				return err
			}
			defer c.Close()
			k, err := keep.New(keep.Config{
				Dir: c.dir, Desk: c.desk, Applier: keepApplier{c.apply}, Bundle: c.backend,
				Keys: keepKeys{c.dir.KeySocket()}, Trail: c.trail,
				Credentials: c.manifest.Credentials, Logger: logger,
			})
			if err != nil {
				return err
			}
			err = k.Run(cmd.Context())
			if errors.Is(err, bottle.ErrLocked) {
				return fmt.Errorf("bottle %s has a keeper already: %w", c.name, err)
			}
			if errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		},
	}
}

// keepApplier is apply as the keeper uses it.
type keepApplier struct{ *apply.Applier }

var _ keep.Applier = keepApplier{}

func (k keepApplier) Recover(ctx context.Context) ([]string, error) {
	found, err := k.Applier.Recover(ctx)
	var did []string
	for _, r := range found {
		did = append(did, fmt.Sprintf("%s %s%s: %s %s", r.Kind, r.Request, r.File, r.Outcome, r.Detail))
	}
	return did, err
}

type keepKeys struct{ socket string }

var _ keep.Keys = keepKeys{}

func (k keepKeys) Hand(ctx context.Context, tokens map[string]string) error {
	return egress.HandKeys(ctx, k.socket, tokens)
}
