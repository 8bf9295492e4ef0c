package pipelocktest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Times of the real one.
const (
	debounce  = 100 * time.Millisecond // after the last change of the file
	sameAgain = 2 * time.Second        // in which what was loaded last is not loaded again
)

// A reloader is how the real one takes a new config (internal/config/reload.go and
// internal/cli/runtime/server.go there), channels and all: one goroutine reads the file at each
// signal or change, and puts what it read into a channel of one; another takes from it and
// needs a while to put that in force. What is read while the channel is full is dropped,
// and so the file that is in force can be older than the newest.
type reloader struct {
	path    string
	proxy   *proxy
	time    time.Duration
	watch   bool
	changes chan *settings

	last   string // the hash that was put in force last, by the second goroutine alone
	lastAt time.Time
}

func newReloader(path string, p *proxy, k knobs) *reloader {
	return &reloader{path: path, proxy: p, time: k.reloadTime, watch: !k.noWatch, changes: make(chan *settings, 1)}
}

// start handles SIGHUP and SIGUSR1 from here on. The caller calls stop, which waits for both goroutines.
func (r *reloader) start(ctx context.Context) (stop func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	closeWatch := func() {}
	var events chan fsnotify.Event
	if r.watch {
		w, err := fsnotify.NewWatcher()
		if err == nil {
			err = w.Add(filepath.Dir(r.path))
		}
		if err != nil {
			cancel()
			return nil, fmt.Errorf("watching directory of %s: %w", r.path, err)
		}
		events, closeWatch = w.Events, func() { _ = w.Close() }
	}
	hup, usr1 := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	signal.Notify(usr1, syscall.SIGUSR1)
	var both sync.WaitGroup
	both.Go(func() { r.read(ctx, hup, usr1, events) })
	both.Go(func() { r.apply(ctx) })
	return func() { cancel(); both.Wait(); closeWatch() }, nil
}

func (r *reloader) read(ctx context.Context, hup, usr1 <-chan os.Signal, events <-chan fsnotify.Event) {
	var calm <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-events:
			if ok && filepath.Base(e.Name) == filepath.Base(r.path) && (e.Has(fsnotify.Write) || e.Has(fsnotify.Create) || e.Has(fsnotify.Rename)) {
				calm = time.After(debounce)
			}
			continue
		case <-usr1:
			on := !r.proxy.killed.Load()
			r.proxy.killed.Store(on)
			fmt.Fprintf(os.Stderr, "pipelock: kill switch %s via SIGUSR1\n", map[bool]string{true: "ACTIVATED", false: "DEACTIVATED"}[on])
			continue
		case <-calm:
			calm = nil
		case <-hup:
		}
		s, err := load(r.path)
		if err != nil {
			fmt.Fprintf(os.Stderr, "pipelock: config reload failed: %v\n", err)
			continue
		}
		select {
		case r.changes <- s:
		default:
		}
	}
}

func (r *reloader) apply(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-r.changes:
			err := r.put(ctx, s)
			for range 2 { // so does the real one
				if err != nil {
					emit(line{Level: "error", Event: "error", Method: "CONFIG_RELOAD", Resource: r.path, Error: err.Error(), Message: "request error"})
				}
			}
		}
	}
}

// put puts s in force, or says why it is refused.
func (r *reloader) put(ctx context.Context, s *settings) error {
	old := r.proxy.settings.Load()
	if !old.ForwardProxy.Enabled && s.ForwardProxy.Enabled {
		return errors.New("rejected: forward proxy cannot be enabled via reload (requires restart)")
	}
	if s.hash == r.last && time.Since(r.lastAt) < sameAgain {
		return nil
	}
	worse := downgrades(old, s)
	for _, w := range worse {
		fmt.Fprintf(os.Stderr, "WARNING: config reload: %s - %s\n", w[0], w[1])
	}
	if old.Mode == strict && len(worse) > 0 {
		return errors.New("rejected: security downgrade from strict mode")
	}
	select {
	case <-time.After(r.time):
	case <-ctx.Done():
		return nil
	}
	r.proxy.settings.Store(s)
	emit(line{Level: "info", Event: "config_reload", Status: "success", Detail: "mode=" + s.Mode, ConfigHash: s.hash, Message: "configuration reloaded"})
	r.last, r.lastAt = s.hash, time.Now()
	return nil
}

// A line of the log, its fields in the real one's order.
type line struct {
	Level      string    `json:"level"`
	Component  string    `json:"component"`
	Event      string    `json:"event"`
	Status     string    `json:"status,omitempty"`
	Detail     string    `json:"detail,omitempty"`
	Method     string    `json:"method,omitempty"`
	Resource   string    `json:"resource,omitempty"`
	Target     string    `json:"target,omitempty"`
	Error      string    `json:"error,omitempty"`
	Reason     string    `json:"reason,omitempty"`
	Listen     string    `json:"listen,omitempty"`
	Mode       string    `json:"mode,omitempty"`
	Version    string    `json:"version,omitempty"`
	ConfigHash string    `json:"config_hash,omitempty"`
	Time       time.Time `json:"time"`
	Message    string    `json:"message"`
}

// emit writes a line to standard output, in one write, so that lines do not mix.
func emit(l line) {
	l.Component, l.Time = "pipelock", time.Now().UTC().Truncate(time.Second)
	b, err := json.Marshal(l)
	if err != nil { // strings and a time
		return
	}
	_, _ = os.Stdout.Write(append(b, '\n'))
}
