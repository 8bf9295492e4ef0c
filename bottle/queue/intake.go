package queue

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"bottle/bottle"
	"bottle/bottle/audit"
)

// Intake does what the queue asks for: it gives new requests a short ID and a record,
// takes over attempts, cancels what the agent withdrew, notices requests that were changed
// after first sight, and finishes what a killed process left. It returns the records that
// are new, and whatever was passed over. The error joins what could not be done; all else
// was.
func (d *Desk) Intake(ctx context.Context) ([]*bottle.Record, []Problem, error) {
	dir, names, err := d.openRecords()
	if err != nil {
		return nil, nil, err
	}
	defer dir.Close()
	var errs []error
	errs = append(errs, d.finishAll(ctx, names))
	rows, problems, err := d.load(ctx)
	if err != nil {
		return nil, nil, err
	}
	errs = append(errs, d.tellAgain(ctx, rows))

	p := pass{Desk: d, ctx: ctx, now: d.cfg.Now().UTC(), byID: make(map[string]*row, len(rows)), problems: problems}
	for _, r := range rows {
		p.byID[r.ID] = r
		p.last = max(p.last, r.number)
		if r.Status == bottle.Pending {
			p.pending++
		}
		if r.firstSeen.After(p.now.Add(-time.Minute)) {
			p.recent++
		}
	}
	for _, pr := range problems { // a damaged record still has its name
		if pr.Request != "" {
			p.byID[pr.Request] = nil
			p.last = max(p.last, shortNumber(pr.Short))
		}
	}
	if p.ledger, err = d.readLedger(); err != nil {
		return nil, p.problems, errors.Join(append(errs, err)...)
	}
	errs = append(errs, p.requests(), p.cancels(), p.ledger.save(d))
	return p.seen, p.ledger.problems(p.problems), errors.Join(errs...)
}

// A pass is one Intake.
type pass struct {
	*Desk
	ctx     context.Context
	now     time.Time
	byID    map[string]*row // nil: a record that can't be read
	last    int             // the highest short ID
	pending int
	recent  int // first seen in the last minute
	ledger  *ledger

	seen     []*bottle.Record
	problems []Problem
}

func (p *pass) problem(file, id string, err error) {
	pr := Problem{File: file, Request: id, Err: err}
	if r := p.byID[id]; r != nil {
		pr.Short = r.Short
	}
	p.problems = append(p.problems, pr)
}

// maxLooks bounds how many unknown files one pass opens.
const maxLooks = 1000

func (p *pass) requests() error {
	names, more, err := readNames(p.dir.Requests())
	if err != nil {
		return fmt.Errorf("queue: %w", err)
	}
	if more {
		p.problem("queue/requests", "", fmt.Errorf("more than %d files; the rest is not looked at: %w", maxNames, bottle.ErrLimit))
	}
	p.ledger.forget(names, p.byID)
	slices.Sort(names) // UUIDv7: the oldest first
	var fresh []bottle.Request
	var errs []error
	waiting, looks := 0, 0
	for _, name := range names {
		id, ok := idOf(name)
		switch row, known := p.byID[id]; {
		case strings.HasPrefix(name, "."): // a file on its way in
		case p.ledger.refused(name):
		case !ok:
			errs = append(errs, p.refuse(name, "", fmt.Errorf("not named after a request: %w", bottle.ErrCorrupt)))
		case known && (row == nil || row.Status != bottle.Pending):
		case known:
			errs = append(errs, p.again(row, name))
		case p.pending+len(fresh) >= p.cfg.MaxPending || p.recent+len(fresh) >= max(bottle.MaxPerMinute, p.cfg.MaxPending):
			waiting++
		case looks == maxLooks:
		default:
			looks++
			req, err := readRequest(filepath.Join(p.dir.Requests(), name), id)
			switch {
			case err == nil:
				fresh = append(fresh, req)
			case errors.Is(err, fs.ErrNotExist):
			case isContent(err):
				errs = append(errs, p.refuse(name, id, err))
			default: // a newer bundle, an unreadable disk: may be different next time
				p.problem("queue/requests/"+name, id, err)
			}
		}
	}
	if waiting > 0 {
		p.problem("queue/requests", "", fmt.Errorf("%d more requests wait until others are decided; an honest bundle files no more than %d at a time: %w",
			waiting, p.cfg.MaxPending, bottle.ErrLimit))
	}
	return errors.Join(append(errs, p.admit(fresh))...)
}

// isContent reports whether a file will be as bad the next time.
func isContent(err error) bool {
	return errors.Is(err, bottle.ErrCorrupt) || errors.Is(err, bottle.ErrInvalid) || errors.Is(err, bottle.ErrLimit)
}

