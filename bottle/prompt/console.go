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

	"golang.org/x/sys/unix"
)

// ErrInterrupted is returned by a question that Ctrl-C ended. Nothing was decided by it.
var ErrInterrupted = errors.New("interrupted; nothing was decided")

// defaultWidth is for a terminal that doesn't tell its own.
const defaultWidth = 80

// A Console is where the operator is asked: a terminal, or a test.
type Console struct {
	out    io.Writer
	lines  *bufio.Reader
	tty    *os.File // nil in tests
	color  bool
	editor string // command line
}

// NewConsole asks at a terminal. ctx's end interrupts a question that waits for its answer.
// The caller closes tty, after stop.
func NewConsole(ctx context.Context, tty *os.File, editor string, color bool) (c *Console, stop func()) {
	cancel := context.AfterFunc(ctx, func() { _ = tty.SetReadDeadline(time.Unix(1, 0)) })
	return &Console{out: tty, lines: bufio.NewReader(tty), tty: tty, color: color, editor: editor}, func() { cancel() }
}

// NewScript is a console without a terminal: it reads its answers from in.
func NewScript(in io.Reader, out io.Writer, editor string) *Console {
	return &Console{out: out, lines: bufio.NewReader(in), editor: editor}
}

// Out is where the console shows things.
func (c *Console) Out() io.Writer { return c.out }

// Color reports whether it shows them in color.
func (c *Console) Color() bool { return c.color }

// Width is that of the terminal, in columns.
func (c *Console) Width() int {
	width, _ := c.size()
	return width
}

// control runs f on the terminal's descriptor. File.Fd is not for this: it would make reads
// block for good, and Ctrl-C could not end a question.
func (c *Console) control(f func(fd int) error) error {
	raw, err := c.tty.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// ask prints a question and reads one line, trimmed.
func (c *Console) ask(question string) (string, error) {
	fmt.Fprintf(c.out, "%s > ", question)
	s, err := c.lines.ReadString('\n')
	if errors.Is(err, os.ErrDeadlineExceeded) {
		fmt.Fprintln(c.out)
		return "", ErrInterrupted
	}
	if err != nil && (s == "" || !errors.Is(err, io.EOF)) {
		fmt.Fprintln(c.out)
		return "", err
	}
	return strings.TrimSpace(s), nil
}

// decide is ask, for a question whose answer changes what the agent may reach. What was
// typed before the question was on the screen is no answer to it, and is thrown away: an
// impatient second "a" must not approve a request that nobody has seen.
func (c *Console) decide(question string) (string, error) {
	if c.tty != nil {
		_, _ = c.lines.Discard(c.lines.Buffered())
		if err := c.control(func(fd int) error { return unix.IoctlSetInt(fd, unix.TCFLSH, unix.TCIFLUSH) }); err != nil {
			return "", fmt.Errorf("drop what was typed ahead: %w", err)
		}
	}
	return c.ask(question)
}

// Wait asks for the return key.
func (c *Console) Wait(question string) error {
	_, err := c.decide(question)
	return err
}

// Confirm asks a question that only y or yes answers with true, and n or no with false;
// anything else asks again, and the end of the input is an error.
func (c *Console) Confirm(question string) (bool, error) {
	for {
		a, err := c.decide(question + " y/n")
		if err != nil {
			return false, err
		}
		switch strings.ToLower(a) {
		case "y", "yes":
			return true, nil
		case "n", "no":
			return false, nil
		}
		fmt.Fprintln(c.out, "answer y or n")
	}
}

// ConfirmView asks whether to do what the view shows. A change of so many lines that they
// can't have been on one screen is confirmed by its number of lines.
func (c *Console) ConfirmView(v View, question string) (bool, error) {
	n := v.Lines()
	fmt.Fprintln(c.out, v.brief())
	if n <= maxGlance {
		return c.Confirm(question)
	}
	a, err := c.decide(fmt.Sprintf("%s it has %d lines; type that number for yes, anything else for no", question, n))
	return err == nil && a == fmt.Sprint(n), err
}

// Say prints a text of ours, line by line, with nothing in it that could act on the terminal.
func (c *Console) Say(format string, args ...any) {
	Print(c.out, fmt.Sprintf(format, args...))
}

// Print writes a text of several lines, each through [Text].
func Print(w io.Writer, s string) {
	for l := range strings.SplitSeq(s, "\n") {
		fmt.Fprintln(w, Text(l))
	}
}
