package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"bottle/bottle"
	"bottle/bottle/prompt"
	"bottle/bottle/queue"
)

// bottleJSON is ls --json.
type bottleJSON struct {
	Name      string    `json:"name"`
	Status    string    `json:"status"` // ready, starting, down, unattended (no keeper), stopped, never-started, unknown
	Backend   string    `json:"backend"`
	StartedAt time.Time `json:"started_at"`
	Pending   int       `json:"pending"`
	Manifest  string    `json:"manifest"`
	StateDir  string    `json:"state_dir"`
	Problem   string    `json:"problem,omitempty"`
}

func (a *app) lsCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "ls", Short: "list the bottles", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			names, err := a.names()
			if err != nil {
				return err
			}
			out := make([]bottleJSON, 0, len(names))
			for _, name := range names {
				dir, err := a.dirOf(name)
				if err != nil {
					continue // not a bottle's directory
				}
				b := describe(cmd.Context(), dir)
				if waiting, _, err := queue.NewReader(dir).List(cmd.Context(), false); err == nil {
					b.Pending = len(waiting)
				}
				out = append(out, b)
			}
			if a.json {
				return prompt.JSON(a.out, out)
			}
			if len(out) == 0 {
				fmt.Fprintln(a.out, "there is no bottle; bottle start -f FILE makes one")
				return nil
			}
			w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "NAME\tSTATUS\tBACKEND\tSTARTED\tWAITING\tMANIFEST")
			for _, b := range out {
				started := "-"
				if b.Status != "never-started" {
					started = prompt.Ago(time.Since(b.StartedAt))
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\n", prompt.Text(b.Name), b.Status, prompt.Text(cmp.Or(b.Backend, "-")),
					started, b.Pending, prompt.Text(cmp.Or(b.Manifest, "-")))
				if b.Problem != "" {
					fmt.Fprintln(a.err, "bottle: "+prompt.Text(b.Problem))
				}
			}
			return w.Flush()
		},
	}
	return a.listing(c)
}

func describe(ctx context.Context, dir *bottle.Dir) bottleJSON {
	b := bottleJSON{Name: dir.Name(), StateDir: dir.Path(), Status: "stopped"}
	m, err := dir.LoadMetadata()
	if err != nil && !errors.Is(err, bottle.ErrNotFound) {
		b.Status, b.Problem = "unknown", err.Error()
		return b
	}
	b.Backend, b.StartedAt, b.Manifest = m.Backend, m.StartedAt, m.Manifest
	if _, err := os.Stat(dir.Manifest()); errors.Is(err, fs.ErrNotExist) {
		b.Status = "never-started" // its first start failed; there is nothing to stop
		return b
	}
	if !m.StoppedAt.IsZero() {
		return b
	}
	up, err := running(ctx, dir, m)
	var st bottle.InitStatus
	switch {
	case err != nil:
		b.Status, b.Problem = "unknown", fmt.Sprintf("bottle %s: %v", b.Name, err)
	case !up:
		b.Status = "down"
		b.Problem = fmt.Sprintf("bottle %[1]s: its daemons are down; bottle restart %[1]s starts them, bottle stop %[1]s ends it", b.Name)
	case bottle.ReadJSON(dir.InitStatus(), 0, &st) != nil || !st.Ready || m.Backend == backendLocal && st.PID != m.Init.PID:
		b.Status = "starting"
	case !m.Keeper.Alive():
		b.Status = "unattended"
		b.Problem = fmt.Sprintf("bottle %[1]s has no keeper, so new requests wait; bottle keep %[1]s, or bottle restart %[1]s, starts one", b.Name)
	default:
		b.Status = "ready"
	}
	return b
}
