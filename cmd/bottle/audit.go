package main

import (
	"cmp"
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
		cells := []string{e.Time.Local().Format(time.DateTime), e.Bottle, string(e.Event), cmp.Or(e.Short, "-"), actorName(e.Actor)}
		for i, what := range whatOf(e) {
			if i > 0 {
				cells = make([]string, 5)
			}
			for _, c := range cells {
				fmt.Fprintf(w, "%s\t", prompt.Text(c))
			}
			fmt.Fprintln(w, prompt.Clip(what, maxWhat))
		}
	}
	return w.Flush()
}

// Bounds of what is shown of one entry; --json has all of it.
const (
	maxWhat     = 100 // characters of a row
	maxWhatRows = 30
)

func actorName(a *audit.Actor) string {
	if a == nil {
		return "-"
	}
	return cmp.Or(a.Name, fmt.Sprintf("uid%d", a.UID))
}

// whatOf says what came of an entry, in one row. A manifest that was accepted has a row for each
// line that it changed: none of them may hide behind the others.
func whatOf(e audit.Entry) []string {
	var what []string
	for _, file := range []string{bottle.RoutesFile, bottle.PipelockFile, bottle.ManifestFile} {
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
	if e.Event == audit.ManifestAccepted {
		if n := len(what); n > maxWhatRows {
			what = append(what[:maxWhatRows:maxWhatRows], fmt.Sprintf("and %d more lines (bottle audit --json)", n-maxWhatRows))
		}
		said := e.Outcome + ": " + bottle.ManifestFile + " is at " + bottle.Hash(e.Revision[bottle.ManifestFile]).Short()
		if before, ok := strings.CutPrefix(e.Detail, inPlaceOf); ok {
			said += ", was at " + bottle.Hash(before).Short()
		}
		return append([]string{said}, what...)
	}
	what = append(what, e.After["asked"]...)
	if e.Detail != "" {
		what = append(what, e.Detail)
	}
	return []string{strings.Join(what, "; ")}
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
