package queue

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"bottle/bottle"
	"bottle/bottle/audit"
)

// requestRefused is the audit event of a file that was not taken in.
const requestRefused = "request-refused"

// maxRefused bounds the ledger, and with it what a flood of damaged files can make the
// host keep and audit. What comes beyond it is passed over all the same.
const maxRefused = 100

// A ledger remembers, in records/refused.json, which files of queue/requests were refused,
// so that each is audited once and stays refused for as long as it is there.
type ledger struct {
	Schema int                `json:"schema"`
	Files  map[string]refusal `json:"files"` // by name in queue/requests

	changed bool
	over    int
}

type refusal struct {
	At       time.Time `json:"at"`
	Reason   string    `json:"reason"`
	Request  string    `json:"request,omitempty"`
	Short    string    `json:"short,omitempty"`
	Tampered bool      `json:"tampered,omitempty"`
}

const ledgerFile = "refused.json"

func (r *Reader) ledgerPath() string { return r.dir.Path("records", ledgerFile) }

func (r *Reader) readLedger() (*ledger, error) {
	l := &ledger{}
	err := bottle.ReadJSON(r.ledgerPath(), 0, l)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l.Schema = bottle.Schema
	if l.Files == nil {
		l.Files = map[string]refusal{}
	}
	return l, nil
}

func (l *ledger) save(d *Desk) error {
	if !l.changed {
		return nil
	}
	if err := bottle.WriteJSON(d.ledgerPath(), l); err != nil {
		return err
	}
	l.changed = false
	return nil
}

func (l *ledger) refused(name string) bool {
	_, ok := l.Files[name]
	return ok
}

// forget drops files that are gone, and requests that are decided. That a pending request
// was tampered with is never forgotten.
func (l *ledger) forget(names []string, byID map[string]*row) {
	if len(l.Files) == 0 {
		return
	}
	there := make(map[string]bool, len(names))
	for _, n := range names {
		there[n] = true
	}
	for n, r := range l.Files {
		row := byID[r.Request]
		decided := row != nil && row.Status != bottle.Pending
		if r.Tampered && decided || !r.Tampered && !there[n] {
			delete(l.Files, n)
			l.changed = true
		}
	}
}

func (l *ledger) problems(to []Problem) []Problem {
	for _, name := range slices.Sorted(maps.Keys(l.Files)) {
		r := l.Files[name]
		kind := bottle.ErrInvalid
		if r.Tampered {
			kind = bottle.ErrTampered
		}
		to = append(to, Problem{File: "queue/requests/" + name, Request: r.Request, Short: r.Short, Err: fmt.Errorf("%s: %w", r.Reason, kind)})
	}
	if l.over > 0 {
		to = append(to, Problem{File: "queue/requests", Err: fmt.Errorf("%d more files that are no requests: %w", l.over, bottle.ErrLimit)})
	}
	return to
}

// refuse remembers a file that is not taken in, and audits it. If it is named after a
// request, the bundle gets an answer, so that it does not wait for one.
func (p *pass) refuse(name, id string, why error) error {
	if len(p.ledger.Files) >= maxRefused {
		p.ledger.over++
		return nil
	}
	_, err := p.cfg.Trail.RecordOnce(p.ctx, bottle.Event{
		Name: requestRefused, Request: id, Change: "refused:" + string(bottle.Sum([]byte(name))),
		Outcome: "refused", Detail: fmt.Sprintf("queue/requests/%q: %v", name, why),
	})
	if err != nil {
		return err
	}
	p.ledger.Files[name] = refusal{At: p.now, Reason: why.Error(), Request: id}
	p.ledger.changed = true
	if id == "" {
		return nil
	}
	return bottle.WriteJSON(filepath.Join(p.dir.Decisions(), id+ext), bottle.Answer{
		Schema: bottle.Schema, ID: id, Status: bottle.Denied, UpdatedAt: p.now, Note: "the host did not take it in: " + why.Error(),
	})
}

// tampered remembers, and audits, that a pending request's file is no longer what was
// first seen.
func (d *Desk) tampered(ctx context.Context, rec *bottle.Record, name string, why error, l *ledger) error {
	reason := "changed after it was first seen; it can be denied, but not approved"
	if why != nil {
		reason += " (" + why.Error() + ")"
	}
	_, err := d.cfg.Trail.RecordOnce(ctx, bottle.Event{
		Name: string(audit.Tampered), Request: rec.Request.ID, Short: rec.Short, Change: rec.Request.ID,
		Digest: rec.First, Outcome: "refused", Detail: "queue/requests/" + name + ": " + reason,
	})
	if err != nil {
		return err
	}
	l.Files[name] = refusal{At: d.cfg.Now().UTC(), Reason: reason, Request: rec.Request.ID, Short: rec.Short, Tampered: true}
	l.changed = true
	return nil
}

// isChange reports whether the file of a request that was read once must have been changed
// since, by its kind, its mode or its content, to be read with err now.
func isChange(err error) bool {
	return isContent(err) || errors.Is(err, bottle.ErrNewer) || errors.Is(err, fs.ErrPermission)
}

// untouched returns an [bottle.ErrTampered] if a request's file was ever seen to differ
// from its record, does now, or can't be read: the bundle may delete it, which changes
// nothing, but must gain nothing by making it unreadable.
func (d *Desk) untouched(ctx context.Context, rec *bottle.Record) error {
	l, err := d.readLedger()
	if err != nil {
		return err
	}
	name := rec.Request.ID + ext
	if r, ok := l.Files[name]; ok && r.Tampered {
		return fmt.Errorf("request %s: %s: %w", rec.Short, r.Reason, bottle.ErrTampered)
	}
	req, err := readRequest(filepath.Join(d.dir.Requests(), name), rec.Request.ID)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err == nil && req.FirstDigest() == rec.First:
		return nil
	case err != nil && !isChange(err):
		// It may be this machine's trouble, so it is not remembered; but what can't be compared is not approved.
		return fmt.Errorf("request %s: its file can't be compared with what was first seen (%w): %w", rec.Short, err, bottle.ErrTampered)
	}
	if err := errors.Join(d.tampered(ctx, rec, name, err, l), l.save(d)); err != nil {
		return err
	}
	return fmt.Errorf("request %s: %s: %w", rec.Short, l.Files[name].Reason, bottle.ErrTampered)
}
