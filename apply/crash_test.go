package apply_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"bottle/apply"
	"bottle/bottle"
	"bottle/bottle/audit"
	"bottle/bottle/pipelock"
	"bottle/bottle/queue"
)

// The crash test kills a child process with SIGKILL at a random step of a change, takes the state directory at that
// instant as several power cuts too, and lets recovery loose on each. BOTTLE_CRASH_ROUNDS says how often (200 if not
// set), BOTTLE_CRASH_SEED repeats a run.

// crashChild tells the child what to do; it is in its environment.
const crashChild = "BOTTLE_CRASH_CHILD"

type childOrder struct {
	Root  string
	Kind  string
	ID    string // of the request
	Kill  int    // before which step; -1 for none
	Chunk int    // bytes of a pwrite
}

func TestMain(m *testing.M) {
	if order := os.Getenv(crashChild); order != "" {
		if err := crashInChild(order); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		return // the parent looks at what is on disk, not at an exit code
	}
	m.Run()
}

// A crashKind is a change that is crashed.
type crashKind struct {
	name    string
	prepare func(b *bed) (id string)
	act     func(ctx context.Context, b *party, id string) error
	later   time.Duration // by which the clock is ahead when it acts
	refuse  string        // the file whose daemon refuses
	full    bool          // the disk, but for the reserve
	mute    bool          // init's status is gone
}

// A party is what acts on a bottle: in the child, or for the rehearsal in the parent.
type party struct {
	desk    *queue.Desk
	applier *apply.Applier
}

func asking(ask bottle.Ask) func(*bed) string {
	ask.Reason = "work"
	return func(b *bed) string { return b.ask(ask).Request.ID }
}

func approving(ctx context.Context, p *party, id string) error {
	rec, err := p.desk.Find(ctx, id)
	if err != nil {
		return err
	}
	in, err := apply.FromRecord(rec, session)
	if err != nil {
		return err
	}
	plan, err := p.applier.Preview(ctx, in)
	if err != nil {
		return err
	}
	_, err = p.applier.Approve(ctx, rec, in, operator, plan.Digest, "as you wish")
	return err
}

func crashKinds() []crashKind {
	ttl := bottle.Duration{Kind: bottle.TTL, TTL: time.Minute}
	return []crashKind{
		{name: "widening", prepare: asking(bottle.Ask{Add: entries("c.example.com", "d.example.com/x")}), act: approving},
		{name: "routes only", prepare: asking(bottle.Ask{Add: entries("b.example.com/v2"), TTLSeconds: 3600}), act: approving},
		{name: "narrowing", prepare: asking(bottle.Ask{Remove: entries("b.example.com")}), act: approving},
		{name: "mixed", prepare: asking(bottle.Ask{Remove: entries("b.example.com"), Add: entries("d.example.com")}), act: approving},
		{name: "refused", prepare: asking(bottle.Ask{Add: entries("c.example.com")}), act: approving, refuse: bottle.RoutesFile},
		{
			name: "revoke", prepare: func(b *bed) string { return b.grant("c.example.com", session).Request.ID },
			act: func(ctx context.Context, p *party, id string) error {
				_, err := p.applier.Revoke(ctx, id, operator)
				return err
			},
		},
		{
			name: "revoke on a full disk", prepare: func(b *bed) string { return b.grant("c.example.com", session).Request.ID }, full: true,
			act: func(ctx context.Context, p *party, id string) error {
				_, err := p.applier.Revoke(ctx, id, operator)
				return err
			},
		},
		{
			name: "revoke from a mute bundle", prepare: func(b *bed) string { return b.grant("c.example.com", session).Request.ID }, mute: true,
			act: func(ctx context.Context, p *party, id string) error {
				_, err := p.applier.Revoke(ctx, id, operator)
				if errors.Is(err, bottle.ErrUnconfirmed) {
					return nil
				}
				return err
			},
		},
		{
			name: "grant without a reserve", prepare: func(b *bed) string {
				id := b.ask(bottle.Ask{Add: entries("c.example.com"), Reason: "work"}).Request.ID
				must(b.tb, os.RemoveAll(b.dir.Path("reserve")))
				return id
			}, act: approving,
		},
		{
			name: "expire", prepare: func(b *bed) string { return b.grant("c.example.com", ttl).Request.ID }, later: time.Hour,
			act: func(ctx context.Context, p *party, _ string) error {
				_, err := p.applier.Expire(ctx)
				return err
			},
		},
		{
			name: "edit", prepare: func(b *bed) string { return b.grant("c.example.com", session).Request.ID },
			act: func(ctx context.Context, p *party, _ string) error {
				body := []byte("routes:\n  - host: e.example.com\n  - host: a.example.com\n    ports: [443]\n")
				plan, err := p.applier.PreviewEdit(ctx, bottle.RoutesFile, body)
				if err != nil {
					return err
				}
				_, err = p.applier.Edit(ctx, bottle.RoutesFile, body, operator, plan.Digest)
				return err
			},
		},
	}
}

