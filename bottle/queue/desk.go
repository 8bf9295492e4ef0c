package queue

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"bottle/bottle"
	"bottle/bottle/audit"
)

// DeskConfig says whose requests a Desk handles.
type DeskConfig struct {
	Dir        *bottle.Dir      // required
	Trail      Trail            // required: without an audit nothing is decided
	PendingTTL time.Duration    // after which an undecided request expires; 0 means bottle.PendingTTL
	MaxPending int              // undecided requests taken in; 0 means bottle.MaxPending
	Now        func() time.Time // nil means time.Now
	Logger     *slog.Logger     // nil discards
}

// A Desk is the host's side of the queue. The methods that it does not have from Reader
// change the state: callers hold the bottle's lock ([bottle.Dir.Lock]), and do not share a
// Desk between goroutines. There may be any number of Desks, in any number of processes.
type Desk struct {
	*Reader
	cfg    DeskConfig
	joined map[string]time.Time // when attempts were last taken over
}

// NewDesk returns the desk of a bottle.
func NewDesk(cfg DeskConfig) (*Desk, error) {
	switch {
	case cfg.Dir == nil:
		return nil, errors.New("desk: Dir is required")
	case cfg.Trail == nil:
		return nil, errors.New("desk: Trail is required")
	}
	if cfg.PendingTTL <= 0 {
		cfg.PendingTTL = bottle.PendingTTL
	}
	if cfg.MaxPending <= 0 {
		cfg.MaxPending = bottle.MaxPending
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Desk{Reader: NewReader(cfg.Dir), cfg: cfg, joined: map[string]time.Time{}}, nil
}

// Deny ends a pending request with a note to the agent. If the request is decided already
// the error is a [bottle.ErrState] that says by whom. rec becomes what is on disk, in
// either case.
func (d *Desk) Deny(ctx context.Context, rec *bottle.Record, by bottle.Actor, note string) error {
	if len(note) > bottle.MaxReason {
		return fmt.Errorf("note: %d bytes; at most %d: %w", len(note), bottle.MaxReason, bottle.ErrLimit)
	}
	now := d.cfg.Now().UTC()
	return d.end(ctx, rec, bottle.Denied, &bottle.Decision{By: by, At: now, Note: note}, bottle.Event{Name: string(audit.Denied), By: &by, Detail: note})
}

// ExpirePending ends the requests that nobody decided in time, and returns them.
func (d *Desk) ExpirePending(ctx context.Context) ([]*bottle.Record, error) {
	now := d.cfg.Now()
	recs, _, err := d.read(ctx, func(row *row) bool { return row.Status == bottle.Pending && !now.Before(row.ExpiresAt) })
	if err != nil {
		return nil, err
	}
	var out []*bottle.Record
	var errs []error
	for _, rec := range recs {
		err := d.end(ctx, rec, bottle.Expired, nil, bottle.Event{Name: string(audit.Expired), Detail: "undecided since " + rec.FirstSeen.UTC().Format(time.RFC3339)})
		switch {
		case err == nil:
			out = append(out, rec)
		case !errors.Is(err, bottle.ErrState): // else it was decided meanwhile
			errs = append(errs, err)
		}
	}
	return out, errors.Join(errs...)
}

// end moves a pending request to a status that nothing follows.
func (d *Desk) end(ctx context.Context, rec *bottle.Record, to bottle.Status, dec *bottle.Decision, ev bottle.Event) error {
	now, err := d.current(ctx, rec)
	if err != nil {
		return err
	}
	*rec = *now
	if err := now.Transition(to, d.cfg.Now()); err != nil {
		return d.lost(rec, err)
	}
	now.Decision = dec
	ev.Request, ev.Short, ev.Outcome = rec.Request.ID, rec.Short, string(to)
	ev.Change = rec.Request.ID // a request ends but once
	if err := d.commit(ctx, now, ev); err != nil {
		return err
	}
	*rec = *now
	return nil
}

// lost says who was quicker.
func (d *Desk) lost(rec *bottle.Record, err error) error {
	if rec.Decision == nil {
		return err
	}
	return fmt.Errorf("%w (since %s, by %s)", err, rec.State.Since().Format(time.RFC3339), rec.Decision.By.Who())
}

// Save makes a record durable, then the answer that the bundle reads. It is for those who
// make transitions of their own and audit them: the status on disk must be rec's, or one
// that rec's can follow, else somebody else was quicker and the error is a
// [bottle.ErrState]. Of two who decide at once, one wins.
//
// An approval of a request whose file in the queue is no longer what was first seen is
// refused with [bottle.ErrTampered]. Only the transition to approved is such: what came of
// an approval (applied or failed) is a fact, which may be saved of a request that is still
// pending here because its approver was killed, and which nothing of the bundle can bar.
func (d *Desk) Save(ctx context.Context, rec *bottle.Record) error {
	now, err := d.current(ctx, rec)
	if err != nil {
		return err
	}
	if rec.First != now.First || rec.Request.FirstDigest() != now.First {
		return fmt.Errorf("request %s: not what was first seen: %w", now.Short, bottle.ErrTampered)
	}
	from, to := now.State.Status(), rec.State.Status()
	if from == to {
		if !rec.State.Since().Equal(now.State.Since()) || !sameDecision(rec.Decision, now.Decision) {
			return d.lost(now, fmt.Errorf("request %s is %s already: %w", now.Short, from, bottle.ErrState))
		}
	} else {
		next := *now
		if from == bottle.Pending && (to == bottle.Applied || to == bottle.Failed) && rec.Decision != nil {
			if err := next.Transition(bottle.Approved, rec.Decision.At); err != nil {
				return err
			}
		}
		if err := next.Transition(to, rec.State.Since()); err != nil {
			return d.lost(now, err)
		}
	}
	if from == bottle.Pending && to == bottle.Approved {
		if err := d.untouched(ctx, now); err != nil {
			return err
		}
	}
	// Attempts may have been taken over since rec was read.
	if now.Request.Attempts > rec.Request.Attempts {
		rec.Request.Attempts, rec.Request.LastAt = now.Request.Attempts, now.Request.LastAt
	}
	if err := bottle.WriteJSON(d.recordPath(rec), rec); err != nil {
		return err
	}
	return d.answer(rec)
}

func sameDecision(a, b *bottle.Decision) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.By == b.By && a.At.Equal(b.At) && a.Digest == b.Digest
}

