package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"bottle/bottle"
	"bottle/bottle/prompt"
)

// grantFlags are the ways to grant something else than what was asked. show takes them
// too, so that the digest of a counter-offer can be had before it is made.
type grantFlags struct {
	ttl                      time.Duration
	once, session, permanent bool
	only                     []string
}

func (g *grantFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.DurationVar(&g.ttl, "ttl", 0, "grant it for this long: 90s, 10m, 2h")
	f.BoolVar(&g.once, "once", false, "grant it for one request")
	f.BoolVar(&g.session, "session", false, "grant it until the bottle stops")
	f.BoolVar(&g.permanent, "permanent", false, "grant it for good: after a stop and start too")
	f.StringArrayVar(&g.only, "only", nil, "grant only the entries of this host (may be repeated)")
}

func (g *grantFlags) on(c *cobra.Command, o prompt.Offer) (prompt.Offer, error) {
	var err error
	said := 0
	for _, name := range []string{"ttl", "once", "session", "permanent"} {
		if c.Flags().Changed(name) {
			said++
		}
	}
	switch {
	case said > 1:
		return o, usagef("--ttl, --once, --session and --permanent: give one of them")
	case said > 0 && len(o.Add) == 0:
		return o, usagef("the request only removes, which holds until you add it back; --ttl, --once, --session and --permanent are for what is added")
	case c.Flags().Changed("ttl"):
		if o.Duration, err = bottle.ForTTL(g.ttl); err != nil {
			return o, usagef("--ttl: %w", err)
		}
	case g.once:
		o.Duration = bottle.Duration{Kind: bottle.Once}
	case g.session:
		o.Duration = bottle.Duration{Kind: bottle.Session}
	case g.permanent:
		o.Duration = bottle.Duration{Kind: bottle.Permanent}
	}
	if len(g.only) > 0 {
		if o, err = o.Only(g.only); err != nil {
			return o, usageError{err}
		}
	}
	return o, nil
}

