package prompt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"bottle/bottle"
)

// A Desk is what the review needs of the program around it.
type Desk interface {
	// View plans the offer and returns it as it would be shown and approved now.
	View(ctx context.Context, o Offer) (View, error)
	// Approve applies the offer that was shown with that digest. An error that wraps
	// [bottle.ErrChanged] means that it must be shown again.
	Approve(ctx context.Context, o Offer, digest bottle.Hash) (string, error)
	// Deny refuses the request; the reason goes to the agent.
	Deny(ctx context.Context, reason string) error
}

// Verdict is how the review of one request ended.
type Verdict int

// The verdicts.
const (
	Skipped Verdict = iota
	Decided
	Quit
)

const reviewHelp = `  a  approve what is shown      e  edit it first ($EDITOR)
  d  deny, with a reason        t  set how long: once, session, permanent, 10m ...
  n  note to the agent          f  show the whole reason
  s  skip, decide later         q  quit`

// Review shows one request and asks until it is decided, skipped, or the input ends. There
// is no default answer: an empty line asks again.
func (c *Console) Review(ctx context.Context, d Desk, o Offer) (Verdict, error) {
	full := false
	show := func() (View, error) {
		v, err := d.View(ctx, o)
		if err != nil {
			return View{}, err
		}
		v.Full, v.Color, v.Width = full, c.color, c.Width()
		fmt.Fprintln(c.out)
		return v, c.Show(v)
	}
	v, err := show()
	if err != nil {
		return unshown(err), err
	}
	for {
		if s := v.Record.State.Status(); s != bottle.Pending {
			c.Say("there is nothing to decide: it is %s", s)
			return Decided, nil
		}
		if v.Proposal != nil {
			fmt.Fprintln(c.out, v.brief())
		}
		answer, err := c.decide("a)pprove e)dit d)eny t)ime n)ote f)ull s)kip q)uit ?")
		if err != nil {
			return Quit, err
		}
		again := false
		switch answer {
		case "a", "approve":
			if v.Problem != "" {
				c.Say("it can't be approved as it stands: %s", v.Problem)
				continue
			}
			if n := v.Lines(); n > maxGlance {
				if yes, err := c.ConfirmView(v, "approve all of this?"); err != nil || !yes {
					if err != nil {
						return Quit, err
					}
					c.Say("not approved")
					continue
				}
			}
			c.Say("applying ...")
			msg, err := d.Approve(ctx, o, v.Proposal.Digest())
			if errors.Is(err, bottle.ErrChanged) {
				c.Say("it changed since you looked; here it is again")
				again = true
				break
			}
			if err != nil {
				return Decided, err
			}
			c.Say("%s", msg)
			return Decided, nil
		case "e", "edit":
			edited, ok, err := c.edit(ctx, o)
			if err != nil {
				c.Say("%s", err)
				continue
			}
			if ok {
				o, again = edited, true
			}
		case "d", "deny":
			reason, err := c.ask("reason (the agent reads it)")
			if err != nil {
				return Quit, err
			}
			if reason == "" {
				c.Say("not denied: give a reason, so that the agent can go on without it")
				continue
			}
			if err := d.Deny(ctx, reason); err != nil {
				return Decided, err
			}
			c.Say("denied")
			return Decided, nil
		case "t", "time":
			s, err := c.ask("how long (once, session, permanent, 90s, 10m, 2h)")
			if err != nil {
				return Quit, err
			}
			dur, err := bottle.ParseDuration(s)
			if err != nil {
				c.Say("%s", err)
				continue
			}
			o.Duration, again = dur, true
		case "n", "note":
			if o.Note, err = c.ask("note"); err != nil {
				return Quit, err
			}
			again = true
		case "f", "full":
			full, again = true, true
		case "s", "skip":
			return Skipped, nil
		case "q", "quit":
			return Quit, nil
		case "?", "h", "help":
			fmt.Fprintln(c.out, reviewHelp)
		case "":
		default:
			c.Say("%q is none of the answers; type ? for what they mean", answer)
		}
		if again {
			if v, err = show(); err != nil {
				return unshown(err), err
			}
		}
	}
}

// unshown is the verdict on a request that could not be shown, or not to its end.
func unshown(err error) Verdict {
	if errors.Is(err, ErrInterrupted) || errors.Is(err, io.EOF) {
		return Quit
	}
	return Skipped
}

// Edit has the operator edit an offer. An empty text leaves it as it was.
func (c *Console) Edit(ctx context.Context, o Offer) (Offer, error) {
	edited, ok, err := c.edit(ctx, o)
	if err != nil || !ok {
		return o, err
	}
	return edited, nil
}

// EditText opens a text in the operator's editor and returns what was saved.
func (c *Console) EditText(ctx context.Context, name string, text []byte) ([]byte, error) {
	return editFile(ctx, c.editor, name, text, c.tty != nil)
}

func (c *Console) edit(ctx context.Context, o Offer) (Offer, bool, error) {
	text, err := o.Encode()
	if err != nil {
		return Offer{}, false, err
	}
	for {
		if text, err = editFile(ctx, c.editor, offerFile, text, c.tty != nil); err != nil {
			return Offer{}, false, err
		}
		edited, ok, err := DecodeOffer(text)
		if err == nil {
			return edited, ok, nil
		}
		c.Say("%s", err)
		again, askErr := c.Confirm("edit again?")
		if askErr != nil || !again {
			return Offer{}, false, errors.Join(fmt.Errorf("the edit was dropped"), askErr)
		}
	}
}

func secondsOf(n int) time.Duration { return time.Duration(n) * time.Second }