// readRequest reads a file of the queue and judges it as if nobody had before: a hijacked
// bundle writes what it wants.
func readRequest(path, id string) (bottle.Request, error) {
	var r bottle.Request
	if err := bottle.ReadJSON(path, bottle.MaxRequestBytes, &r); err != nil {
		return r, err
	}
	bad := func(format string, args ...any) error {
		return fmt.Errorf("request: %s: %w", fmt.Sprintf(format, args...), bottle.ErrInvalid)
	}
	switch {
	case r.ID != id:
		return r, bad("its id is %q", clip(r.ID))
	case r.Attempts < 1:
		return r, bad("attempts is %d", r.Attempts)
	case len(r.Keys) > maxKeys || slices.ContainsFunc(r.Keys, func(k string) bool { return len(k) > maxKey }):
		return r, bad("keys are too many or too long")
	}
	c, err := r.Ask.Canonical()
	if err != nil {
		return r, err
	}
	got, err1 := json.Marshal(r.Ask)
	want, err2 := json.Marshal(c)
	if err := errors.Join(err1, err2); err != nil {
		return r, bad("%v", err)
	}
	if !bytes.Equal(got, want) {
		return r, bad("not in canonical form")
	}
	// What is kept is our own encoding of what was understood.
	r.Ask, r.CreatedAt, r.LastAt, r.Keys = c, r.CreatedAt.UTC(), r.LastAt.UTC(), nil
	return r, nil
}

// admit gives new requests their short IDs and records.
func (p *pass) admit(fresh []bottle.Request) error {
	for _, req := range fresh {
		// The number is taken, durably, before it is used. So none is used twice.
		next := 0
		err := p.dir.UpdateMetadata(func(m *bottle.Metadata) error {
			next = max(m.NextShort, p.last+1)
			m.NextShort = next + 1
			return nil
		})
		if err != nil {
			return fmt.Errorf("take a short ID: %w", err)
		}
		p.last = next
		rec := &bottle.Record{
			Schema: bottle.Schema, Short: shortName(next), Request: req, First: req.FirstDigest(),
			FirstSeen: p.now, ExpiresAt: p.now.Add(p.cfg.PendingTTL),
		}
		ev := bottle.Event{
			Name: string(audit.RequestSeen), Request: req.ID, Short: rec.Short, Change: req.ID,
			Digest: rec.First, After: asked(req.Ask.Add), Before: asked(req.Ask.Remove), Detail: req.Ask.Reason,
		}
		err = p.commit(p.ctx, rec, ev)
		if _, statErr := stampOf(p.recordPath(rec)); statErr == nil {
			p.byID[req.ID] = p.rowOf(rec)
			p.pending++
			p.seen = append(p.seen, rec)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func asked(entries []bottle.Entry) map[string][]string {
	if len(entries) == 0 {
		return nil
	}
	var lines []string
	for _, e := range entries {
		lines = append(lines, e.Lines()...)
	}
	return map[string][]string{"asked": lines}
}

// rowOf is for a record that was changed in this pass; load makes the one that is kept.
func (p *pass) rowOf(rec *bottle.Record) *row {
	return &row{Listing: listingOf(p.dir.Name(), rec), name: recordName(rec.Short, rec.Request.ID)}
}

// again looks at the file of a request that is pending already.
func (p *pass) again(row *row, name string) error {
	rec, err := readRecord(filepath.Join(p.dir.Records(), row.name), row.name)
	if err != nil {
		return err
	}
	req, err := readRequest(filepath.Join(p.dir.Requests(), name), row.ID)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil // the record is what counts
	case err != nil && !isChange(err):
		p.problem("queue/requests/"+name, row.ID, err)
		return nil
	case err != nil || req.FirstDigest() != rec.First:
		return p.tampered(p.ctx, rec, name, err, p.ledger)
	}
	// An honest bundle counts 30 a minute; more are taken over together.
	if req.Attempts <= rec.Request.Attempts || p.now.Sub(p.joined[row.ID]).Abs() < time.Second {
		return nil
	}
	rec.Request.Attempts, rec.Request.LastAt = req.Attempts, req.LastAt
	err = p.commit(p.ctx, rec, bottle.Event{
		Name: string(audit.RequestJoined), Request: row.ID, Short: row.Short,
		Change: fmt.Sprintf("%s/%d", row.ID, req.Attempts),
		Detail: fmt.Sprintf("asked %d times", req.Attempts),
	})
	if err == nil {
		p.joined[row.ID] = p.now
	}
	return err
}

func (p *pass) cancels() error {
	names, more, err := readNames(p.dir.Cancels())
	if err != nil {
		return fmt.Errorf("queue: %w", err)
	}
	if more {
		p.problem("queue/cancels", "", fmt.Errorf("more than %d files; the rest is not looked at: %w", maxNames, bottle.ErrLimit))
	}
	var errs []error
	for _, name := range names {
		id, ok := idOf(name)
		row := p.byID[id]
		if !ok || row == nil || row.Status != bottle.Pending {
			continue // of no effect
		}
		var c cancel
		err := bottle.ReadJSON(filepath.Join(p.dir.Cancels(), name), 4096, &c)
		if err == nil && c.ID != id {
			err = fmt.Errorf("it names request %q: %w", clip(c.ID), bottle.ErrCorrupt)
		}
		if err != nil {
			p.problem("queue/cancels/"+name, id, err)
			continue
		}
		rec, err := readRecord(filepath.Join(p.dir.Records(), row.name), row.name)
		if err == nil {
			err = p.end(p.ctx, rec, bottle.Cancelled, nil, bottle.Event{Name: string(audit.Cancelled), Detail: "by the agent"})
		}
		if err != nil && !errors.Is(err, bottle.ErrState) {
			errs = append(errs, err)
			continue
		}
		p.byID[id] = p.rowOf(rec)
		delete(p.joined, id)
	}
	return errors.Join(errs...)
}
