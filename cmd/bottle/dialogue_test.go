package main_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/creack/pty"
	"github.com/rogpeppe/go-internal/testscript"
)

// stepDialogue runs a command of ours at a real terminal, as its controlling one, and goes
// through a file of lines:
//
//	? REGEXP       wait until the command has printed that, after what was matched before
//	< TEXT         type TEXT and Enter
//	<              type Enter alone
//	< ^D           end the input
//	< ^C           interrupt
//	$ COMMAND...   run another command of ours meanwhile; it must succeed
//
// The command must then end; with !, not with success. All that it printed is the step's output.
func stepDialogue(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, false, len(args) > 1, "[!] dialogue FILE COMMAND...")
	env := append(environ(ts), "TERM=xterm", "NO_COLOR=1")
	cmd := program(args[1], args[2:]...)
	cmd.Env, cmd.Dir = env, ts.MkAbs(".")
	f, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 50, Cols: 200})
	ts.Check(err)
	d := &dialogue{f: f, env: env, printed: make(chan string)}
	go d.read()
	if err = d.play(ts.ReadFile(args[0])); err == nil {
		err = d.drain()
	}
	if err != nil {
		_ = cmd.Process.Kill()
		for range d.printed {
		}
	}
	exit := cmd.Wait()
	_ = f.Close()
	fmt.Fprint(ts.Stdout(), strings.ReplaceAll(d.all, "\r\n", "\n"))
	ts.Check(err)
	if (exit != nil) != neg {
		ts.Fatalf("exit: %v\n%s", exit, d.all)
	}
}

type dialogue struct {
	f       *os.File
	env     []string
	printed chan string // closed when the last process has closed the terminal
	all     string      // printed so far
	seen    int         // of it, matched
}

// read passes on what is printed; a terminal knows no deadlines.
func (d *dialogue) read() {
	defer close(d.printed)
	buf := make([]byte, 4096)
	for {
		n, err := d.f.Read(buf)
		if n > 0 {
			d.printed <- string(buf[:n])
		}
		if err != nil {
			return
		}
	}
}

func (d *dialogue) play(script string) error {
	for line := range strings.Lines(script) {
		line = strings.TrimSuffix(line, "\n")
		rest := strings.TrimPrefix(line[min(1, len(line)):], " ")
		switch {
		case line == "" || line[0] == '#':
		case line[0] == '?':
			re, err := regexp.Compile(rest)
			if err != nil {
				return err
			}
			if err := d.expect(re); err != nil {
				return err
			}
		case line[0] == '<':
			end := "\n"
			switch rest {
			case "^D":
				rest, end = "\x04", "" // end of input
			case "^C":
				rest, end = "\x03", ""
			}
			if _, err := d.f.WriteString(rest + end); err != nil {
				return err
			}
		case line[0] == '$':
			argv := strings.Fields(rest)
			cmd := program(argv[0], argv[1:]...)
			cmd.Env = d.env
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w: %s", rest, err, out)
			}
		default:
			return fmt.Errorf("dialogue: %q", line)
		}
	}
	return nil
}

func (d *dialogue) expect(re *regexp.Regexp) error {
	for {
		if m := re.FindStringIndex(d.all[d.seen:]); m != nil {
			d.seen += m[1]
			return nil
		}
		if err := d.more(); err != nil {
			return fmt.Errorf("waiting for %q: %w; it printed:\n%s", re, err, d.all)
		}
	}
}

// drain reads until the command has ended.
func (d *dialogue) drain() error {
	for {
		err := d.more()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w; it printed:\n%s", err, d.all)
		}
	}
}

func (d *dialogue) more() error {
	select {
	case s, ok := <-d.printed:
		if !ok {
			return io.EOF
		}
		d.all += s
		return nil
	case <-time.After(stepTimeout):
		return errors.New("it hangs")
	}
}
