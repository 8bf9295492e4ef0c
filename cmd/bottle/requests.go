package main

import (
	"context"
	"fmt"
	"os"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/term"

	"bottle/bottle"
	"bottle/bottle/prompt"
	"bottle/bottle/queue"
)

// A listing is one request in --json.
type listing struct {
	ID        string        `json:"id"`
	Short     string        `json:"short"`
	Bottle    string        `json:"bottle"`
	Status    bottle.Status `json:"status"`
	Entries   entriesJSON   `json:"entries"`
	Reason    string        `json:"reason"`
	Attempts  int           `json:"attempts"`
	CreatedAt time.Time     `json:"created_at"`
	ExpiresAt time.Time     `json:"expires_at"`
	Digest    bottle.Hash   `json:"digest,omitempty"` // of what approve would show; absent if it can't be approved
	Risks     []bottle.Risk `json:"risks,omitempty"`
	Problem   string        `json:"problem,omitempty"` // why it can't be approved as it stands
}

type entriesJSON struct {
	Add    []bottle.Entry `json:"add,omitempty"`
	Remove []bottle.Entry `json:"remove,omitempty"`
}

type bottleRecord struct {
	bottle string
	rec    *bottle.Record
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

// gather reads the records of every bottle that the command is about, on all cores.
func (a *app) gather(ctx context.Context, all bool) ([]bottleRecord, []string, error) {
	names, err := a.names()
	if err != nil {
		return nil, nil, err
	}
	perBottle := make([][]bottleRecord, len(names))
	var mu sync.Mutex
	var problems []string
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for i, name := range names {
		g.Go(func() error {
			dir, err := a.dirOf(name)
			if err != nil {
				return nil //nolint:nilerr // a directory that is no bottle's
			}
			recs, bad, err := queue.NewReader(dir).Records(ctx)
			if err != nil {
				bad = append(bad, queue.Problem{File: name, Err: err})
			}
			for _, r := range recs {
				if all || !r.State.Status().Decided() {
					perBottle[i] = append(perBottle[i], bottleRecord{name, r})
				}
			}
			mu.Lock()
			defer mu.Unlock()
			for _, p := range bad {
				problems = append(problems, name+": "+p.Error())
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	var out []bottleRecord
	for _, p := range perBottle {
		out = append(out, p...)
	}
	return out, problems, nil
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
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tBOTTLE\tSTATUS\tASKED\tTIMES\tWHAT")
	for _, r := range recs {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\n", r.rec.Short, prompt.Text(r.bottle), r.rec.State.Status(),
			prompt.Ago(now.Sub(r.rec.FirstSeen)), r.rec.Request.Attempts, summary(r.rec.Request.Ask))
	}
	return w.Flush()
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

func (a *app) listJSON(ctx context.Context, recs []bottleRecord) error {
	out := make([]listing, 0, len(recs))
	cells := map[string]*cell{}
	defer func() {
		for _, c := range cells {
			_ = c.Close()
		}
	}()
	for _, r := range recs {
		l := listing{
			ID: r.rec.Request.ID, Short: r.rec.Short, Bottle: r.bottle, Status: r.rec.State.Status(),
			Entries: entriesJSON{r.rec.Request.Ask.Add, r.rec.Request.Ask.Remove}, Reason: r.rec.Request.Ask.Reason,
			Attempts: r.rec.Request.Attempts, CreatedAt: r.rec.Request.CreatedAt, ExpiresAt: r.rec.ExpiresAt,
		}
		if l.Status == bottle.Pending {
			c := cells[r.bottle]
			if c == nil {
				var err error
				if c, err = a.open(r.bottle, quiet()); err != nil {
					return err
				}
				cells[r.bottle] = c
			}
			v, _ := c.view(ctx, r.rec, c.offer(r.rec))
			l.Problem = v.Problem
			if v.Proposal != nil {
				l.Digest, l.Risks = v.Proposal.Digest(), v.Proposal.Risks
			}
		}
		out = append(out, l)
	}
	return prompt.JSON(a.out, out)
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
			key += fmt.Sprintf("%s/%s/%s/%d\n", r.bottle, r.rec.Short, r.rec.State.Status(), r.rec.Request.Attempts)
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

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) } //nolint:gosec // G115: a descriptor is small
