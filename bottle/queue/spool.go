package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"bottle/bottle"
)

const (
	maxKeys   = 8   // idempotency keys that a request remembers
	maxKey    = 128 // bytes of one
	maxAnswer = 1 << 20
	// growth is what a request's file may grow by after it was accepted: attempts and keys.
	growth = maxKeys*(maxKey+3) + 256
)

// SpoolConfig says where a Spool's directories are and what its bounds are.
type SpoolConfig struct {
	Requests  string // required: directory, written here
	Cancels   string // required: directory, written here
	Decisions string // required: directory, read only

	MaxPending int              // undecided requests at a time; 0 means bottle.MaxPending
	PerMinute  int              // submissions in any minute, joined ones too; 0 means bottle.MaxPerMinute
	MaxKept    int              // requests in all, the oldest that came to an end go first; 0 means 10,000
	Now        func() time.Time // nil means time.Now
	Logger     *slog.Logger     // nil discards
}

// A Spool is the bundle's side of the queue. It is the only writer of its requests, and
// safe for concurrent use.
type Spool struct {
	cfg   SpoolConfig
	watch *watch

	mu       sync.Mutex
	requests map[string]*bottle.Request // by UUID; replaced, never changed
	answers  map[string]*bottle.Answer  // the last ones read
	shorts   map[string]string          // short ID -> UUID, of the answers
	keys     map[string]string          // idempotency key -> UUID
	open     map[string]bool            // UUIDs not known to be decided
	leaving  map[string]bool            // UUIDs whose cancel is under way
	recent   []time.Time                // submissions of the last minute
}

