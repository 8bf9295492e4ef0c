package claudetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"unicode"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// A Terminal is an interactive session: a program on a terminal of its own, and what it wrote.
type Terminal struct {
	cmd *exec.Cmd
	tty *os.File

	mu      sync.Mutex
	out     []byte
	changed chan struct{} // closed at each write of the program's
	done    chan struct{} // closed when it writes no more
}

// Start runs cmd, whose streams must not be set, on a new terminal. The caller closes it.
func Start(cmd *exec.Cmd) (*Terminal, error) {
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 50, Cols: 200})
	if err != nil {
		return nil, fmt.Errorf("claudetest: start %s: %w", cmd.Path, err)
	}
	t := &Terminal{cmd: cmd, tty: tty, changed: make(chan struct{}), done: make(chan struct{})}
	go t.read()
	return t, nil
}

func (t *Terminal) read() {
	defer close(t.done)
	b := make([]byte, 64<<10)
	for {
		n, err := t.tty.Read(b)
		t.mu.Lock()
		t.out = append(t.out, b[:n]...)
		close(t.changed)
		t.changed = make(chan struct{})
		t.mu.Unlock()
		if err != nil { // EIO: the program has let go of the terminal
			return
		}
	}
}

// Close kills the program with all of its process group, and waits until nobody has the terminal.
func (t *Terminal) Close() {
	_ = unix.Kill(-t.cmd.Process.Pid, unix.SIGKILL) // Start made it the leader of a session
	_ = t.cmd.Wait()                                // killed, or it had ended
	_ = t.tty.Close()
	<-t.done
}

// Mark is a place in what the program wrote: all that it wrote so far.
func (t *Terminal) Mark() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.out)
}

// Await returns when the program has written text since mark, whatever the spaces and colours in
// it: a program that paints a screen moves the cursor where a line has a space.
func (t *Terminal) Await(ctx context.Context, mark int, text string) error {
	want := bare(text)
	for {
		t.mu.Lock()
		got, changed := string(t.out[mark:]), t.changed
		t.mu.Unlock()
		if strings.Contains(bare(got), want) {
			return nil
		}
		var why error
		select {
		case <-changed:
			continue
		case <-t.done:
			why = errors.New("it has ended")
		case <-ctx.Done():
			why = ctx.Err()
		}
		return fmt.Errorf("claudetest: %s did not write %q: %w; since then it wrote %q", t.cmd.Path, text, why, clip(escapes.ReplaceAllString(got, " ")))
	}
}

// Say types a line, and enters it when the program shows it: what comes in one piece with its
// newline would be taken for pasted.
func (t *Terminal) Say(ctx context.Context, line string) error {
	mark := t.Mark()
	if err := t.Type(line); err != nil {
		return err
	}
	if err := t.Await(ctx, mark, line); err != nil {
		return err
	}
	return t.Type("\r")
}

// Type presses keys.
func (t *Terminal) Type(keys string) error {
	if _, err := t.tty.WriteString(keys); err != nil {
		return fmt.Errorf("claudetest: type: %w", err)
	}
	return nil
}

// escapes are control sequences as far as programs write them: CSI, OSC, and those of one letter.
var escapes = regexp.MustCompile(`\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])`)

// bare returns s without what Await passes over.
func bare(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) || unicode.IsControl(r) {
			return -1
		}
		return r
	}, escapes.ReplaceAllString(s, ""))
}

// clip returns the end of s.
func clip(s string) string {
	const limit = 4000
	if len(s) <= limit {
		return s
	}
	return "..." + strings.ToValidUTF8(s[len(s)-limit:], "")
}