// current returns the record as it is on disk, after finishing what was left under way.
func (d *Desk) current(ctx context.Context, rec *bottle.Record) (*bottle.Record, error) {
	if err := d.finish(ctx, rec.Request.ID); err != nil {
		return nil, err
	}
	name := recordName(rec.Short, rec.Request.ID)
	now, err := readRecord(filepath.Join(d.dir.Records(), name), name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("request %s: it has no record: %w", rec.Short, bottle.ErrNotFound)
	}
	return now, err
}

func (d *Desk) recordPath(rec *bottle.Record) string {
	return d.dir.Path("records", recordName(rec.Short, rec.Request.ID))
}

// An intent is a record's file before it has its name, and the event that makes it so.
// The event stays in the record's file, where a Record passes over it.
type intent struct {
	*bottle.Record
	Event bottle.Event `json:"event"`
}

const intentExt = ".intent"

func (d *Desk) intentPath(id string) string { return d.dir.Path("records", id+intentExt) }

// commit makes a transition: written down, audited, made, told. An error before the audit
// leaves all as it was. After it, the transition stands, or will (see [Desk.finish]).
func (d *Desk) commit(ctx context.Context, rec *bottle.Record, ev bottle.Event) error {
	path := d.intentPath(rec.Request.ID)
	if err := bottle.WriteJSON(path, intent{rec, ev}); err != nil {
		return err
	}
	if _, err := d.cfg.Trail.RecordOnce(ctx, ev); err != nil {
		err = fmt.Errorf("request %s stays as it was, for it could not be audited: %w", rec.Short, err)
		return errors.Join(err, os.Remove(path), bottle.SyncDir(d.dir.Records()))
	}
	return d.settle(path, rec)
}

// settle gives an audited intent its name; a rename needs no space on a full disk.
func (d *Desk) settle(path string, rec *bottle.Record) error {
	if err := os.Rename(path, d.recordPath(rec)); err != nil {
		return fmt.Errorf("request %s: %w", rec.Short, err)
	}
	if err := bottle.SyncDir(d.dir.Records()); err != nil {
		return fmt.Errorf("request %s: %w", rec.Short, err)
	}
	return d.answer(rec)
}

// answer tells the bundle. The answer is derived from the record, and written again by
// [Desk.Intake] if this fails.
func (d *Desk) answer(rec *bottle.Record) error {
	if err := bottle.WriteJSON(filepath.Join(d.dir.Decisions(), rec.Request.ID+ext), rec.Answer()); err != nil {
		return fmt.Errorf("request %s is %s, but the agent could not be told yet: %w", rec.Short, rec.State.Status(), err)
	}
	return nil
}

// finish completes the commit of a request that was killed on its way, if there is one.
func (d *Desk) finish(ctx context.Context, id string) error {
	path := d.intentPath(id)
	b, err := bottle.ReadFile(path, maxRecord)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	in := intent{Record: &bottle.Record{}}
	if err := bottle.DecodeJSON(path, b, &in); err != nil {
		return err
	}
	if in.Request.ID != id || shortNumber(in.Short) == 0 {
		return fmt.Errorf("read %s: it names request %q: %w", path, clip(in.Request.ID), bottle.ErrCorrupt)
	}
	if _, err := d.cfg.Trail.RecordOnce(ctx, in.Event); err != nil {
		return fmt.Errorf("request %s: finish what was begun: %w", in.Short, err)
	}
	return d.settle(path, in.Record)
}

// finishAll completes every commit that was killed on its way.
func (d *Desk) finishAll(ctx context.Context, names []string) error {
	var errs []error
	for _, name := range names {
		if id, ok := strings.CutSuffix(name, intentExt); ok && isID(id) {
			errs = append(errs, d.finish(ctx, id))
		}
	}
	return errors.Join(errs...)
}

// tellAgain compares answers with records, once for each state of a record, and writes
// those that are missing or old: their writer was killed, or the disk was full.
func (d *Desk) tellAgain(ctx context.Context, rows []*row) error {
	rows = slices.DeleteFunc(slices.Clone(rows), func(r *row) bool { return r.told })
	errs := make([]error, len(rows))
	err := parallel(ctx, len(rows), 64, func(i int) {
		rec, err := readRecord(filepath.Join(d.dir.Records(), rows[i].name), rows[i].name)
		if err == nil && !d.answered(rec) {
			err = d.answer(rec)
		}
		errs[i] = err
	})
	if err != nil {
		return err
	}
	var told []*row
	for i, r := range rows {
		if errs[i] == nil {
			told = append(told, r)
		}
	}
	d.markTold(told)
	return errors.Join(errs...)
}

func (d *Desk) answered(rec *bottle.Record) bool {
	b, err := bottle.ReadFile(filepath.Join(d.dir.Decisions(), rec.Request.ID+ext), maxAnswer)
	if err != nil {
		return false
	}
	want, err := json.Marshal(rec.Answer())
	return err == nil && bytes.Equal(append(want, '\n'), b)
}
