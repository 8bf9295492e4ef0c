// Command bottle-mcp lets an MCP client that starts its servers and speaks to them on stdin
// and stdout reach a bottle's MCP socket. It stays up while the bottle is restarted.
//
// "bottle-mcp sandbox" is another program in the same file, since this one is in every sandbox: the
// first process of the local backend's.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"

	"bottle/mcp/bridge"
)

const defaultSocket = "/run/bottle/mcp.sock"

const usage = `usage: bottle-mcp [--socket PATH] [--wait DURATION]
       bottle-mcp sandbox ... (for the local backend, which starts it)

It bridges stdin and stdout to a bottle's MCP socket.

  --socket PATH    the socket; default $BOTTLE_MCP_SOCKET, else ` + defaultSocket + `
  --wait DURATION  for how long a call waits for a bottle that is down; default 45s, which is
                   less than the minute that most clients give a call
`

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run returns the exit code: 0 when stdin has ended, 1 on a failure, 2 on wrong usage.
func run(args []string, stdin io.ReadCloser, stdout, stderr io.Writer) int {
	if len(args) > 0 && args[0] == "sandbox" {
		return runSandbox(args[1:], stderr)
	}
	flags := flag.NewFlagSet("bottle-mcp", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { fmt.Fprint(stderr, usage) }
	socket := flags.String("socket", cmp.Or(os.Getenv("BOTTLE_MCP_SOCKET"), defaultSocket), "")
	wait := flags.Duration("wait", bridge.DefaultWait, "")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	case flags.NArg() > 0 || *wait <= 0:
		fmt.Fprint(stderr, usage)
		return 2
	}
	var dialer net.Dialer
	b, err := bridge.New(bridge.Config{
		In: stdin, Out: stdout, Wait: *wait,
		Dial:   func(ctx context.Context) (net.Conn, error) { return dialer.DialContext(ctx, "unix", *socket) },
		Logger: slog.New(slog.NewTextHandler(stderr, nil)).With("pid", os.Getpid()),
	})
	if err == nil {
		err = b.Run(context.Background())
	}
	if err != nil {
		fmt.Fprintln(stderr, "bottle-mcp:", err)
		return 1
	}
	return 0
}
