package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/term"

	"bottle/apply"
	"bottle/bottle"
	"bottle/bottle/audit"
	"bottle/bottle/pipelock"
	"bottle/bottle/prompt"
	"bottle/bottle/queue"
)

// lockTimeout bounds how long a command waits for the bottle's lock: an apply takes at
// most a few confirmation time-outs.
const lockTimeout = 30 * time.Second

// A cell is one bottle, opened for a command.
type cell struct {
	name     string
	dir      *bottle.Dir
	manifest *bottle.Manifest
	log      *audit.Log
	trail    queue.AuditTrail
	desk     *queue.Desk
	apply    *apply.Applier
	backend  backend
	warn     io.Writer // the operator's standard error
}

// names lists the bottles of the state directory, or the one that --bottle names.
func (a *app) names() ([]string, error) {
	if a.bottle != "" {
		if err := bottle.CheckName(a.bottle); err != nil {
			return nil, usagef("--bottle: %w", err)
		}
		if _, err := os.Stat(filepath.Join(a.set.StateDir, a.bottle)); err != nil {
			return nil, fmt.Errorf("bottle %s: not in %s; bottle ls lists those that are: %w", a.bottle, a.set.StateDir, bottle.ErrNotFound)
		}
		return []string{a.bottle}, nil
	}
	return queue.Bottles(a.set.StateDir)
}

// oneName is the bottle that a command without an ID is about: --bottle, or the only one,
// or the only one that runs.
func (a *app) oneName() (string, error) {
	names, err := a.names()
	if err != nil {
		return "", err
	}
	switch len(names) {
	case 0:
		return "", fmt.Errorf("there is no bottle in %s; bottle start -f FILE makes one: %w", a.set.StateDir, bottle.ErrNotFound)
	case 1:
		return names[0], nil
	}
	running := slices.DeleteFunc(slices.Clone(names), func(name string) bool {
		dir, err := a.dirOf(name)
		if err != nil {
			return true
		}
		m, err := dir.LoadMetadata()
		return err != nil || !m.StoppedAt.IsZero()
	})
	if len(running) == 1 {
		return running[0], nil
	}
	return "", usagef("there are several bottles; say which with --bottle (%s)", strings.Join(names, ", "))
}

func (a *app) dirOf(name string) (*bottle.Dir, error) {
	if err := bottle.CheckName(name); err != nil {
		return nil, usageError{err}
	}
	return bottle.NewDir(filepath.Join(a.set.StateDir, name))
}

// open opens a bottle for commands that change it. Close it.
func (a *app) open(name string, logger *slog.Logger) (*cell, error) {
	dir, err := a.dirOf(name)
	if err != nil {
		return nil, err
	}
	meta, err := dir.LoadMetadata()
	if errors.Is(err, bottle.ErrNotFound) {
		return nil, neverStarted(name, "")
	}
	if err != nil {
		return nil, err
	}
	manifest, err := loadAccepted(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, neverStarted(name, meta.Manifest)
	}
	if err != nil {
		return nil, err
	}
	return a.assemble(dir, manifest, place{meta.Backend, meta.Unconfined}, logger)
}

// neverStarted is the error for a bottle that is not there, or whose first start failed before
// its manifest was accepted. file is what that start was given, if it is known.
func neverStarted(name, file string) error {
	return fmt.Errorf("bottle %s has never started; bottle start -f %s starts it: %w", name, cmp.Or(file, "FILE"), bottle.ErrNotFound)
}

// A place is where a bottle runs.
type place struct {
	backend    string
	unconfined bool // the agent; local backend alone
}

// loadAccepted reads the manifest as it was accepted at the last start.
func loadAccepted(dir *bottle.Dir) (*bottle.Manifest, error) {
	b, err := os.ReadFile(dir.Manifest())
	if err != nil {
		return nil, fmt.Errorf("read the accepted manifest: %w", err)
	}
	return parseManifest(b, dir.Manifest())
}

func parseManifest(b []byte, path string) (*bottle.Manifest, error) {
	home, err := os.UserHomeDir()
	if err != nil {
		return nil, err
	}
	return bottle.ParseManifest(b, path, os.LookupEnv, home)
}

func (a *app) assemble(dir *bottle.Dir, manifest *bottle.Manifest, at place, logger *slog.Logger) (*cell, error) {
	log, err := audit.Open(audit.Config{Path: dir.Audit(), HeadPath: dir.AuditHead(), Bottle: dir.Name()})
	if err != nil {
		return nil, err
	}
	c := &cell{name: dir.Name(), dir: dir, manifest: manifest, log: log, trail: queue.AuditTrail{Log: log}, warn: a.err}
	c.desk, err = queue.NewDesk(queue.DeskConfig{
		Dir: dir, Trail: c.trail, Logger: logger,
		PendingTTL: manifest.Approvals.PendingTTL, MaxPending: manifest.Approvals.MaxPending,
	})
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	c.backend, err = newBackend(at.backend, dir, manifest, at.unconfined, logger)
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	cfg := apply.Config{
		Dir: dir, Records: c.desk, Trail: c.trail, Signaler: c.backend, Pipelock: pipelock.Codec{},
		Credentials: manifest.Credentials,
		BaseRoutes:  func() ([]bottle.Route, error) { return ownRoutes(manifest), nil },
	}
	if manifest.Pipelock.Binary != "" {
		cfg.BasePipelock = func() ([]byte, error) { return pipelock.RealBase(manifest.Egress.AllowCIDRs) }
	}
	c.apply, err = apply.New(cfg)
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	return c, nil
}

func (c *cell) Close() error { return errors.Join(c.backend.Close(), c.log.Close()) }

