package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"bottle/apply"
	"bottle/bottle"
	"bottle/bottle/prompt"
	"bottle/bottle/queue"
)

// A listing is one request in --json.
type listing struct {
	queue.Listing
	Problem string `json:"problem,omitempty"` // why it can't be approved as it stands; it has no digest then
}

func (a *app) requestsCmd() *cobra.Command {
	var all, watch bool
	c := &cobra.Command{
		Use: "requests", Short: "list what agents ask for", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if watch && a.json {
				return usagef("--watch is for people; poll --json instead")
			}
			if watch {
				return a.watchRequests(cmd.Context(), all)
			}
			return a.listRequests(cmd.Context(), all)
		},
	}
	c.Flags().BoolVar(&all, "all", false, "the decided ones too")
	c.Flags().BoolVar(&watch, "watch", false, "show the list again whenever it changes, until interrupted")
	return a.listing(c)
}

// gather lists the requests of every bottle that the command is about: those that wait, or
// all. What can't be read is told in the second result.
func (a *app) gather(ctx context.Context, all bool) ([]queue.Listing, []string, error) {
	var list []queue.Listing
	var problems []queue.Problem
	if a.bottle == "" {
		var err error
		if list, problems, err = queue.ListAll(ctx, a.set.StateDir, all); err != nil {
			return nil, nil, err
		}
	} else {
		names, err := a.names()
		if err != nil {
			return nil, nil, err
		}
		dir, err := a.dirOf(names[0])
		if err != nil {
			return nil, nil, err
		}
		if list, problems, err = queue.NewReader(dir).List(ctx, all); err != nil {
			return nil, nil, err
		}
	}
	var texts []string
	for _, p := range problems {
		texts = append(texts, p.Error())
	}
	return list, texts, nil
}

func (a *app) listRequests(ctx context.Context, all bool) error {
	recs, problems, err := a.gather(ctx, all)
	if err != nil {
		return err
	}
	for _, p := range problems {
		fmt.Fprintln(a.err, "bottle: passed over: "+prompt.Text(p))
	}
	if a.json {
		return a.listJSON(ctx, recs)
	}
	if len(recs) == 0 {
		fmt.Fprintln(a.out, "no requests are waiting")
		return nil
	}
	now := time.Now()
	out := bufio.NewWriter(a.out) // a tabwriter writes cell by cell
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tBOTTLE\tSTATUS\tASKED\tTIMES\tWHAT")
	for _, r := range recs {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\n", r.Short, prompt.Text(r.Bottle), r.Status,
			prompt.Ago(now.Sub(r.CreatedAt)), r.Attempts, summary(bottle.Ask{Add: r.Entries, Remove: r.Remove}))
	}
	return errors.Join(w.Flush(), out.Flush())
}

// summary is the ask in one line, harmless and bounded.
func summary(ask bottle.Ask) string {
	var lines []string
	for _, e := range ask.Add {
		for _, l := range e.Lines() {
			lines = append(lines, "+ "+l)
		}
	}
	for _, e := range ask.Remove {
		for _, l := range e.Lines() {
			lines = append(lines, "- "+l)
		}
	}
	if len(lines) == 0 {
		return ""
	}
	s := prompt.Clip(lines[0], 70)
	if n := len(lines) - 1; n > 0 {
		s += fmt.Sprintf("  and %d more", n)
	}
	return s
}

func (a *app) listJSON(ctx context.Context, recs []queue.Listing) error {
	out := make([]listing, 0, len(recs))
	cells := map[string]*cell{}
	defer func() {
		for _, c := range cells {
			_ = c.Close()
		}
	}()
	for _, r := range recs {
		l := listing{Listing: r}
		if r.Status == bottle.Pending {
			c := cells[r.Bottle]
			if c == nil {
				var err error
				if c, err = a.open(r.Bottle, quiet()); err != nil {
					return err
				}
				cells[r.Bottle] = c
			}
			c.judge(ctx, &l)
		}
		out = append(out, l)
	}
	return prompt.JSON(a.out, out)
}

// judge fills in what approve would show.
func (c *cell) judge(ctx context.Context, l *listing) {
	o := prompt.OfferOf(bottle.Ask{Add: l.Entries, Remove: l.Remove, Credential: l.Credential, TTLSeconds: l.TTLSeconds}, c.manifest.Approvals.DefaultGrant)
	plan, err := c.apply.Preview(ctx, apply.Intent{
		Request: l.ID, Short: l.Short, Kind: l.Kind, Reason: l.Reason,
		Add: o.Add, Remove: o.Remove, Credential: o.Credential, Duration: o.Duration,
	})
	if err != nil {
		l.Problem = err.Error()
		return
	}
	l.Digest, l.Risks = plan.Digest, plan.Proposal.Risks
}

// watchRequests shows the list whenever its text changes.
func (a *app) watchRequests(ctx context.Context, all bool) error {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	last := "none"
	for {
		recs, _, err := a.gather(ctx, all)
		if err != nil {
			return err
		}
		key := ""
		for _, r := range recs {
			key += fmt.Sprintf("%s/%s/%s/%d\n", r.Bottle, r.Short, r.Status, r.Attempts)
		}
		if key != last {
			last = key
			if f, ok := a.out.(*os.File); ok && isTerminal(f) {
				fmt.Fprint(a.out, "\x1b[H\x1b[2J")
			}
			if err := a.listRequests(ctx, all); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }
