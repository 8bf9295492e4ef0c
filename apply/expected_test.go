package apply_test

import (
	"slices"
	"testing"
	"time"

	"bottle/apply"
	"bottle/bottle"
)

func TestExpectedReplaysWhatWasApproved(t *testing.T) {
	now := time.Now()
	b := newBed(t, bedConfig{adjust: func(c *apply.Config) { c.Now = func() time.Time { return now } }})
	ttl := bottle.Duration{Kind: bottle.TTL, TTL: time.Minute}
	over := bottle.Duration{Kind: bottle.TTL, TTL: time.Second}
	timed := b.grant("c.example.com", ttl)
	now = now.Add(time.Millisecond)
	b.grant("d.example.com", over)
	now = now.Add(time.Millisecond)
	rec := b.ask(bottle.Ask{Remove: entries("b.example.com"), Reason: "done"})
	_, err := b.approve(rec, b.intent(rec, session))
	must(t, err)
	now = now.Add(2 * time.Second)

	base, err := b.applier.Expected(t.Context())
	must(t, err)
	doc, err := bottle.ParseRoutes(base.Routes)
	must(t, err)
	var hosts []string
	for _, r := range doc.Routes() {
		hosts = append(hosts, string(r.Host))
		if r.Grant != nil && !r.Grant.ExpiresAt.Equal(*timed.GrantEnds) {
			t.Errorf("a rebuild moves the end of %s from %s to %s", r.Grant.Request, timed.GrantEnds, r.Grant.ExpiresAt)
		}
	}
	if !slices.Equal(hosts, []string{"a.example.com", "c.example.com"}) {
		t.Errorf("%v", hosts)
	}

	must(t, b.dir.UpdateMetadata(func(m *bottle.Metadata) error { m.StartedAt = now; return nil }))
	b.grant("e.example.com", session)
	now = now.Add(time.Hour)
	must(t, b.dir.UpdateMetadata(func(m *bottle.Metadata) error { m.StartedAt = now; return nil }))
	base, err = b.applier.Expected(t.Context())
	must(t, err)
	if doc, err = bottle.ParseRoutes(base.Routes); err != nil || doc.Len() != 1 {
		t.Errorf("a session's grant outlived the bottle's start: %v %v", doc.Routes(), err)
	}
}
