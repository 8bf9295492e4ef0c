// Command bottle-supervise is the bundle's MCP server, which the agent talks to.
//
// It is a program of its own, beside bottle-sidecars, for two reasons. What parses the
// agent's messages shares no memory image with what holds credentials; and the libraries
// that do so take 10 ms to initialise, which every process start of the bundle would pay.
// bottle-sidecars starts it; nobody types its command line.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"

	"bottle/bottle"
	"bottle/bottle/bundle"
	"bottle/bottle/egress"
	"bottle/bottle/queue"
	"bottle/mcp"
)

// version is stamped by the Makefile.
var version = ""

func main() {
	root := flag.String("root", "", "the bottle's state directory, or the parts of it that the bundle sees")
	flag.Parse()
	if err := run(context.Background(), *root, flag.Args()); err != nil {
		// The last line of a daemon is what init reports as the reason for its end.
		fmt.Fprintln(os.Stderr, "bottle-supervise:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, root string, args []string) error {
	if root == "" || len(args) > 0 {
		return errors.New("usage: bottle-supervise --root DIR")
	}
	abs, err := filepath.Abs(root)
	if err != nil {
		return fmt.Errorf("--root: %w", err)
	}
	dir, err := bottle.NewDir(abs)
	if err != nil {
		return err
	}
	logger := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	return bundle.Serve(ctx, bottle.DaemonSupervise, dir, logger, supervise)
}

func supervise(ctx context.Context, d *bundle.Daemon) error {
	spool, err := queue.NewSpool(queue.SpoolConfig{
		Requests: d.Dir.Requests(), Cancels: d.Dir.Cancels(), Decisions: d.Dir.Decisions(),
		MaxPending: d.Config.MaxPending, Logger: d.Logger,
	})
	if err != nil {
		return err
	}
	defer spool.Close()
	server, err := mcp.NewServer(mcp.Config{
		Queue:    spool,
		Enforcer: &egress.Client{Proxy: d.Config.Egress, Secret: d.Config.ProxySecret},
		Name:     "bottle",
		Version:  cmp.Or(version, "devel"),
		Logger:   d.Logger,
	})
	if err != nil {
		return err
	}
	l, err := d.Listener(bundle.FDMCP)
	if err != nil {
		return err
	}
	status := bottle.DaemonStatus{
		Schema: bottle.Schema, Daemon: d.Name, PID: os.Getpid(), Instance: uuid.NewString(),
		LoadedAt: time.Now().UTC(), Listen: d.Dir.MCPSocket(),
	}
	if err := d.Report(status); err != nil {
		_ = l.Close()
		return err
	}
	return server.Serve(ctx, l)
}

var (
	_ mcp.Queue    = (*queue.Spool)(nil)
	_ mcp.Enforcer = (*egress.Client)(nil)
)