func (a *app) showCmd() *cobra.Command {
	var flags grantFlags
	var full bool
	c := &cobra.Command{
		Use: "show ID", Short: "show a request: what would change, the risks, the agent's reason, the digest",
		Long: `show a request: what would change, the risks, the agent's reason, and the digest that
approve --digest takes. With --ttl, --once, --session, --permanent or --only it shows that
counter-offer instead of what was asked.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, rec, err := a.find(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer c.Close()
			o, err := flags.on(cmd, c.offer(rec))
			if err != nil {
				return err
			}
			v, _ := c.view(cmd.Context(), rec, o)
			if a.json {
				return prompt.JSON(a.out, shown(v))
			}
			v.Full, v.Color, v.Width = full, wantColor(a.out), widthOf(a.out)
			return v.Render(a.out)
		},
	}
	flags.add(c)
	c.Flags().BoolVar(&full, "full", false, "every line of the reason")
	c.Flags().BoolVar(&a.json, "json", false, "for programs: one JSON object, in ASCII")
	return a.forBottle(c)
}

// shownJSON is show --json.
type shownJSON struct {
	Bottle   string           `json:"bottle"`
	Record   *bottle.Record   `json:"record"`
	Proposal *bottle.Proposal `json:"proposal,omitempty"`
	Digest   bottle.Hash      `json:"digest,omitempty"`
	Problem  string           `json:"problem,omitempty"`
}

func shown(v prompt.View) shownJSON {
	s := shownJSON{Bottle: v.Bottle, Record: v.Record, Proposal: v.Proposal, Problem: v.Problem}
	if v.Proposal != nil {
		s.Digest = v.Proposal.Digest()
	}
	return s
}

func (a *app) approveCmd() *cobra.Command {
	var flags grantFlags
	var edit bool
	var note, digest string
	c := &cobra.Command{
		Use: "approve ID", Short: "approve a request, or a part of it",
		Long: `approve shows what would change and asks. Without a terminal it needs --digest, the digest
that show printed for the same options: what is approved is what was shown, or nothing
(exit code 4).`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			if edit && digest != "" {
				return usagef("--edit and --digest: an edited request has a digest of its own; leave --digest out")
			}
			if digest != "" && !isDigest(digest) {
				return usagef("--digest %q: give all of it, as bottle show prints it: sha256: and 64 hexadecimal digits", digest)
			}
			c, rec, err := a.find(ctx, args[0])
			if err != nil {
				return err
			}
			defer c.Close()
			o, err := flags.on(cmd, c.offer(rec))
			if err != nil {
				return err
			}
			o.Note = note
			if digest != "" {
				msg, err := c.approve(ctx, rec, o, bottle.Hash(digest))
				if err != nil {
					return err
				}
				prompt.Print(a.out, msg)
				return nil
			}
			return a.approveAsking(ctx, c, rec, o, edit)
		},
	}
	flags.add(c)
	c.Flags().BoolVar(&edit, "edit", false, "edit what is granted first")
	c.Flags().StringVar(&note, "note", "", "a note to the agent")
	c.Flags().StringVar(&digest, "digest", "", "approve without asking, if this is the digest of what would be shown")
	return a.forBottle(c)
}

func isDigest(s string) bool {
	digits, ok := strings.CutPrefix(s, "sha256:")
	return ok && len(digits) == 2*sha256.Size && strings.Trim(digits, "0123456789abcdef") == ""
}

func (a *app) approveAsking(ctx context.Context, c *cell, rec *bottle.Record, o prompt.Offer, edit bool) error {
	if s := rec.State.Status(); s != bottle.Pending {
		return fmt.Errorf("request %s is %s already: %w", rec.Short, s, bottle.ErrState)
	}
	con, done, err := a.console(ctx, "give --digest with the digest that bottle show prints")
	if err != nil {
		return err
	}
	defer done()
	if edit {
		if o, err = con.Edit(ctx, o); err != nil {
			return err
		}
	}
	for {
		v, _ := c.view(ctx, rec, o)
		v.Color, v.Width = con.Color(), con.Width()
		if err := con.Show(v); err != nil {
			return errors.Join(errors.New("not approved; the request is still pending"), ignoreEOF(err))
		}
		if v.Proposal == nil {
			return fmt.Errorf("request %s can't be approved: %s", rec.Short, v.Problem)
		}
		yes, err := con.ConfirmView(v, "approve this?")
		if err != nil || !yes {
			return errors.Join(errors.New("not approved; the request is still pending"), ignoreEOF(err))
		}
		msg, err := c.approve(ctx, rec, o, v.Proposal.Digest())
		if errors.Is(err, bottle.ErrChanged) {
			con.Say("it changed since you looked; here it is again")
			continue
		}
		if err != nil {
			return err
		}
		prompt.Print(a.out, msg)
		return nil
	}
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// console opens the terminal for questions, until done. Without one the error says what to
// do instead.
func (a *app) console(ctx context.Context, instead string) (con *prompt.Console, done func(), err error) {
	tty, err := openTTY(instead)
	if err != nil {
		return nil, nil, err
	}
	con, stop := prompt.NewConsole(ctx, tty, a.set.Editor, os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb")
	return con, func() {
		stop()
		_ = tty.Close()
	}, nil
}

func (a *app) denyCmd() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "deny ID --reason TEXT", Short: "deny a request, and tell the agent why", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if strings.TrimSpace(reason) == "" {
				return usagef("--reason is required: the agent reads it, and goes on without asking again")
			}
			c, rec, err := a.find(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer c.Close()
			if rec.State.Status() == bottle.Applied {
				return fmt.Errorf("request %[1]s is applied already; bottle revoke %[1]s takes it back: %[2]w", rec.Short, bottle.ErrState)
			}
			if err := c.deny(cmd.Context(), rec, reason); err != nil {
				return err
			}
			fmt.Fprintf(a.out, "%s denied\n", rec.Short)
			return nil
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why; the agent reads it (required)")
	return a.forBottle(c)
}

func (c *cell) deny(ctx context.Context, rec *bottle.Record, reason string) error {
	return c.locked(ctx, func() error { return c.desk.Deny(ctx, rec, operator(), reason) })
}

func (a *app) revokeCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "revoke GRANT", Short: "take a grant back, and cut what it opened",
		Long: `revoke takes back the grant of an applied request (its ID, as in bottle routes). Connections
that nothing else allows are cut within a second; others are not touched.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, rec, err := a.find(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer c.Close()
			msg, err := c.revoke(cmd.Context(), rec)
			if err != nil {
				return err
			}
			prompt.Print(a.out, msg)
			return nil
		},
	}
	return a.forBottle(c)
}

