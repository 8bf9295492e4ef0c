package prompt

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
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

// A Console is where the review happens: a terminal, or a test.
type Console struct {
	In     io.Reader
	Out    io.Writer
	Color  bool
	Editor string   // command line
	TTY    *os.File // for the editor; nil: the process's own streams
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
func (c *Console) Review(ctx context.Context, lines *bufio.Reader, d Desk, o Offer) (Verdict, error) {
	full := false
	show := func() (View, error) {
		v, err := d.View(ctx, o)
		if err != nil {
			return View{}, err
		}
		v.Full, v.Color = full, c.Color
		fmt.Fprintln(c.Out)
		return v, v.Render(c.Out)
	}
	v, err := show()
	if err != nil {
		return Skipped, err
	}
	for {
		answer, err := c.ask(lines, "a)pprove e)dit d)eny t)ime n)ote f)ull s)kip q)uit ?")
		if err != nil {
			return Quit, err
		}
		again := false
		switch answer {
		case "a", "approve":
			if v.Problem != "" {
				c.say("it can't be approved as it stands: %s", Text(v.Problem))
				continue
			}
			c.say("applying ...")
			msg, err := d.Approve(ctx, o, v.Proposal.Digest())
			if errors.Is(err, bottle.ErrChanged) {
				c.say("it changed since you looked; here it is again")
				again = true
				break
			}
			if err != nil {
				return Decided, err
			}
			c.say("%s", msg)
			return Decided, nil
		case "e", "edit":
			edited, ok, err := c.edit(ctx, lines, o)
			if err != nil {
				c.say("%s", Text(err.Error()))
				continue
			}
			if ok {
				o, again = edited, true
			}
		case "d", "deny":
			reason, err := c.ask(lines, "reason (the agent reads it)")
			if err != nil {
				return Quit, err
			}
			if reason == "" {
				c.say("not denied: give a reason, so that the agent can go on without it")
				continue
			}
			if err := d.Deny(ctx, reason); err != nil {
				return Decided, err
			}
			c.say("denied")
			return Decided, nil
		case "t", "time":
			s, err := c.ask(lines, "how long (once, session, permanent, 90s, 10m, 2h)")
			if err != nil {
				return Quit, err
			}
			dur, err := bottle.ParseDuration(s)
			if err != nil {
				c.say("%s", Text(err.Error()))
				continue
			}
			o.Duration, again = dur, true
		case "n", "note":
			if o.Note, err = c.ask(lines, "note"); err != nil {
				return Quit, err
			}
		case "f", "full":
			full, again = true, true
		case "s", "skip":
			return Skipped, nil
		case "q", "quit":
			return Quit, nil
		case "?", "h", "help":
			c.say("%s", reviewHelp)
		case "":
		default:
			c.say("%q is none of the answers; type ? for what they mean", Text(answer))
		}
		if again {
			if v, err = show(); err != nil {
				return Skipped, err
			}
		}
	}
}

func (c *Console) edit(ctx context.Context, lines *bufio.Reader, o Offer) (Offer, bool, error) {
	text, err := o.Encode()
	if err != nil {
		return Offer{}, false, err
	}
	for {
		if text, err = EditFile(ctx, c.Editor, "offer.yaml", text, c.TTY); err != nil {
			return Offer{}, false, err
		}
		edited, ok, err := DecodeOffer(text)
		if err == nil {
			return edited, ok, nil
		}
		c.say("%s", Text(err.Error()))
		again, askErr := c.ask(lines, "edit again? y/n")
		if askErr != nil || again != "y" && again != "yes" {
			return Offer{}, false, errors.Join(fmt.Errorf("the edit was dropped"), askErr)
		}
	}
}

// ask prints a question and reads one line, trimmed.
func (c *Console) ask(lines *bufio.Reader, question string) (string, error) {
	fmt.Fprintf(c.Out, "%s > ", question)
	s, err := lines.ReadString('\n')
	if err != nil && (s == "" || !errors.Is(err, io.EOF)) {
		fmt.Fprintln(c.Out)
		return "", err
	}
	return strings.TrimSpace(s), nil
}

func (c *Console) say(format string, args ...any) { fmt.Fprintf(c.Out, format+"\n", args...) }

// Confirm asks a question that only y or yes answers with true; anything else is no, and
// the end of the input an error.
func (c *Console) Confirm(lines *bufio.Reader, question string) (bool, error) {
	for {
		a, err := c.ask(lines, question+" y/n")
		if err != nil {
			return false, err
		}
		switch strings.ToLower(a) {
		case "y", "yes":
			return true, nil
		case "n", "no":
			return false, nil
		}
	}
}

func secondsOf(n int) time.Duration { return time.Duration(n) * time.Second }
