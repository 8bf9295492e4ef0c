package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"bottle/bottle"
	"bottle/bottle/launch"
	"bottle/bottle/prompt"
)

func (a *app) imageCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "image", Short: "the container images of the docker backend", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(a.imageBuildCmd())
	return c
}

func (a *app) imageBuildCmd() *cobra.Command {
	var buildArgs []string
	c := &cobra.Command{
		Use: "build [IMAGE...]", Short: "build the images of the docker backend",
		Long: fmt.Sprintf(`build makes the images that the docker backend runs, from what is in this program and beside it:
%s, which holds a bottle's daemons, and %s, with Claude Code as an agent. Without a name it
makes both. The base images are build arguments; the engine pulls them if it has not got them.

  --build-arg BASE_IMAGE=...        what an image starts from
  --build-arg CLAUDE_VERSION=...    which Claude Code
  --build-arg PIPELOCK_IMAGE=...    an image with the real pipelock, to be used in place of the built-in gate`, launch.BundleImage, launch.ClaudeImage),
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			values := map[string]string{}
			for _, kv := range buildArgs {
				k, v, ok := strings.Cut(kv, "=")
				if !ok || k == "" {
					return usagef("--build-arg %q: write NAME=VALUE", kv)
				}
				values[k] = v
			}
			cli, err := launch.NewEngine()
			if err != nil {
				return err
			}
			defer cli.Close()
			tag := func(image string) string {
				if image == launch.BundleImage {
					return bundleImage
				}
				return image
			}
			err = launch.BuildImages(cmd.Context(), launch.ImageConfig{Client: cli, Program: findBinary, Args: values, Tag: tag, Progress: a.err}, args...)
			if err != nil && noRegistry(err.Error()) {
				return fmt.Errorf("the engine could not fetch the base image; --build-arg BASE_IMAGE=... takes one that it has (docker images lists them), and BASE_IMAGE=scratch is enough for %s alone: %w", launch.BundleImage, err)
			}
			return err
		},
	}
	c.Flags().StringArrayVar(&buildArgs, "build-arg", nil, "NAME=VALUE, as the Dockerfiles name it; may be given again")
	return c
}

// warnImage says that an image is of another bottle: it was forgotten at an update. That is no
// reason to refuse it, as a registry may serve one for several machines.
func (a *app) warnImage(ctx context.Context, d *launch.Docker) {
	warning, err := d.Outdated(ctx, findBinary)
	if err != nil {
		warning = err.Error()
	}
	if warning != "" {
		fmt.Fprintln(a.err, "bottle: "+prompt.Text(warning))
	}
}

// noRegistry reports whether an engine's message is that it could not pull.
func noRegistry(msg string) bool {
	for _, s := range []string{"/v2/", "pull access denied", "manifest unknown", "failed to resolve source metadata", "failed to do request"} {
		if strings.Contains(msg, s) {
			return true
		}
	}
	return strings.Contains(msg, "manifest for ") && strings.Contains(msg, " not found")
}

func (a *app) cleanupCmd() *cobra.Command {
	return &cobra.Command{
		Use: "cleanup", Short: "remove what killed bottles left on the container engine",
		Long: `cleanup removes containers, networks and volumes of bottles that do not run any more, which
it knows by their labels. It touches nothing of a bottle whose keeper lives, or that is being started or stopped,
and nothing of bottles in another state directory: those may be another operator's, and run.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cli, err := launch.NewEngine()
			if err != nil {
				return err
			}
			defer cli.Close()
			removed, err := launch.CleanupDocker(cmd.Context(), cli, a.leave)
			for _, r := range removed {
				fmt.Fprintln(a.out, "removed "+r)
			}
			if err == nil && len(removed) == 0 {
				fmt.Fprintln(a.out, "nothing was left")
			}
			return err
		},
	}
}

// leave reports whether cleanup leaves a bottle alone: it may run.
func (a *app) leave(dir *bottle.Dir) bool {
	if filepath.Dir(dir.Path()) != a.set.StateDir {
		return true
	}
	m, err := dir.LoadMetadata()
	if errors.Is(err, bottle.ErrNotFound) {
		return false // killed before that was written, or its directory was removed
	}
	return err != nil || m.Keeper.Alive()
}
