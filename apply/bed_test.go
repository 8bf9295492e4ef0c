package apply_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"bottle/apply"
	"bottle/bottle"
	"bottle/bottle/audit"
	"bottle/bottle/pipelock"
	"bottle/bottle/queue"
)

var (
	operator = bottle.Actor{UID: 1000, Name: "operator"}
	session  = bottle.Duration{Kind: bottle.Session}
	creds    = map[string]bottle.Credential{"example": {Header: "Authorization", TokenEnv: "EXAMPLE_TOKEN", Hosts: []bottle.Host{"api.example.com"}}}
)

// The routes that every bottle here starts with, an operator's comments among them.
const baseRoutes = `# what the agent may reach
routes:
  - host: a.example.com     # ours
    ports: [443]
  # reading only
  - host: b.example.com
    matches:
      - path: {type: PathPrefix, value: /v1}
        method: GET
`

// A bed is a bottle in a directory, with the real queue and audit log, and a bundle that is a goroutine.
type bed struct {
	tb      testing.TB
	dir     *bottle.Dir
	log     *audit.Log
	desk    *queue.Desk
	bundle  *bundle
	applier *apply.Applier
}

type bedConfig struct {
	root   string           // empty: a new directory
	noInit bool             // the directory has a bottle already
	down   bool             // no bundle
	now    func() time.Time // of the desk
	adjust func(*apply.Config)
}

func newBed(tb testing.TB, cfg bedConfig) *bed {
	tb.Helper()
	if cfg.root == "" {
		cfg.root = filepath.Join(tb.TempDir(), "b")
	}
	dir, err := bottle.NewDir(cfg.root)
	must(tb, err)
	b := &bed{tb: tb, dir: dir}
	if !cfg.noInit {
		must(tb, dir.Create())
		sealed, _ := bottle.Seal([]byte(baseRoutes))
		must(tb, bottle.WriteFile(dir.Routes(), sealed, 0o600))
		doc, err := bottle.ParseRoutes(sealed)
		must(tb, err)
		lock, err := pipelock.Codec{}.SetAllowlist(nil, bottle.Allowlist(doc.Routes()))
		must(tb, err)
		must(tb, bottle.WriteFile(dir.Pipelock(), lock, 0o600))
	}
	b.open(cfg)
	return b
}

// open starts what a process has of a bottle.
func (b *bed) open(cfg bedConfig) {
	b.tb.Helper()
	var err error
	b.log, err = audit.Open(audit.Config{Path: b.dir.Audit(), HeadPath: b.dir.AuditHead()})
	must(b.tb, err)
	trail := queue.AuditTrail{Log: b.log}
	b.desk, err = queue.NewDesk(queue.DeskConfig{Dir: b.dir, Trail: trail, Now: cfg.now})
	must(b.tb, err)
	b.bundle = newBundle(b.dir, cfg.down)
	b.tb.Cleanup(func() { b.close() })
	b.applier = b.newApplier(cfg.adjust)
}

// newApplier is another process's; nil adjusts nothing.
func (b *bed) newApplier(adjust func(*apply.Config)) *apply.Applier {
	b.tb.Helper()
	ac := apply.Config{
		Dir: b.dir, Records: b.desk, Trail: queue.AuditTrail{Log: b.log}, Signaler: b.bundle, Pipelock: pipelock.Codec{}, Credentials: creds,
		BaseRoutes: func() ([]bottle.Route, error) {
			doc, err := bottle.ParseRoutes([]byte(baseRoutes))
			if err != nil {
				return nil, err
			}
			return doc.Routes(), nil
		},
	}
	if adjust != nil {
		adjust(&ac)
	}
	a, err := apply.New(ac)
	must(b.tb, err)
	return a
}

func (b *bed) close() {
	b.bundle.stop()
	if err := b.log.Close(); err != nil {
		b.tb.Error(err)
	}
}

// ask puts a request through the queue, as the agent and the host's intake do.
func (b *bed) ask(ask bottle.Ask) *bottle.Record {
	b.tb.Helper()
	ctx := context.Background()
	spool, err := queue.NewSpool(queue.SpoolConfig{Requests: b.dir.Requests(), Cancels: b.dir.Cancels(), Decisions: b.dir.Decisions(), MaxPending: 1000, PerMinute: 10000})
	must(b.tb, err)
	ticket, err := spool.Submit(ctx, ask, "")
	must(b.tb, err)
	must(b.tb, spool.Close())
	_, problems, err := b.desk.Intake(ctx)
	must(b.tb, err)
	if len(problems) > 0 {
		b.tb.Fatal(problems)
	}
	rec, err := b.desk.Find(ctx, ticket.Request.ID)
	must(b.tb, err)
	return rec
}

