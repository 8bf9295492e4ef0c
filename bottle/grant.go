package bottle

import (
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// bootIDFile names the running boot; the kernel makes a new UUID at each start (random(4)).
const bootIDFile = "/proc/sys/kernel/random/boot_id"

// BootClock returns the ID of the running boot and the seconds since it began, suspend
// included (CLOCK_BOOTTIME, clock_gettime(2)). Nobody can set that clock back.
func BootClock() (id string, seconds float64, err error) {
	b, err := os.ReadFile(bootIDFile)
	if err != nil {
		return "", 0, fmt.Errorf("boot clock: %w", err)
	}
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return "", 0, fmt.Errorf("boot clock: %w", err)
	}
	return strings.TrimSpace(string(b)), float64(ts.Sec) + float64(ts.Nsec)/1e9, nil
}

// Ended reports whether the grant's time is over: by the wall clock or, within the boot
// that the grant was made in, by boot time, whichever comes first. So setting the wall
// clock back gains nothing, and neither does a reboot. bootID and boot are those of
// [BootClock]; without them (empty, 0) the wall clock decides alone.
//
// A nil Grant (a route of the manifest) never ends, nor does one that time does not end:
// whether a once grant is spent, and whether the bottle stopped, is for others to know. A
// TTL grant that carries no end has ended: a missing bound must not mean for ever.
func (g *Grant) Ended(now time.Time, bootID string, boot float64) bool {
	if g == nil {
		return false
	}
	sameBoot := g.BootID != "" && g.BootID == bootID
	if g.ExpiresAt == nil && !sameBoot {
		return g.Duration.Kind == TTL
	}
	if g.ExpiresAt != nil && !now.Before(*g.ExpiresAt) {
		return true
	}
	return sameBoot && boot >= g.BootExpires
}

// canonical returns the grant with its times in UTC. It refuses one that does not say
// whose it is or how long it holds, since nothing could then end it.
func (g Grant) canonical() (Grant, error) {
	if g.Duration.Kind == "" && g.ExpiresAt != nil { // as a person would write it
		d, err := ForTTL(g.ExpiresAt.Sub(g.At).Round(time.Second))
		if err != nil {
			return Grant{}, fmt.Errorf("grant.expires_at, counted from at: %w", err)
		}
		g.Duration = d
	}
	switch {
	case g.Request == "":
		return Grant{}, invalid("grant.request", "empty; name the request that it answers, such as r7")
	case len(g.Request) > 64 || len(g.By) > 256 || len(g.BootID) > 64:
		return Grant{}, invalid("grant", "request, by or boot_id is too long")
	case g.Duration.Kind == "":
		return Grant{}, invalid("grant.duration", "missing; use once, session, permanent, or a time span such as 10m")
	case g.Duration.Kind == TTL && g.ExpiresAt == nil:
		return Grant{}, invalid("grant.expires_at", "missing; a grant for %s needs the time of its end", g.Duration)
	case g.Duration.Kind != TTL && (g.ExpiresAt != nil || g.BootID != "" || g.BootExpires != 0):
		return Grant{}, invalid("grant.expires_at", "set, but a grant of duration %s has no time of its end", g.Duration)
	}
	g.At = g.At.UTC().Round(0) // without a monotonic reading, so that equal means equal
	if g.ExpiresAt != nil {
		end := g.ExpiresAt.UTC().Round(0)
		g.ExpiresAt = &end
	}
	return g, nil
}
