package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"bottle/apply"
	"bottle/bottle"
	"bottle/bottle/pipelock"
	"bottle/bottle/prompt"
)

// fileJSON is routes --json and allowlist --json: one object for each bottle.
type fileJSON struct {
	Bottle   string         `json:"bottle"`
	File     string         `json:"file"`
	Revision bottle.Hash    `json:"revision,omitempty"` // of the file
	InForce  bottle.Hash    `json:"in_force,omitempty"` // as the daemon says
	Problem  string         `json:"problem,omitempty"`
	Routes   []bottle.Route `json:"routes,omitempty"`
	Hosts    []string       `json:"hosts,omitempty"`
}

func (a *app) routesCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "routes", Short: "show what the agent may reach, and until when", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return a.showFiles(bottle.RoutesFile) },
	}
	c.AddCommand(a.editCmd(bottle.RoutesFile, "edit routes.yaml; see what would change, then put it in force"))
	return a.listing(c)
}

func (a *app) allowlistCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "allowlist", Short: "show the hosts that pipelock allows", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return a.showFiles(bottle.PipelockFile) },
	}
	c.AddCommand(a.editCmd(bottle.PipelockFile, "edit pipelock.yaml but for its list, which follows from routes.yaml"))
	return a.listing(c)
}

func (a *app) showFiles(file string) error {
	names, err := a.names()
	if err != nil {
		return err
	}
	out := make([]fileJSON, 0, len(names))
	for _, name := range names {
		dir, err := a.dirOf(name)
		if err != nil {
			continue // not a bottle's directory
		}
		out = append(out, readFileState(dir, file))
	}
	if a.json {
		return prompt.JSON(a.out, out)
	}
	if len(out) == 0 {
		fmt.Fprintln(a.out, "there is no bottle")
		return nil
	}
	var failed bool
	for _, f := range out {
		failed = a.printFile(f) || failed
	}
	if failed {
		return silentExit(exitFailed)
	}
	return nil
}

func readFileState(dir *bottle.Dir, file string) fileJSON {
	f := fileJSON{Bottle: dir.Name(), File: file}
	b, err := os.ReadFile(dir.Path("etc", file))
	if err != nil {
		f.Problem = err.Error()
		return f
	}
	if f.Revision, err = bottle.CheckSeal(b); err != nil {
		f.Problem = err.Error() + "; bottle " + strings.TrimSuffix(editName(file), " edit") + " edit adopts or drops a hand edit"
	}
	if file == bottle.RoutesFile {
		doc, err := bottle.ParseRoutes(b)
		if err != nil {
			f.Problem = err.Error()
			return f
		}
		f.Routes = doc.Routes()
	} else {
		hosts, err := pipelock.Codec{}.Lines(b)
		if err != nil {
			f.Problem = err.Error()
			return f
		}
		f.Hosts = hosts
	}
	var st bottle.DaemonStatus
	daemon := bottle.DaemonEgress
	if file == bottle.PipelockFile {
		daemon = bottle.DaemonPipelock
	}
	if up, err := isUp(dir); err == nil && up {
		if err := bottle.ReadJSON(dir.DaemonStatus(daemon), 0, &st); err == nil {
			f.InForce = st.Revision
		}
	}
	return f
}

func isUp(dir *bottle.Dir) (bool, error) {
	m, err := dir.LoadMetadata()
	if err != nil {
		return false, err
	}
	return running(context.Background(), dir, m)
}

func editName(file string) string {
	if file == bottle.RoutesFile {
		return "routes edit"
	}
	return "allowlist edit"
}