// intent is the request as asked, granted for d.
func (b *bed) intent(rec *bottle.Record, d bottle.Duration) apply.Intent {
	b.tb.Helper()
	in, err := apply.FromRecord(rec, d)
	must(b.tb, err)
	return in
}

// approve previews and says yes.
func (b *bed) approve(rec *bottle.Record, in apply.Intent) (apply.Outcome, error) {
	b.tb.Helper()
	p, err := b.applier.Preview(context.Background(), in)
	must(b.tb, err)
	return b.applier.Approve(context.Background(), rec, in, operator, p.Digest, "")
}

func (b *bed) grant(host string, d bottle.Duration) *bottle.Record {
	b.tb.Helper()
	rec := b.ask(bottle.Ask{Add: entries(host), Reason: "work"})
	_, err := b.approve(rec, b.intent(rec, d))
	must(b.tb, err)
	return rec
}

func (b *bed) read(file string) []byte {
	b.tb.Helper()
	out, err := os.ReadFile(b.dir.Path("etc", file))
	must(b.tb, err)
	return out
}

func (b *bed) routes() []bottle.Route {
	b.tb.Helper()
	doc, err := bottle.ParseRoutes(b.read(bottle.RoutesFile))
	must(b.tb, err)
	return doc.Routes()
}

func (b *bed) hosts() string {
	b.tb.Helper()
	list, err := pipelock.Codec{}.Allowlist(b.read(bottle.PipelockFile))
	must(b.tb, err)
	var s []string
	for _, e := range list {
		s = append(s, string(e.Host))
	}
	return strings.Join(s, " ")
}

func (b *bed) record(id string) *bottle.Record {
	b.tb.Helper()
	rec, err := b.desk.Find(context.Background(), id)
	must(b.tb, err)
	return rec
}

// events returns the names of the audit lines, in order, but for those of the queue.
func (b *bed) events() string {
	b.tb.Helper()
	lines, err := audit.Read(b.dir.Audit(), 1, 0)
	must(b.tb, err)
	var s []string
	for _, l := range lines {
		if l.Event != audit.RequestSeen {
			s = append(s, string(l.Event))
		}
	}
	return strings.Join(s, " ")
}

