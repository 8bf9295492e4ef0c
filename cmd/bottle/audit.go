package main

import (
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"bottle/bottle"
	"bottle/bottle/audit"
	"bottle/bottle/prompt"
)

// verifyJSON is audit --verify --json, one for each bottle.
type verifyJSON struct {
	Bottle string       `json:"bottle"`
	Report audit.Report `json:"report"`
}

func (a *app) auditCmd() *cobra.Command {
	var verify bool
	var last int
	c := &cobra.Command{
		Use: "audit", Short: "show the audit trail, or verify that it is whole",
		Long: `audit shows who decided what, and what came of it. With --verify it checks the chain of
hashes and exits with 1 if a line was changed, dropped, inserted, reordered or cut off.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if verify {
				return a.verifyAudit()
			}
			return a.showAudit(last)
		},
	}
	c.Flags().BoolVar(&verify, "verify", false, "check the chain instead")
	c.Flags().IntVar(&last, "last", 100, "show at most this many lines of each bottle")
	return a.listing(c)
}

func (a *app) verifyAudit() error {
	names, err := a.names()
	if err != nil {
		return err
	}
	out := make([]verifyJSON, 0, len(names))
	faults := 0
	for _, name := range names {
		dir, err := a.dirOf(name)
		if err != nil {
			continue // not a bottle's directory
		}
		r, err := audit.Verify(dir.Audit(), dir.AuditHead())
		if err != nil {
			return err
		}
		faults += len(r.Faults)
		out = append(out, verifyJSON{name, r})
	}
	if a.json {
		if err := prompt.JSON(a.out, out); err != nil {
			return err
		}
	} else {
		for _, v := range out {
			verdict := "whole"
			if len(v.Report.Faults) > 0 {
				verdict = fmt.Sprintf("%d faults", len(v.Report.Faults))
			}
			fmt.Fprintf(a.out, "%s  %d lines, %s\n", prompt.Text(v.Bottle), v.Report.Lines, verdict)
			for _, f := range v.Report.Faults {
				fmt.Fprintf(a.out, "  line %d: %s\n", f.Line, prompt.Text(f.Problem))
			}
		}
	}
	if faults > 0 {
		return silentExit(exitFailed)
	}
	return nil
}

func (a *app) showAudit(last int) error {
	if last < 1 {
		return usagef("--last %d: at least 1", last)
	}
	names, err := a.names()
	if err != nil {
		return err
	}
	out := []audit.Entry{}
	for _, name := range names {
		dir, err := a.dirOf(name)
		if err != nil {
			continue // not a bottle's directory
		}
		entries, err := tail(dir, last)
		if err != nil {
			return err
		}
		out = append(out, entries...)
	}
	if a.json {
		return prompt.JSON(a.out, out)
	}
	if len(out) == 0 {
		fmt.Fprintln(a.out, "nothing is recorded")
		return nil
	}
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "TIME\tBOTTLE\tEVENT\tREQUEST\tBY\tWHAT")
	for _, e := range out {
		by := "-"
		if e.Actor != nil {
			by = fmt.Sprintf("%d %s", e.Actor.UID, e.Actor.Name)
		}
		var what []string
		for _, file := range []string{"routes.yaml", "pipelock.yaml"} {
			for _, l := range e.Before[file] {
				what = append(what, "- "+l)
			}
			for _, l := range e.After[file] {
				what = append(what, "+ "+l)
			}
			if len(what) > 0 {
				break // pipelock.yaml follows from routes.yaml
			}
		}
		what = append(what, e.After["asked"]...)
		if e.Detail != "" {
			what = append(what, e.Detail)
		}
		short := e.Short
		if short == "" {
			short = "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", e.Time.Local().Format(time.DateTime), prompt.Text(e.Bottle), prompt.Text(string(e.Event)),
			prompt.Text(short), prompt.Text(by), prompt.Clip(strings.Join(what, "; "), 100))
	}
	return w.Flush()
}

// tail reads the last n lines of a bottle's trail.
func tail(dir *bottle.Dir, n int) ([]audit.Entry, error) {
	r, err := audit.Verify(dir.Audit(), dir.AuditHead())
	if err != nil {
		return nil, err
	}
	from := uint64(1)
	if r.Lines > uint64(n) { //nolint:gosec // G115: n is positive
		from = r.Lines - uint64(n) + 1 //nolint:gosec // G115: as above
	}
	return audit.Read(dir.Audit(), from, n)
}
