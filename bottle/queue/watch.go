package queue

import (
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
)

// backstop is how often waiters look for themselves: a watch may be refused (the kernel
// bounds them per user), overflow, or see nothing (some network and overlay mounts).
const backstop = time.Second

// A watch tells waiters that the file of an ID may have changed. One inotify watch and one
// goroutine serve any number of them.
type watch struct {
	log  *slog.Logger
	fsw  *fsnotify.Watcher // nil: the backstop alone
	done chan struct{}     // closed by close
	end  sync.WaitGroup
	once sync.Once

	mu      sync.Mutex
	waiters map[string]map[chan struct{}]bool
	some    chan struct{} // told when there is a first waiter
}

func newWatch(dir string, log *slog.Logger) *watch {
	w := &watch{
		log:     log,
		done:    make(chan struct{}),
		waiters: map[string]map[chan struct{}]bool{},
		some:    make(chan struct{}, 1),
	}
	fsw, err := fsnotify.NewWatcher()
	if err == nil {
		if err = fsw.Add(dir); err != nil {
			_ = fsw.Close()
			fsw = nil
		}
	}
	if err != nil {
		log.Warn("can't watch for decisions; looking every second instead", "dir", dir, "error", err)
	}
	w.fsw = fsw
	w.end.Go(w.run)
	return w
}

func (w *watch) close() error {
	w.once.Do(func() { close(w.done) })
	w.end.Wait()
	return nil
}

// join returns a channel that gets a value after each change of the ID's file.
func (w *watch) join(id string) (changed <-chan struct{}, leave func()) {
	ch := make(chan struct{}, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiters[id] == nil {
		w.waiters[id] = map[chan struct{}]bool{}
	}
	w.waiters[id][ch] = true
	select {
	case w.some <- struct{}{}:
	default:
	}
	return ch, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.waiters[id], ch)
		if len(w.waiters[id]) == 0 {
			delete(w.waiters, id)
		}
	}
}

func (w *watch) run() {
	var events <-chan fsnotify.Event
	var errs <-chan error
	if w.fsw != nil {
		defer w.fsw.Close()
		events, errs = w.fsw.Events, w.fsw.Errors
	}
	tick := time.NewTicker(backstop)
	defer tick.Stop()
	for {
		select {
		case <-w.done:
			return
		case <-w.some:
			tick.Reset(backstop)
		case <-tick.C:
			if !w.tellAll() { // nobody waits: sleep until somebody does
				tick.Stop()
			}
		case ev, ok := <-events:
			if !ok {
				events = nil
				continue
			}
			if id, ok := idOf(filepath.Base(ev.Name)); ok {
				w.tell(id)
			}
		case err, ok := <-errs:
			if !ok {
				errs = nil
				continue
			}
			w.log.Warn("watch for decisions", "error", err)
			w.tellAll()
		}
	}
}

func (w *watch) tell(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for ch := range w.waiters[id] {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// tellAll reports whether anybody waits.
func (w *watch) tellAll() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, chs := range w.waiters {
		for ch := range chs {
			select {
			case ch <- struct{}{}:
			default:
			}
		}
	}
	return len(w.waiters) > 0
}
