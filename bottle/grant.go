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
	if g.ExpiresAt == nil && g.BootID == "" {
		return g.Duration.Kind == TTL
	}
	if g.ExpiresAt != nil && !now.Before(*g.ExpiresAt) {
		return true
	}
	return g.BootID != "" && g.BootID == bootID && boot >= g.BootExpires
}