func (a *app) printFile(f fileJSON) (failed bool) {
	state := "not running"
	switch f.InForce {
	case "":
	case f.Revision:
		state = "in force"
	default:
		state = "NOT in force: the daemon has " + f.InForce.Short()
	}
	fmt.Fprintf(a.out, "%s  %s  %s  %s\n", prompt.Text(f.Bottle), f.File, f.Revision.Short(), state)
	if f.Problem != "" {
		fmt.Fprintln(a.err, "bottle: "+prompt.Text(f.Problem))
	}
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	for _, r := range f.Routes {
		source := "manifest"
		if g := r.Grant; g != nil {
			source = fmt.Sprintf("%s, by %s", prompt.Text(g.Request), prompt.Text(grantor(g.By)))
			switch {
			case g.ExpiresAt == nil:
				source += ", " + g.Duration.Words()
			case g.ExpiresAt.After(time.Now()):
				source += ", for another " + prompt.Span(time.Until(*g.ExpiresAt))
			default:
				source += ", ended"
			}
		}
		r.Grant = nil
		for _, l := range r.Lines() {
			fmt.Fprintf(w, "  %s\t%s\n", prompt.Text(l), source)
		}
	}
	for _, h := range f.Hosts {
		fmt.Fprintf(w, "  %s\n", prompt.Text(h))
	}
	_ = w.Flush()
	return f.Problem != ""
}

// grantor is who gave a grant, without the number that "1000 operator" begins with.
func grantor(by string) string {
	if uid, name, ok := strings.Cut(by, " "); ok && strings.Trim(uid, "0123456789") == "" && name != "" {
		return name
	}
	return by
}

func (a *app) editCmd(file, short string) *cobra.Command {
	c := &cobra.Command{
		Use: "edit", Short: short, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			name, err := a.oneName()
			if err != nil {
				return err
			}
			c, err := a.open(name, quiet())
			if err != nil {
				return err
			}
			defer c.Close()
			con, done, err := a.console(cmd.Context(), "edit needs one")
			if err != nil {
				return err
			}
			defer done()
			return a.edit(cmd.Context(), c, file, con)
		},
	}
	return a.forBottle(c)
}

// edit loops until the text is valid and confirmed, or dropped: what the operator typed is
// never thrown away because of a mistake in it.
func (a *app) edit(ctx context.Context, c *cell, file string, con *prompt.Console) error {
	now, err := os.ReadFile(c.dir.Path("etc", file))
	if err != nil {
		return err
	}
	text := bottle.Body(now)
	for {
		if text, err = con.EditText(ctx, file, text); err != nil {
			return err
		}
		plan, err := c.apply.PreviewEdit(ctx, file, text)
		if err != nil {
			con.Say("%s", plain(err.Error()))
			again, askErr := con.Confirm("edit again?")
			if askErr != nil || !again {
				return errors.Join(errors.New("not changed"), ignoreEOF(askErr))
			}
			continue
		}
		if !slices.ContainsFunc(plan.Proposal.Diffs, func(d bottle.FileDiff) bool { return !d.Empty() }) && string(text) == string(bottle.Body(now)) {
			fmt.Fprintln(a.out, "nothing changed")
			return nil
		}
		v := prompt.View{Proposal: &plan.Proposal, Edited: editedLines(file, bottle.Body(now), text), Color: con.Color(), Width: con.Width()}
		if err := con.ShowChange(v); err != nil {
			return errors.Join(errors.New("not changed"), ignoreEOF(err))
		}
		yes, err := con.ConfirmView(v, "put this in force?")
		if err != nil || !yes {
			return errors.Join(errors.New("not changed"), ignoreEOF(err))
		}
		var out apply.Outcome
		err = c.onceUp(ctx, func() (err error) {
			out, err = c.apply.Edit(ctx, file, text, operator(), plan.Proposal.Digest())
			return err
		})
		if errors.Is(err, bottle.ErrChanged) {
			con.Say("it changed since you looked; here it is again")
			continue
		}
		if err != nil {
			return err
		}
		prompt.Print(a.out, outcomeText(file, out))
		return nil
	}
}

// editedLines are the lines that an edit takes from a file and puts into it. They are for what
// no semantic diff describes: the other keys of pipelock.yaml, and comments.
func editedLines(file string, before, after []byte) []bottle.FileDiff {
	lines := func(text, other []byte) (only []string) {
		left := map[string]int{}
		for l := range strings.Lines(string(other)) {
			left[strings.TrimRight(l, "\n")]++
		}
		for l := range strings.Lines(string(text)) {
			l = strings.TrimRight(l, "\n")
			if left[l]--; left[l] < 0 && l != "" {
				only = append(only, l)
			}
		}
		return only
	}
	d := bottle.FileDiff{File: file, Remove: lines(before, after), Add: lines(after, before)}
	if d.Empty() {
		return nil
	}
	return []bottle.FileDiff{d}
}