// NewSpool reads what earlier processes left in the directories and starts to watch the
// decisions. Files there that are no requests are passed over. Close must be called.
func NewSpool(cfg SpoolConfig) (*Spool, error) {
	switch {
	case cfg.Requests == "":
		return nil, errors.New("spool: Requests is required")
	case cfg.Cancels == "":
		return nil, errors.New("spool: Cancels is required")
	case cfg.Decisions == "":
		return nil, errors.New("spool: Decisions is required")
	}
	if cfg.MaxPending <= 0 {
		cfg.MaxPending = bottle.MaxPending
	}
	if cfg.PerMinute <= 0 {
		cfg.PerMinute = bottle.MaxPerMinute
	}
	if cfg.MaxKept <= 0 {
		cfg.MaxKept = 10_000
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Spool{
		cfg:      cfg,
		requests: map[string]*bottle.Request{},
		answers:  map[string]*bottle.Answer{},
		shorts:   map[string]string{},
		keys:     map[string]string{},
		open:     map[string]bool{},
		leaving:  map[string]bool{},
	}
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	s.watch = newWatch(cfg.Decisions, cfg.Logger)
	return s, nil
}

// Close ends the watch and every Wait. Requests stay as they are on disk.
func (s *Spool) Close() error { return s.watch.close() }

func (s *Spool) load() error {
	names, _, err := readNames(s.cfg.Requests)
	if err != nil {
		return err
	}
	for _, name := range names {
		id, ok := idOf(name)
		if !ok {
			continue
		}
		var r bottle.Request
		err := bottle.ReadJSON(filepath.Join(s.cfg.Requests, name), bottle.MaxRequestBytes, &r)
		if err == nil && r.ID != id {
			err = fmt.Errorf("it names request %q: %w", r.ID, bottle.ErrCorrupt)
		}
		if err != nil {
			s.cfg.Logger.Warn("passing over a file in the queue", "file", name, "error", err)
			continue
		}
		s.keep(&r)
		s.open[id] = true
	}
	names, _, err = readNames(s.cfg.Cancels)
	if err != nil {
		return err
	}
	for _, name := range names {
		if id, ok := idOf(name); ok {
			s.leaving[id] = true
		}
	}
	for id := range s.requests {
		s.refresh(id)
	}
	// The window of the rate limit survives a restart as far as the files tell: the first
	// and the last attempt of each request.
	since := s.cfg.Now().Add(-time.Minute)
	for _, r := range s.requests {
		if r.CreatedAt.After(since) {
			s.recent = append(s.recent, r.CreatedAt)
		}
		if r.Attempts > 1 && r.LastAt.After(since) {
			s.recent = append(s.recent, r.LastAt)
		}
	}
	slices.SortFunc(s.recent, time.Time.Compare)
	return nil
}

// keep makes r the request of its ID.
func (s *Spool) keep(r *bottle.Request) {
	s.requests[r.ID] = r
	for _, k := range r.Keys {
		s.keys[k] = r.ID
	}
}

// Submit files an ask, durably, and returns its ticket. An ask that is pending already is
// joined: its ticket is returned with Joined set, and counts one attempt more. A key that
// was seen before returns its ticket and counts nothing; an empty key is none.
//
// Errors name the field or the bound and wrap [bottle.ErrInvalid] or [bottle.ErrLimit].
func (s *Spool) Submit(ctx context.Context, ask bottle.Ask, key string) (bottle.Ticket, error) {
	if err := ctx.Err(); err != nil {
		return bottle.Ticket{}, err
	}
	if len(key) > maxKey {
		return bottle.Ticket{}, fmt.Errorf("idempotency key: %d bytes; use at most %d: %w", len(key), maxKey, bottle.ErrInvalid)
	}
	ask, err := ask.Canonical()
	if err != nil {
		return bottle.Ticket{}, err
	}
	digest := ask.Digest()

	s.mu.Lock()
	defer s.mu.Unlock()
	if id, ok := s.keys[key]; ok && key != "" {
		s.refresh(id)
		return s.ticket(id), nil
	}
	now := s.cfg.Now().UTC()
	if err := s.admit(now); err != nil {
		return bottle.Ticket{}, err
	}
	for id := range s.open {
		s.refresh(id)
	}
	if id := s.pending(digest); id != "" {
		return s.join(id, key, now)
	}
	if n := len(s.open); n >= s.cfg.MaxPending {
		return bottle.Ticket{}, fmt.Errorf("pending requests: %d wait for the operator, and at most %d may; wait for a decision (wait_for_decision) or cancel one (cancel_request): %w",
			n, s.cfg.MaxPending, bottle.ErrLimit)
	}
	id, err := uuid.NewV7()
	if err != nil {
		return bottle.Ticket{}, fmt.Errorf("new request id: %w", err)
	}
	r := &bottle.Request{Schema: bottle.Schema, ID: id.String(), Ask: ask, CreatedAt: now, Attempts: 1, LastAt: now}
	if key != "" {
		r.Keys = []string{key}
	}
	if err := s.write(r, bottle.MaxRequestBytes-growth); err != nil {
		return bottle.Ticket{}, err
	}
	s.open[r.ID] = true
	s.recent = append(s.recent, now)
	s.prune()
	return s.ticket(r.ID), nil
}

// prune forgets the oldest of the requests that came to an end, when there are too many.
// The host keeps its records of them.
func (s *Spool) prune() {
	over := len(s.requests) - s.cfg.MaxKept
	if over <= 0 {
		return
	}
	for _, id := range slices.Sorted(maps.Keys(s.requests)) { // UUIDv7 begins with the time
		if over == 0 {
			return
		}
		a := s.answers[id]
		if a == nil || !a.Status.Final() {
			continue
		}
		name := id + ext
		if err := os.Remove(filepath.Join(s.cfg.Requests, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.cfg.Logger.Warn("can't forget an old request", "request", id, "error", err)
			return
		}
		_ = os.Remove(filepath.Join(s.cfg.Cancels, name)) // of no effect any more
		for _, k := range s.requests[id].Keys {
			delete(s.keys, k)
		}
		delete(s.shorts, a.Short)
		delete(s.answers, id)
		delete(s.requests, id)
		over--
	}
}

// admit applies the rate limit. What is refused does not count.
func (s *Spool) admit(now time.Time) error {
	since := now.Add(-time.Minute)
	s.recent = slices.DeleteFunc(s.recent, func(t time.Time) bool { return !t.After(since) || t.After(now.Add(time.Minute)) })
	if len(s.recent) < s.cfg.PerMinute {
		return nil
	}
	wait := s.recent[0].Sub(since).Round(time.Second)
	return fmt.Errorf("submissions: %d in the last minute, and at most %d may be; try again in %s, and put several entries into one request: %w",
		len(s.recent), s.cfg.PerMinute, max(wait, time.Second), bottle.ErrLimit)
}

// pending returns the request that asks the same and can still be joined.
func (s *Spool) pending(digest bottle.Hash) string {
	for id := range s.open {
		if !s.leaving[id] && s.ticket(id).Status() == bottle.Pending && s.requests[id].Ask.Digest() == digest {
			return id
		}
	}
	return ""
}

func (s *Spool) join(id, key string, now time.Time) (bottle.Ticket, error) {
	r := *s.requests[id]
	r.Attempts++
	r.LastAt = now
	if key != "" {
		r.Keys = append(slices.Clone(r.Keys), key)
		if drop := len(r.Keys) - maxKeys; drop > 0 {
			for _, k := range r.Keys[:drop] {
				delete(s.keys, k)
			}
			r.Keys = r.Keys[drop:]
		}
	}
	if err := s.write(&r, bottle.MaxRequestBytes); err != nil {
		return bottle.Ticket{}, err
	}
	s.recent = append(s.recent, now)
	t := s.ticket(id)
	t.Joined = true
	return t, nil
}

// write makes the request durable, then known.
func (s *Spool) write(r *bottle.Request, limit int) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("request: %w", err)
	}
	if len(b) >= limit {
		return fmt.Errorf("request: %d bytes, and at most %d are kept; ask for less at a time: %w", len(b), limit, bottle.ErrLimit)
	}
	if err := bottle.WriteFile(filepath.Join(s.cfg.Requests, r.ID+ext), append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("file the request: %w", err)
	}
	s.keep(r)
	return nil
}