func kindNamed(name string) (crashKind, error) {
	for _, k := range crashKinds() {
		if k.name == name {
			return k, nil
		}
	}
	return crashKind{}, fmt.Errorf("no kind %q", name)
}

// muteTimeout is how long a bundle that says nothing is waited for.
const muteTimeout = 50 * time.Millisecond

// pipeSignaler writes signals to the parent, where the bundle is.
type pipeSignaler struct{ w io.Writer }

func (pipeSignaler) Running(context.Context) (bool, error) { return true, nil }

func (p pipeSignaler) Signal(_ context.Context, s bottle.Signal) error {
	_, err := p.w.Write([]byte{byte(s)})
	return err
}

// Stop tells the parent with a byte that is no signal.
func (p pipeSignaler) Stop(context.Context) error {
	_, err := p.w.Write([]byte{stopByte})
	return err
}

const stopByte = 0xff

func crashInChild(text string) error {
	var o childOrder
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return err
	}
	kind, err := kindNamed(o.Kind)
	if err != nil {
		return err
	}
	dir, err := bottle.NewDir(o.Root)
	if err != nil {
		return err
	}
	log, err := audit.Open(audit.Config{Path: dir.Audit(), HeadPath: dir.AuditHead()})
	if err != nil {
		return err
	}
	trail := queue.AuditTrail{Log: log}
	p := &party{}
	spoil := func(c *apply.Config) {
		if kind.full {
			newFullDisk(dir.Path("reserve")).fill(c)
		}
		if kind.mute {
			c.ConfirmTimeout = muteTimeout
		}
	}
	if p.desk, err = queue.NewDesk(queue.DeskConfig{Dir: dir, Trail: trail}); err != nil {
		return err
	}
	cfg := crashConfig(dir, p.desk, trail, pipeSignaler{os.NewFile(3, "signals")}, kind.later)
	spoil(&cfg)
	var n atomic.Int64 // one step is beside the others
	cfg.Fault = func(step string) {
		if int(n.Add(1)) == o.Kill+1 {
			fmt.Fprint(os.Stderr, step)
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	if p.applier, err = apply.New(cfg); err != nil {
		return err
	}
	p.applier.SetChunk(o.Chunk)
	if kind.full {
		p.applier.SetWriteJSON(newFullDisk(dir.Path("reserve")).writeJSON)
	}
	return errors.Join(kind.act(context.Background(), p, o.ID), log.Close())
}

func crashConfig(dir *bottle.Dir, desk *queue.Desk, trail apply.Trail, s apply.Signaler, later time.Duration) apply.Config {
	return apply.Config{
		Dir: dir, Records: desk, Trail: trail, Signaler: s, Pipelock: pipelock.Codec{},
		ConfirmTimeout: 5 * time.Second,
		Now:            func() time.Time { return time.Now().Add(later) },
	}
}

// A template is a bottle just before a change, and the steps of that change.
type template struct {
	kind  crashKind
	root  string
	id    string
	steps int // of the change, each of which a kill may come before
}

func newTemplate(t *testing.T, root string, kind crashKind, chunk int) template {
	t.Helper()
	tm := template{kind: kind, root: filepath.Join(root, "template "+kind.name)}
	b := newBed(t, bedConfig{root: tm.root})
	tm.id = kind.prepare(b)
	b.close()

	rehearsal := filepath.Join(root, "rehearsal "+kind.name)
	must(t, copyTree(tm.root, rehearsal))
	var steps atomic.Int64
	b = newBed(t, bedConfig{root: rehearsal, noInit: true, adjust: func(c *apply.Config) {
		c.Now = func() time.Time { return time.Now().Add(kind.later) }
		c.Fault = func(string) { steps.Add(1) }
		if kind.full {
			newFullDisk(c.Dir.Path("reserve")).fill(c)
		}
		if kind.mute {
			c.ConfirmTimeout = muteTimeout
		}
	}})
	b.applier.SetChunk(chunk)
	if kind.full {
		b.applier.SetWriteJSON(newFullDisk(b.dir.Path("reserve")).writeJSON)
	}
	if kind.mute {
		b.bundle.mute()
	}
	if kind.refuse != "" {
		b.bundle.set(func(f *bundle) { f.refuse[kind.refuse] = "no" })
	}
	err := kind.act(t.Context(), &party{b.desk, b.applier}, tm.id)
	if (err != nil) != (kind.refuse != "") {
		t.Fatalf("%s: %v", kind.name, err)
	}
	b.close()
	tm.steps = int(steps.Load())
	return tm
}

func TestCrash(t *testing.T) {
	rounds := 200
	if s := os.Getenv("BOTTLE_CRASH_ROUNDS"); s != "" {
		n, err := strconv.Atoi(s)
		must(t, err)
		rounds = n
	}
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("BOTTLE_CRASH_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		must(t, err)
		seed = n
	}
	t.Logf("BOTTLE_CRASH_SEED=%d, %d rounds", seed, rounds)
	const chunk = 200
	root := crashRoot(t)
	var templates []template
	for _, k := range crashKinds() {
		templates = append(templates, newTemplate(t, root, k, chunk))
	}

	var mu sync.Mutex
	tally := map[string]int{}
	failed := false
	t.Run("round", func(t *testing.T) {
		for i := range rounds {
			t.Run(strconv.Itoa(i), func(t *testing.T) {
				t.Parallel()
				mu.Lock()
				enough := failed
				mu.Unlock()
				if enough {
					return
				}
				rnd := rand.New(rand.NewPCG(seed, uint64(i)))
				tm := templates[rnd.IntN(len(templates))]
				r := &crashRound{t: t, rnd: rnd, tm: tm, chunk: chunk, root: filepath.Join(root, strconv.Itoa(i)), kill: rnd.IntN(tm.steps + 1)}
				ended := r.run()
				mu.Lock()
				defer mu.Unlock()
				failed = failed || t.Failed()
				for _, s := range ended {
					tally[s]++
				}
				must(t, os.RemoveAll(r.root))
			})
		}
	})
	t.Logf("how they ended: %v", tally)
}

// crashRoot is a directory in memory if there is one: what is killed is a process and not the disk, and a round has
// dozens of fsyncs. (A socket's path must fit below it, so it is short.)
func crashRoot(t *testing.T) string {
	t.Helper()
	root, err := os.MkdirTemp("/dev/shm", "crash") //nolint:usetesting // in memory, which t.TempDir is not
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	return root
}

// copyTree copies the files of a state directory. A status file that its bundle just renamed is passed over.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d os.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		dst := filepath.Join(to, rel)
		if d.IsDir() {
			return os.MkdirAll(dst, 0o700)
		}
		content, err := os.ReadFile(path) //nolint:gosec // G122: a tree of our own making
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return os.WriteFile(dst, content, 0o600)
	})
}

