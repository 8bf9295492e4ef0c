package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"github.com/spf13/cobra"

	"bottle/bottle"
	"bottle/bottle/audit"
	"bottle/bottle/keep"
	"bottle/bottle/launch"
	"bottle/bottle/prompt"
	"bottle/bottle/queue"
)

// A finding is one thing that doctor looked at.
type finding struct {
	Bottle string `json:"bottle,omitempty"`
	What   string `json:"what"`
	State  string `json:"state"` // ok, warning or failed
	Detail string `json:"detail,omitempty"`
	Fix    string `json:"fix,omitempty"`
}

func (a *app) doctorCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "doctor", Short: "check this machine and the bottles on it, and say how to mend what is wrong",
		Long: `doctor checks this machine and the bottles on it, and says how to mend what is wrong.
It changes nothing, and exits with 1 if something failed.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			found := a.machine(cmd.Context())
			names, err := a.names()
			if err != nil && a.bottle != "" {
				return err // else it is the state directory, of which machine has said so
			}
			for _, name := range names {
				dir, err := a.dirOf(name)
				if err != nil {
					continue // not a bottle's directory
				}
				found = append(found, examine(cmd.Context(), dir)...)
			}
			failed := false
			for _, f := range found {
				failed = failed || f.State == "failed"
			}
			if a.json {
				err = prompt.JSON(a.out, found)
			} else {
				for _, f := range found {
					a.printFinding(f)
				}
			}
			if err == nil && failed {
				err = silentExit(exitFailed)
			}
			return err
		},
	}
	return a.listing(c)
}

func (a *app) printFinding(f finding) {
	where := f.What
	if f.Bottle != "" {
		where = f.Bottle + ": " + f.What
	}
	fmt.Fprintf(a.out, "%-8s %s", f.State, prompt.Text(where))
	if f.Detail != "" {
		fmt.Fprintf(a.out, ": %s", prompt.Text(f.Detail))
	}
	fmt.Fprintln(a.out)
	if f.Fix != "" {
		fmt.Fprintf(a.out, "         fix: %s\n", prompt.Text(f.Fix))
	}
}

// verdict is ok without an error, else failed with the fix.
func verdict(where, what string, err error, good, fix string) finding {
	if err != nil {
		return finding{Bottle: where, What: what, State: "failed", Detail: err.Error(), Fix: fix}
	}
	return finding{Bottle: where, What: what, State: "ok", Detail: good}
}

func (a *app) machine(ctx context.Context) []finding {
	var out []finding
	for _, name := range []string{"bottle-sidecars", "bottle-supervise", "bottle-mcp"} {
		var err error
		path := findBinary(name)
		if path == "" {
			err = errors.New("not found beside bottle or in PATH")
		}
		out = append(out, verdict("", name, err, path, "build it with make build, or put it beside bottle"))
	}
	abi, err := landlockABI()
	out = append(out, verdict("", "Landlock", err, fmt.Sprintf("ABI %d", abi),
		"use a kernel of 5.13 or later with landlock among its LSMs; the daemons are kept apart by it"))
	st, err := os.Stat(a.set.StateDir)
	if err == nil {
		_, err = os.ReadDir(a.set.StateDir)
	}
	switch {
	case os.IsNotExist(err):
		out = append(out, finding{What: "state directory", State: "ok", Detail: a.set.StateDir + " (the first start makes it)"})
	case err != nil:
		out = append(out, verdict("", "state directory", err, "", "make it a directory that you can read, or name another with --state-dir"))
	case st.Mode().Perm()&0o022 != 0:
		out = append(out, finding{What: "state directory", State: "failed", Detail: fmt.Sprintf("%s has mode %v: others can replace what is in it", a.set.StateDir, st.Mode().Perm()), Fix: "chmod go-w " + a.set.StateDir})
	default:
		out = append(out, finding{What: "state directory", State: "ok", Detail: a.set.StateDir})
	}
	for _, f := range launch.CheckSandbox(ctx) {
		out = append(out, finding{What: f.What, State: f.State, Detail: f.Detail, Fix: f.Fix})
	}
	return append(out, engine(ctx))
}

// engine looks whether bottles could run on docker. It is no failure if they can't: who runs
// them on this machine needs no engine.
func engine(ctx context.Context) finding {
	f := finding{What: "container engine", State: "ok"}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	cli, err := launch.NewEngine()
	if err != nil {
		f.Detail = "none, which --backend docker alone needs: " + err.Error()
		return f
	}
	defer cli.Close()
	v, err := cli.ServerVersion(ctx)
	if err != nil {
		f.Detail = "none, which --backend docker alone needs: " + err.Error()
		return f
	}
	f.Detail = v.Version
	if _, err := cli.ImageInspect(ctx, bundleImage); err != nil {
		f.Detail += ", without the image " + bundleImage + ", which --backend docker needs: bottle image build makes it"
	}
	return f
}

func examine(ctx context.Context, dir *bottle.Dir) []finding {
	name := dir.Name()
	m, err := dir.LoadMetadata()
	if err != nil {
		return []finding{verdict(name, "metadata", err, "", "use the bottle version that wrote it, or remove "+dir.Path())}
	}
	var out []finding
	r, err := audit.Verify(dir.Audit(), dir.AuditHead())
	if err == nil && len(r.Faults) > 0 {
		err = fmt.Errorf("%d faults, the first: %s", len(r.Faults), r.Faults[0].Problem)
	}
	out = append(out, verdict(name, "audit trail", err, fmt.Sprintf("%d lines, whole", r.Lines), "bottle audit --verify lists them; somebody or something wrote to "+dir.Audit()))
	_, problems, err := queue.NewReader(dir).Records(ctx)
	if err == nil && len(problems) > 0 {
		err = fmt.Errorf("%d files were passed over, the first: %w", len(problems), problems[0])
	}
	out = append(out, verdict(name, "records", err, "", "look at the files; bottle never writes such"))
	if left, _ := os.ReadDir(dir.Journal()); len(left) > 0 {
		out = append(out, finding{Bottle: name, What: "journal", State: "warning", Detail: fmt.Sprintf("%d changes were interrupted, or are under way", len(left)), Fix: "the keeper settles them at its start; so does bottle restart " + name})
	}
	if !m.StoppedAt.IsZero() {
		return append(out, finding{Bottle: name, What: "status", State: "ok", Detail: "stopped"})
	}
	b := describe(ctx, dir)
	status := finding{Bottle: name, What: "status", State: "ok", Detail: b.Status}
	if b.Status != "ready" {
		status.State, status.Fix = "failed", "bottle restart "+name+" (its log: bottle logs "+name+")"
	}
	out = append(out, status)
	if b.Status == "down" {
		return out
	}
	if st, err := keep.ReadStatus(dir); err == nil && b.Status != "unattended" {
		for _, p := range st.Problems {
			out = append(out, finding{Bottle: name, What: "keeper", State: "warning", Detail: p, Fix: "bottle logs " + name + " has more"})
		}
	}
	for _, file := range []string{bottle.RoutesFile, bottle.PipelockFile} {
		f := readFileState(dir, file)
		var err error
		switch {
		case f.Problem != "":
			err = errors.New(f.Problem)
		case f.InForce != f.Revision:
			err = fmt.Errorf("the file is at %s, but %s is in force", f.Revision.Short(), f.InForce.Short())
		}
		out = append(out, verdict(name, file, err, f.Revision.Short()+" in force", "bottle "+editName(file)+" looks at it; bottle restart "+name+" loads it"))
	}
	if m.Backend == backendDocker {
		return out // the socket is in the containers' memory; that supervise serves it is part of ready
	}
	return append(out, verdict(name, "MCP socket", dialSocket(ctx, dir.MCPSocket()), dir.MCPSocket(), "bottle restart "+name))
}

func dialSocket(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return err
	}
	return conn.Close()
}

// landlockABI asks the kernel for its version of Landlock.
func landlockABI() (int, error) {
	abi, err := ll.LandlockGetABIVersion()
	if err != nil || abi < 1 {
		return 0, errors.Join(errors.New("this kernel has none"), err)
	}
	return abi, nil
}
