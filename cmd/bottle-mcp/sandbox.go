package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"bottle/bottle/launch/inside"
)

const sandboxUsage = `usage: bottle-mcp sandbox [--forward 127.0.0.1:PORT=SOCKET]... [--processes N] [--terminal] -- COMMAND...

It is the first process in the local backend's sandbox: it carries what connects to
the port on to the unix socket, runs the command, and ends with it. N bounds the
processes and threads of the sandbox's user namespace; 0 means nothing. With --terminal stdin becomes its controlling terminal.
`

// runSandbox returns the command's exit code; 125 on a failure of its own.
func runSandbox(args []string, stderr io.Writer) int {
	const failed = 125 // as env(1) and docker have it
	if err := inside.CloseInherited(); err != nil {
		fmt.Fprintln(stderr, "bottle-mcp:", err)
		return failed
	}
	var forwards []inside.Forward
	flags := flag.NewFlagSet("bottle-mcp sandbox", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { fmt.Fprint(stderr, sandboxUsage) }
	flags.Func("forward", "", func(s string) error {
		f, err := inside.ParseForward(s)
		forwards = append(forwards, f)
		return err
	})
	terminal := flags.Bool("terminal", false, "")
	processes := flags.Uint64("processes", 0, "")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return failed
	case flags.NArg() == 0:
		fmt.Fprint(stderr, sandboxUsage)
		return failed
	}
	code, err := inside.Run(inside.Config{
		Forwards: forwards, Processes: *processes, Terminal: *terminal, Argv: flags.Args(), Env: os.Environ(),
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
	})
	if err != nil {
		fmt.Fprintln(stderr, "bottle:", err)
		if e, ok := errors.AsType[*inside.ExitError](err); ok {
			return e.Code
		}
		return failed
	}
	return code
}
