package main

import (
	"io"
	"os"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
)

// version is stamped by the Makefile.
var version = ""

// An app is one call of the program: its streams and settings.
type app struct {
	in       *os.File
	out, err io.Writer
	set      settings
	bottle   string // --bottle
	json     bool   // --json
}

func newRoot(in *os.File, out, errOut io.Writer) *cobra.Command {
	a := &app{in: in, out: out, err: errOut}
	root := &cobra.Command{
		Use:   "bottle",
		Short: "run coding agents in bottles, and decide what they may reach",
		Long: `bottle runs a coding agent in a sandbox whose only ways out are small daemons beside it.
A blocked agent asks; you see what would change, and approve, edit or deny it.

Exit codes: 0 done, 1 failed, 2 usage, 3 no such thing, 4 changed since you looked,
5 refused or not confirmed by the daemon.`,
		Version:                    buildVersion(),
		SilenceErrors:              true,
		SilenceUsage:               true,
		SuggestionsMinimumDistance: 2,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			hint := "bottle --help lists the commands"
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				hint = "did you mean " + strings.Join(near, " or ") + "?"
			}
			return usagef("unknown command %q; %s", args[0], hint)
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			a.set, err = loadSettings(cmd.Flags())
			return err
		},
	}
	root.SetOut(out)
	root.SetErr(errOut)
	addSettingFlags(root.PersistentFlags())
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%w (see %s --help)", err, cmd.CommandPath())
	})
	for _, c := range []*cobra.Command{
		a.startCmd(), a.attachCmd(), a.stopCmd(), a.restartCmd(), a.keepCmd(), a.lsCmd(), a.logsCmd(),
		a.requestsCmd(), a.showCmd(), a.reviewCmd(), a.approveCmd(), a.denyCmd(), a.revokeCmd(),
		a.routesCmd(), a.allowlistCmd(), a.auditCmd(),
		a.doctorCmd(), a.mcpConfigCmd(), a.imageCmd(), a.cleanupCmd(), a.demoCmd(), a.demoAgentCmd(),
	} {
		root.AddCommand(c)
	}
	for _, c := range root.Commands() {
		wrapArgs(c)
	}
	return root
}

// wrapArgs makes a wrong number of arguments a usage error, like a wrong flag.
func wrapArgs(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return usagef("usage: %s (see %s --help)", cmd.UseLine(), cmd.CommandPath())
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		wrapArgs(sub)
	}
}

func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}

// listing adds the flags that every listing has.
func (a *app) listing(c *cobra.Command) *cobra.Command {
	a.forBottle(c)
	c.Flags().BoolVar(&a.json, "json", false, "for programs: one JSON array, in ASCII")
	return c
}

func (a *app) forBottle(c *cobra.Command) *cobra.Command {
	c.Flags().StringVar(&a.bottle, "bottle", "", "only this bottle")
	return c
}