// locked runs f under the bottle's lock.
func (c *cell) locked(ctx context.Context, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	unlock, err := c.dir.Lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return f()
}

// quiet is the logger of commands, whose output is for people.
func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// findBinary looks for a program of ours beside this one, then in PATH.
func findBinary(name string) string {
	if self, err := os.Executable(); err == nil {
		if p := filepath.Join(filepath.Dir(self), name); isExecutable(p) {
			return p
		}
	}
	p, err := exec.LookPath(name)
	if err != nil {
		return ""
	}
	return p
}

func isExecutable(p string) bool {
	st, err := os.Stat(p)
	return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
}

// operator is who runs this command: the uid from the kernel, and its name.
func operator() bottle.Actor {
	uid := os.Getuid()
	return bottle.Actor{UID: uid, Name: userName(uid)}
}

// userName is that of a user of this machine, or uid and the number.
func userName(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return u.Username
	}
	return "uid" + strconv.Itoa(uid)
}

// find looks a request up in the bottles that the command is about. An ID that fits in
// several is ambiguous.
func (a *app) find(ctx context.Context, id string) (*cell, *bottle.Record, error) {
	names, err := a.names()
	if err != nil {
		return nil, nil, err
	}
	var in []string
	for _, name := range names {
		dir, err := a.dirOf(name)
		if err != nil {
			continue // not a bottle's directory
		}
		_, err = queue.NewReader(dir).Find(ctx, id)
		if errors.Is(err, bottle.ErrAmbiguous) {
			return nil, nil, err
		}
		if err == nil {
			in = append(in, name)
		}
	}
	switch len(in) {
	case 0:
		return nil, nil, fmt.Errorf("there is no request %q; bottle requests --all lists those that there are: %w", clipID(id), bottle.ErrNotFound)
	case 1:
	default:
		return nil, nil, fmt.Errorf("%s is the ID of a request in each of %s; say which with --bottle: %w", id, strings.Join(in, ", "), bottle.ErrAmbiguous)
	}
	c, err := a.open(in[0], quiet())
	if err != nil {
		return nil, nil, err
	}
	rec, err := c.desk.Find(ctx, id)
	if err != nil {
		return nil, nil, errors.Join(err, c.Close())
	}
	return c, rec, nil
}

func clipID(id string) string {
	if len(id) > 40 {
		return id[:40] + "..."
	}
	return id
}

// view plans an offer and returns it as it would be shown, and approved, now.
func (c *cell) view(ctx context.Context, rec *bottle.Record, o prompt.Offer) (prompt.View, *apply.Plan) {
	v := prompt.View{Bottle: c.name, Record: rec, Now: time.Now(), Note: o.Note}
	if rec.State.Status() != bottle.Pending {
		return v, nil
	}
	plan, err := c.apply.Preview(ctx, intentOf(rec, o))
	if err != nil {
		v.Problem = plain(err.Error())
		return v, nil
	}
	v.Proposal = &plan.Proposal
	return v, plan
}

func intentOf(rec *bottle.Record, o prompt.Offer) apply.Intent {
	in := apply.Intent{Request: rec.Request.ID, Short: rec.Short, Kind: rec.Request.Ask.Kind, Duration: o.Duration, Reason: rec.Request.Ask.Reason}
	in.Add, in.Remove, in.Credential = o.Add, o.Remove, o.Credential
	return in
}

// offer is the ask with the bottle's default duration.
func (c *cell) offer(rec *bottle.Record) prompt.Offer {
	return prompt.OfferOf(rec.Request.Ask, c.manifest.Approvals.DefaultGrant)
}

// approve carries an offer out, and says what came of it.
func (c *cell) approve(ctx context.Context, rec *bottle.Record, o prompt.Offer, digest bottle.Hash) (string, error) {
	var out apply.Outcome
	err := c.onceUp(ctx, func() (err error) {
		out, err = c.apply.Approve(ctx, rec, intentOf(rec, o), operator(), digest, o.Note)
		return err
	})
	if err != nil {
		return "", err
	}
	msg := outcomeText(rec.Short, out)
	if o.Duration.Kind != bottle.Permanent {
		return msg, nil
	}
	lines, err := c.keepPermanent(ctx, rec.Short)
	if err != nil {
		return "", err
	}
	m, err := c.dir.LoadMetadata()
	if err != nil {
		return "", err
	}
	return msg + "\nit is kept for good; to have it in your own manifest too, add to egress.routes of " + m.Manifest + ":\n" + lines, nil
}

func outcomeText(short string, out apply.Outcome) string {
	s := fmt.Sprintf("%s %s in %s", short, cmp.Or(string(out.Status), "changed"), out.Took.Round(100*time.Microsecond))
	for _, f := range slices.Sorted(keysOf(out.Revision)) {
		s += fmt.Sprintf("\n  %s is at %s, confirmed in force", f, out.Revision[f].Short())
	}
	return s + strings.TrimRight("\n  "+out.Detail, "\n ")
}

func keysOf[K cmp.Ordered, V any](m map[K]V) func(yield func(K) bool) {
	return func(yield func(K) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// openTTY opens the terminal for a prompt. Without one the error says what to do instead.
func openTTY(instead string) (*os.File, error) {
	f, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil, usagef("there is no terminal to ask at; %s", instead)
	}
	return f, nil
}

func wantColor(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return false
	}
	return isTerminal(f)
}

// widthOf is the width of the terminal that w is, or 0.
func widthOf(w io.Writer) int {
	if f, ok := w.(*os.File); ok {
		if n, _, err := term.GetSize(int(f.Fd())); err == nil {
			return n
		}
	}
	return 0
}
