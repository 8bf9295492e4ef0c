package bottle

import (
	"fmt"
	"strings"
	"time"
)

// DurationKind says what ends a grant.
type DurationKind string

// The four kinds of grant.
const (
	Once      DurationKind = "once"      // the first request that it lets through
	TTL       DurationKind = "ttl"       // a time span, counted from when it is in force
	Session   DurationKind = "session"   // the bottle's stop
	Permanent DurationKind = "permanent" // nothing; it is written to the manifest copy too
)

// Bounds of a TTL grant.
const (
	MinTTL = time.Second
	MaxTTL = 30 * 24 * time.Hour
)

// Duration is how long a grant holds. The zero value is invalid: a grant's length is
// always somebody's choice.
type Duration struct {
	Kind DurationKind
	TTL  time.Duration // for kind ttl alone; whole seconds
}

// ParseDuration reads "once", "session", "permanent", or a time span such as 90s, 10m, 2h.
func ParseDuration(s string) (Duration, error) {
	switch DurationKind(s) {
	case Once, Session, Permanent:
		return Duration{Kind: DurationKind(s)}, nil
	case TTL:
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return Duration{}, invalidError(fmt.Sprintf("duration %q: use once, session, permanent, or a time span such as 90s, 10m or 2h", clip(s, 40)))
	}
	return ForTTL(d)
}

// ForTTL returns the Duration of a time span, which lies between [MinTTL] and [MaxTTL].
func ForTTL(d time.Duration) (Duration, error) {
	if d < MinTTL || d > MaxTTL || d%time.Second != 0 {
		return Duration{}, invalidError(fmt.Sprintf("duration %s: must be whole seconds between %s and %s", d, MinTTL, MaxTTL))
	}
	return Duration{Kind: TTL, TTL: d}, nil
}

// String is the form that [ParseDuration] reads.
func (d Duration) String() string {
	if d.Kind == TTL {
		return d.TTL.String()
	}
	return string(d.Kind)
}

// Words says it for people: "for 10m", "for 1m30s", "until the bottle stops".
func (d Duration) Words() string {
	switch d.Kind {
	case Once:
		return "for one request"
	case TTL:
		return "for " + plainSpan(d.TTL)
	case Session:
		return "until the bottle stops"
	case Permanent:
		return "permanently"
	}
	return "for an unknown time"
}

// plainSpan is a time span without the zeros that Go puts after it: 10m, not 10m0s.
func plainSpan(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// MarshalText implements [encoding.TextMarshaler].
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler]; an empty text is the zero value.
func (d *Duration) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*d = Duration{}
		return nil
	}
	v, err := ParseDuration(string(b))
	if err != nil {
		return err
	}
	*d = v
	return nil
}

// Hash is "sha256:" and 64 hexadecimal digits: a digest or a revision. The empty Hash means none.
type Hash string

// Short is the part of a hash that people compare: sha256: and 12 digits.
func (h Hash) Short() string {
	const n = len("sha256:") + 12
	if len(h) <= n {
		return string(h)
	}
	return string(h[:n])
}
