package queue

import (
	"context"

	"bottle/bottle"
	"bottle/bottle/audit"
)

// A Trail is an audit log. Record returns when the event is durable. RecordOnce does the
// same unless the trail has an event with that Name and Change already, and says whether
// it wrote.
type Trail interface {
	Record(ctx context.Context, ev bottle.Event) error
	RecordOnce(ctx context.Context, ev bottle.Event) (bool, error)
}

// AuditTrail makes a Trail of a bottle's audit log.
type AuditTrail struct {
	Log *audit.Log // required
}

var _ Trail = AuditTrail{}

// Record implements [Trail].
func (t AuditTrail) Record(ctx context.Context, ev bottle.Event) error {
	_, err := t.Log.Append(ctx, entry(ev))
	return err
}

// RecordOnce implements [Trail].
func (t AuditTrail) RecordOnce(ctx context.Context, ev bottle.Event) (bool, error) {
	_, wrote, err := t.Log.AppendOnce(ctx, entry(ev))
	return wrote, err
}

func entry(ev bottle.Event) audit.Entry {
	e := audit.Entry{
		Event:   audit.Event(ev.Name),
		Request: ev.Request,
		Short:   ev.Short,
		Change:  ev.Change,
		Digest:  string(ev.Digest),
		Edited:  ev.Edited,
		Before:  ev.Before,
		After:   ev.After,
		Outcome: ev.Outcome,
		Detail:  ev.Detail,
	}
	if ev.By != nil {
		e.Actor = &audit.Actor{UID: ev.By.UID, Name: ev.By.Name}
	}
	if len(ev.Revision) > 0 {
		e.Revision = make(map[string]string, len(ev.Revision))
		for file, rev := range ev.Revision {
			e.Revision[file] = string(rev)
		}
	}
	return e
}