func entries(hosts ...string) []bottle.Entry {
	var out []bottle.Entry
	for _, h := range hosts {
		host, path, ok := strings.Cut(h, "/")
		e := bottle.Entry{Host: bottle.Host(host)}
		if ok {
			e.Matches = []bottle.Match{{Path: &bottle.PathMatch{Type: bottle.PathPrefix, Value: "/" + path}}}
		}
		out = append(out, e)
	}
	return out
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// A bundle does what init and the daemons do with signals, in one goroutine: it publishes what verifies, and says what
// is in force.
type bundle struct {
	dir     *bottle.Dir
	signals chan bottle.Signal
	done    chan struct{}

	mu      sync.Mutex
	down    bool
	refuse  map[string]string // file -> what its daemon says to any new revision
	hang    map[string]bool   // file -> its daemon never looks at it
	drop    int               // so many signals are lost
	sent    []bottle.Signal
	init    bottle.InitStatus
	daemons map[string]*bottle.DaemonStatus
	stopped bool
	stops   int  // how often the host stopped init
	silent  bool // init.json is no longer its own
	deaf    bool // signals can't be sent
}

var _ apply.Signaler = (*bundle)(nil)

// Stop is the host's: the bundle is gone whatever it says.
func (b *bundle) Stop(context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stops++
	b.down = true
	return nil
}

// mute takes the bundle's word away: init says nothing any more.
func (b *bundle) mute() {
	b.set(func(b *bundle) { b.silent = true })
	if err := os.RemoveAll(b.dir.InitStatus()); err != nil {
		panic(err)
	}
}

// restart is what the keeper does: a new init on the files as they are, which writes its status anew.
func (b *bundle) restart() {
	b.set(func(b *bundle) {
		b.down, b.silent, b.deaf, b.drop = false, false, false, 0
		clear(b.hang)
		b.daemons = map[string]*bottle.DaemonStatus{}
		b.init.Files = map[string]bottle.MountedFile{}
	})
	for file := range daemonOf {
		b.load(file, false)
	}
}

var daemonOf = map[string]string{bottle.RoutesFile: bottle.DaemonEgress, bottle.PipelockFile: bottle.DaemonPipelock}

func newBundle(dir *bottle.Dir, down bool) *bundle {
	b := &bundle{
		dir: dir, down: down, signals: make(chan bottle.Signal, 64), done: make(chan struct{}),
		refuse: map[string]string{}, hang: map[string]bool{}, daemons: map[string]*bottle.DaemonStatus{},
		init: bottle.InitStatus{Schema: 1, Ready: true, PID: os.Getpid(), Files: map[string]bottle.MountedFile{}},
	}
	if !down {
		for file := range daemonOf {
			if err := os.MkdirAll(filepath.Dir(dir.Live(file)), 0o700); err != nil {
				panic(err)
			}
			b.load(file, false)
		}
	}
	go func() {
		defer close(b.done)
		for s := range b.signals {
			b.handle(s)
		}
	}()
	return b
}

func (b *bundle) stop() {
	b.mu.Lock()
	stopped := b.stopped
	b.stopped = true
	b.mu.Unlock()
	if !stopped {
		close(b.signals)
	}
	<-b.done
}

func (b *bundle) Running(context.Context) (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.down, nil
}

func (b *bundle) Signal(ctx context.Context, s bottle.Signal) error {
	b.mu.Lock()
	b.sent = append(b.sent, s)
	down, lost := b.down || b.stopped || b.deaf, b.drop > 0
	if lost {
		b.drop--
	}
	b.mu.Unlock()
	switch {
	case down:
		return errors.New("no such process")
	case lost:
		return nil
	}
	select {
	case b.signals <- s:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (b *bundle) handle(s bottle.Signal) {
	switch s {
	case bottle.SignalReload:
		b.load(bottle.RoutesFile, false)
	case bottle.SignalRestartEgress:
		b.load(bottle.RoutesFile, true)
	case bottle.SignalReloadPipelock:
		b.load(bottle.PipelockFile, false)
	case bottle.SignalReplacePipelock, bottle.SignalRestartPipelock:
		b.load(bottle.PipelockFile, true)
	}
}

// load verifies and publishes a file, then has its daemon take it. A daemon that is started anew neither hangs nor
// remembers what it refused.
func (b *bundle) load(file string, anew bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f := b.init.Files[file]
	path := b.dir.Path("etc", file)
	if st, err := os.Stat(path); err == nil {
		if sys, ok := st.Sys().(*syscall.Stat_t); ok && f.Ino == 0 { // a mount stays on the inode that it was made of
			f.Dev, f.Ino = sys.Dev, sys.Ino
		}
	}
	var published bottle.Hash
	content, err := bottle.ReadFile(path, 1<<20)
	if err == nil {
		published, err = bottle.CheckSeal(content)
	}
	if err == nil {
		err = os.WriteFile(b.dir.Live(file), content, 0o600)
	}
	if err != nil {
		f.Refused = &bottle.Refusal{Error: err.Error(), At: time.Now()}
	} else {
		f.Published, f.Refused = published, nil
	}
	b.init.Files[file] = f
	if !b.silent {
		b.write(b.dir.InitStatus(), b.init)
	}

	d := b.daemons[file]
	if d == nil || anew {
		d = &bottle.DaemonStatus{Schema: 1, Daemon: daemonOf[file], PID: os.Getpid()}
		b.daemons[file] = d
	} else if b.hang[file] {
		return
	}
	if why := b.refuse[file]; why != "" && d.Revision != "" && d.Revision != f.Published {
		d.Refused = &bottle.Refusal{Revision: f.Published, Error: why, At: time.Now()}
	} else if f.Published != "" {
		d.Revision, d.Refused, d.LoadedAt = f.Published, nil, time.Now()
	}
	b.write(b.dir.DaemonStatus(d.Daemon), d)
}

func (b *bundle) write(path string, v any) {
	if err := bottle.WriteStatus(path, v); err != nil && !errors.Is(err, syscall.EFBIG) { // limitFiles' full disk: then it says nothing
		panic(err)
	}
}

func (b *bundle) set(change func(*bundle)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change(b)
}

func (b *bundle) inForce(file string) bottle.Hash {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.daemons[file].Revision
}

func (b *bundle) signalled() []bottle.Signal {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]bottle.Signal(nil), b.sent...)
}
