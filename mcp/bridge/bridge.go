package bridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"
)

// Bounds and times.
const (
	MaxLine  = 1 << 20   // bytes of a line from the client; one from the bundle has at most four times that
	MaxCall  = 256 << 10 // bytes of a message that the bundle takes; longer ones are answered here
	MaxCalls = 256       // calls in flight, listens included

	// DefaultWait is how long a call waits for a bundle that is down: longer than a bundle takes to come
	// back on a slow machine (a container that is made anew, a keeper that is started again), shorter
	// than the minute after which the protocol's SDKs give a request up, so that the client learns why
	// there is no answer. Claude Code itself would wait for 30 minutes and more. A look at a task
	// waits that long at least, whatever [Config.Wait] says: nobody's turn is held up by it, while a
	// client that gets a few errors in a row gives the task up (Claude Code: five).
	DefaultWait = 45 * time.Second
	// helloWait is the most that a client's first message waits. Claude Code gives a server 30 s to
	// come up, and shows its user an error that it gets before.
	helloWait = 25 * time.Second
	// lateWait is the most for a call that comes when the bundle has been down for longer than it would
	// have waited: enough for one more dial.
	lateWait = 2 * maxBackoff

	drainTime = time.Second // for answers in flight after the end of the input
	maxSends  = 8           // of one call: one that the bundle dies of isn't sent for ever
)

// Config says what is bridged.
type Config struct {
	In     io.ReadCloser                               // required: the client's lines; closed when Run's context ends
	Out    io.Writer                                   // required: lines for the client
	Dial   func(ctx context.Context) (net.Conn, error) // required: connects to the bundle
	Wait   time.Duration                               // for a bundle that is down; 0: [DefaultWait]
	Logger *slog.Logger                                // nil: none
}

// A Bridge is one client's way to the bundle.
type Bridge struct {
	in     io.ReadCloser
	out    io.Writer
	dial   func(ctx context.Context) (net.Conn, error)
	wait   time.Duration
	log    *slog.Logger
	wake   chan struct{} // capacity 1: a call is newly held
	failed chan struct{} // closed when the client takes no more lines
	empty  chan struct{} // closed when the input has ended and all is answered

	outMu  sync.Mutex
	outErr error

	// order is held from the decision to send something to the bundle until it is written, so
	// that a cancellation can't overtake its call. It is taken before mu, which no I/O holds.
	order sync.Mutex

	mu          sync.Mutex
	link        *link            // nil: there is no bundle, or it was not told all yet
	down        time.Time        // since when link is nil
	why         string           // it is
	calls       map[string]*call // by idKey: in flight
	count       uint64           // of calls so far
	session     []byte           // the initialize that was answered; nil: none
	initialized []byte           // the notification that followed it
	ended       bool             // the input
}

// New returns a bridge that is ready to run.
func New(cfg Config) (*Bridge, error) {
	switch {
	case cfg.In == nil || cfg.Out == nil:
		return nil, errors.New("bridge: config: in or out is missing; give the client's streams")
	case cfg.Dial == nil:
		return nil, errors.New("bridge: config: dial is missing; say how to reach the bundle")
	case cfg.Wait < 0:
		return nil, errors.New("bridge: config: wait is negative; use 0 for the default")
	}
	b := &Bridge{
		in: cfg.In, out: cfg.Out, dial: cfg.Dial, wait: cfg.Wait, log: cfg.Logger,
		wake: make(chan struct{}, 1), failed: make(chan struct{}), empty: make(chan struct{}),
		calls: map[string]*call{}, down: time.Now(), why: "it was not reached yet",
	}
	if b.wait == 0 {
		b.wait = DefaultWait
	}
	if b.log == nil {
		b.log = slog.New(slog.DiscardHandler)
	}
	return b, nil
}

// Run bridges until the input ends, and then waits a second at most for answers in flight. A
// bundle that is down is no error. The errors are those of the client's streams, and ctx's.
func (b *Bridge) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var background sync.WaitGroup
	defer background.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = b.in.Close() })
	defer stop()
	background.Go(func() { b.keepLinked(ctx) })
	background.Go(func() { b.expireHeld(ctx) })
	background.Go(func() {
		select {
		case <-b.failed:
			cancel()
		case <-ctx.Done():
		}
	})

	err := b.read()
	if ctx.Err() == nil && errors.Is(err, io.EOF) {
		b.drain(ctx)
	}
	b.outMu.Lock()
	defer b.outMu.Unlock()
	switch {
	case b.outErr != nil:
		return fmt.Errorf("bridge: the client takes no answers: %w", b.outErr)
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, io.EOF):
		return nil
	}
	return fmt.Errorf("bridge: read from the client: %w", err)
}

