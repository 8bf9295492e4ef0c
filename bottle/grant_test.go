package bottle_test

import (
	"testing"
	"time"

	"bottle/bottle"
)

func TestGrantEnded(t *testing.T) {
	end := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	ttl := bottle.Duration{Kind: bottle.TTL, TTL: time.Hour}
	both := &bottle.Grant{Duration: ttl, ExpiresAt: &end, BootID: "boot-a", BootExpires: 5000}
	for _, tt := range []struct {
		name  string
		grant *bottle.Grant
		now   time.Time
		id    string
		boot  float64
		want  bool
	}{
		{"no grant", nil, end, "boot-a", 9999, false},
		{"session", &bottle.Grant{Duration: bottle.Duration{Kind: bottle.Session}}, end, "boot-a", 9999, false},
		{"permanent", &bottle.Grant{Duration: bottle.Duration{Kind: bottle.Permanent}}, end, "boot-a", 9999, false},
		{"ttl without an end", &bottle.Grant{Duration: ttl}, end.Add(-time.Hour), "boot-a", 0, true},
		{"before both", both, end.Add(-time.Second), "boot-a", 4999, false},
		{"at the wall clock's end", both, end, "boot-a", 4999, true},
		{"wall clock jumped ahead", both, end.Add(time.Hour), "boot-a", 100, true},
		{"wall clock set back, boot time over", both, end.Add(-48 * time.Hour), "boot-a", 5000, true},
		{"other boot, boot time does not count", both, end.Add(-time.Second), "boot-b", 9999, false},
		{"other boot, wall clock over", both, end, "boot-b", 1, true},
		{"boot clock unknown", both, end.Add(-time.Second), "", 0, false},
		{"wall clock alone", &bottle.Grant{Duration: ttl, ExpiresAt: &end}, end.Add(-time.Nanosecond), "", 1e9, false},
		{"boot time alone", &bottle.Grant{Duration: ttl, BootID: "boot-a", BootExpires: 1}, end, "boot-a", 2, true},
		{"boot time alone, other boot", &bottle.Grant{Duration: ttl, BootID: "boot-a", BootExpires: 1}, end, "boot-b", 0, true},
		{"time zone is no matter", both, end.In(time.FixedZone("x", 7200)), "boot-a", 1, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.grant.Ended(tt.now, tt.id, tt.boot); got != tt.want {
				t.Errorf("Ended(%s, %q, %v) = %t, want %t", tt.now, tt.id, tt.boot, got, tt.want)
			}
		})
	}
}

func TestBootClock(t *testing.T) {
	id, before, err := bottle.BootClock()
	if err != nil {
		t.Fatal(err)
	}
	id2, after, err := bottle.BootClock()
	if err != nil {
		t.Fatal(err)
	}
	if len(id) != 36 || id != id2 {
		t.Errorf("boot IDs %q, %q: want one UUID", id, id2)
	}
	if before <= 0 || after < before {
		t.Errorf("boot times %v, %v: want positive and not falling", before, after)
	}
}