// runChild starts the child and passes its signals on to the bundle until it is dead.
func (r *crashRound) runChild(b *bed) error {
	order, err := json.Marshal(childOrder{Root: r.root + "/live", Kind: r.tm.kind.name, ID: r.tm.id, Kill: r.kill, Chunk: r.chunk})
	if err != nil {
		return err
	}
	pr, pw, err := os.Pipe()
	if err != nil {
		return err
	}
	defer pr.Close()
	cmd := exec.CommandContext(r.t.Context(), os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), crashChild+"="+string(order))
	cmd.ExtraFiles = []*os.File{pw}
	stderr := &lockedBuffer{}
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		return errors.Join(err, pw.Close())
	}
	if err := pw.Close(); err != nil {
		return err
	}
	var buf [16]byte
	for {
		n, err := pr.Read(buf[:])
		for _, s := range buf[:n] {
			if s == stopByte {
				if err := b.bundle.Stop(r.t.Context()); err != nil {
					return err
				}
				continue
			}
			if err := b.bundle.Signal(r.t.Context(), bottle.Signal(s)); err != nil {
				return err
			}
		}
		if err != nil {
			break
		}
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.String() == "signal: killed" {
		r.step = stderr.String()
		r.name = fmt.Sprintf("%s, killed before %q", r.tm.kind.name, r.step)
		return nil
	}
	r.name = r.tm.kind.name + ", not killed"
	if err != nil || r.kill < r.tm.steps || (stderr.String() != "") != (r.tm.kind.refuse != "") {
		return fmt.Errorf("the child was not killed: %w %s", err, stderr)
	}
	return nil
}

type lockedBuffer struct {
	mu sync.Mutex
	b  []byte
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b = append(l.b, p...)
	return len(p), nil
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.b)
}