// read takes the client's lines until they end.
func (b *Bridge) read() error {
	lines := newLineReader(b.in, MaxLine)
	for {
		line, err := lines.next()
		switch {
		case errors.Is(err, errLongLine):
			b.emit(rpcError(nil, codeInvalidRequest, fmt.Sprintf("message longer than %d bytes; send less in one request", MaxLine)))
		case err != nil:
			return err
		default:
			b.fromClient(line)
		}
	}
}

func (b *Bridge) drain(ctx context.Context) {
	b.mu.Lock()
	b.ended = true
	b.checkEmpty()
	b.mu.Unlock()
	select {
	case <-b.empty:
	case <-time.After(drainTime):
	case <-ctx.Done():
	}
}

// checkEmpty is called with mu held, after each change that could leave no call unanswered.
func (b *Bridge) checkEmpty() {
	if !b.ended {
		return
	}
	for _, k := range b.calls {
		if !k.listen() {
			return
		}
	}
	select {
	case <-b.empty:
	default:
		close(b.empty)
	}
}

// fromClient takes one message of the client's.
func (b *Bridge) fromClient(line []byte) {
	env, fault := parse(line)
	key, valid := idKey(env.ID)
	switch {
	case fault != nil:
		b.emit(fault)
	case env.Method == "" && valid:
		b.pass(line) // an answer, to what the bundle asked
	case env.JSONRPC != version || env.Method == "" || env.ID != nil && !valid:
		if !valid {
			env.ID = nil
		}
		b.emit(rpcError(env.ID, codeInvalidRequest, `not a JSON-RPC 2.0 message: it needs "jsonrpc": "2.0", a method, and an id that is a string or a number`))
	case env.ID != nil:
		b.called(newCall(key, env, line))
	case env.Method == "notifications/cancelled":
		b.cancelled(env, line)
	default:
		b.notified(env, line)
	}
}

// called sends the call, or holds it until there is a bundle.
func (b *Bridge) called(k *call) {
	b.order.Lock()
	defer b.order.Unlock()
	var to *link
	var refusal string
	b.mu.Lock()
	switch {
	case b.calls[k.key] != nil:
		refusal = "a call with this id is in flight; give each call its own"
	case len(b.calls) >= MaxCalls:
		refusal = fmt.Sprintf("%d calls are in flight; wait for one to end", MaxCalls)
	case len(k.line) > MaxCall:
		refusal = fmt.Sprintf("message longer than %d bytes; send less in one request", MaxCall)
	default:
		b.count++
		k.number = b.count
		b.calls[k.key] = k
		if to = b.link; to != nil {
			k.sentOn(to)
		} else {
			b.hold(k)
		}
	}
	b.mu.Unlock()
	switch {
	case refusal != "":
		b.emit(rpcError(k.id, codeUnavailable, refusal))
	case to != nil:
		_ = to.write(k.line)
	}
}

// cancelled forgets the call, and tells the bundle if that knows of it.
func (b *Bridge) cancelled(env envelope, line []byte) {
	key, ok := idKey(env.Params.RequestID)
	if !ok {
		return
	}
	b.order.Lock()
	defer b.order.Unlock()
	b.mu.Lock()
	k := b.calls[key]
	// initialize must not be cancelled (2025-11-25, basic/utilities/cancellation).
	if k == nil || k.method == methodInitialize {
		b.mu.Unlock()
		return
	}
	delete(b.calls, key)
	b.checkEmpty()
	to := k.link
	b.mu.Unlock()
	if to != nil {
		_ = to.write(line)
	}
}

func (b *Bridge) notified(env envelope, line []byte) {
	b.order.Lock()
	defer b.order.Unlock()
	b.mu.Lock()
	to := b.link
	if env.Method == "notifications/initialized" {
		b.initialized = line
		if to != nil {
			to.greeted = true
		}
	}
	b.mu.Unlock()
	if to != nil {
		_ = to.write(line)
	}
}

// pass sends on what nobody waits for, if there is a bundle.
func (b *Bridge) pass(line []byte) {
	b.order.Lock()
	defer b.order.Unlock()
	b.mu.Lock()
	to := b.link
	b.mu.Unlock()
	if to != nil {
		_ = to.write(line)
	}
}

// emit writes one line to the client. Once that fails nothing more is written.
func (b *Bridge) emit(line []byte) {
	b.outMu.Lock()
	defer b.outMu.Unlock()
	if b.outErr != nil {
		return
	}
	if _, b.outErr = b.out.Write(append(bytes.Clone(line), '\n')); b.outErr != nil {
		close(b.failed)
	}
}