func (c *cell) revoke(ctx context.Context, rec *bottle.Record) (string, error) {
	out, err := c.apply.Revoke(ctx, rec.Short, operator())
	if err != nil && !errors.Is(err, bottle.ErrUnconfirmed) {
		return "", err
	}
	// Unconfirmed, it is revoked all the same: the daemon stays down until it has loaded it.
	if err := errors.Join(err, c.forgetPermanent(ctx, rec.Short)); err != nil {
		return "", err
	}
	return outcomeText(rec.Short, out), nil
}

// deskFor lets the review decide one request of a cell.
type deskFor struct {
	c   *cell
	rec *bottle.Record
}

var _ prompt.Desk = (*deskFor)(nil)

func (d *deskFor) View(ctx context.Context, o prompt.Offer) (prompt.View, error) {
	rec, err := d.c.desk.Find(ctx, d.rec.Request.ID)
	if err != nil {
		return prompt.View{}, err
	}
	d.rec = rec
	v, _ := d.c.view(ctx, rec, o)
	if v.Proposal == nil && v.Problem == "" {
		v.Problem = "it is " + string(rec.State.Status()) + " already"
	}
	return v, nil
}

func (d *deskFor) Approve(ctx context.Context, o prompt.Offer, digest bottle.Hash) (string, error) {
	return d.c.approve(ctx, d.rec, o, digest)
}

func (d *deskFor) Deny(ctx context.Context, reason string) error { return d.c.deny(ctx, d.rec, reason) }

func (a *app) reviewCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "review [ID]", Short: "go through the waiting requests, one by one", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			con, done, err := a.console(cmd.Context(), "use requests, show, and approve --digest")
			if err != nil {
				return err
			}
			defer done()
			return ignoreEOF(a.review(cmd.Context(), con, args))
		},
	}
	return a.forBottle(c)
}

func (a *app) review(ctx context.Context, con *prompt.Console, args []string) error {
	if len(args) == 1 {
		c, rec, err := a.find(ctx, args[0])
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = con.Review(ctx, &deskFor{c, rec}, c.offer(rec))
		return err
	}
	recs, problems, err := a.gather(ctx, false)
	if err != nil {
		return err
	}
	for _, p := range problems {
		con.Say("passed over: %s", p)
	}
	if len(recs) == 0 {
		con.Say("no requests are waiting")
		return nil
	}
	for i, r := range recs {
		con.Say("\nrequest %d of %d", i+1, len(recs))
		verdict, err := a.reviewOne(ctx, con, r.Bottle, r.ID)
		if verdict == prompt.Quit {
			return err
		}
		if err != nil { // one that failed must not keep the others waiting
			con.Say("bottle: %s", plain(err.Error()))
		}
	}
	return nil
}

func (a *app) reviewOne(ctx context.Context, con *prompt.Console, name, id string) (prompt.Verdict, error) {
	c, err := a.open(name, quiet())
	if err != nil {
		return prompt.Skipped, err
	}
	defer c.Close()
	rec, err := c.desk.Find(ctx, id)
	if err != nil {
		return prompt.Skipped, err
	}
	return con.Review(ctx, &deskFor{c, rec}, c.offer(rec))
}
