package bottle_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"bottle/bottle"
)

func TestSeal(t *testing.T) {
	for _, tt := range []struct{ name, body, want string }{
		{"lines", "a\nb\n", "a\nb\n"},
		{"no newline", "a", "a\n"},
		{"empty", "", ""},
		{"a revision line inside", "# revision: sha256:" + strings.Repeat("0", 64) + "\na\n", "# revision: sha256:" + strings.Repeat("0", 64) + "\na\n"},
		{"a stale one at the end is replaced", "a\n# revision: sha256:" + strings.Repeat("0", 64) + "\n", "a\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sealed, rev := bottle.Seal([]byte(tt.body))
			if got := string(bottle.Body(sealed)); got != tt.want {
				t.Errorf("body %q, want %q", got, tt.want)
			}
			if want := tt.want + "# revision: " + string(rev) + "\n"; string(sealed) != want {
				t.Errorf("sealed %q, want %q", sealed, want)
			}
			if got, err := bottle.CheckSeal(sealed); err != nil || got != rev || rev != bottle.Sum([]byte(tt.want)) {
				t.Errorf("CheckSeal = %s, %v; want %s", got, err, rev)
			}
			if again, _ := bottle.Seal(sealed); !bytes.Equal(again, sealed) {
				t.Errorf("sealed twice: %q", again)
			}
		})
	}
	body := []byte("abc")[:1] // Seal must not write into what follows
	whole := body[:3]
	bottle.Seal(body)
	if string(whole) != "abc" {
		t.Errorf("Seal wrote into its argument: %q", whole)
	}
}

// A file caught between two contents is never taken for either: cut anywhere, or with the
// new bytes over the old ones up to anywhere.
func TestCheckSealTorn(t *testing.T) {
	old, _ := bottle.Seal([]byte("routes:\n  - host: a.example\n"))
	next, _ := bottle.Seal([]byte("routes:\n  - host: b.example\n  - host: c.example\n"))
	whole := map[string]bool{string(old): true, string(next): true}
	check := func(kind string, at int, b []byte) {
		_, err := bottle.CheckSeal(b)
		if whole[string(b)] != (err == nil) {
			t.Errorf("%s at %d: %v\n%q", kind, at, err, b)
		}
		if err != nil && !errors.Is(err, bottle.ErrCorrupt) {
			t.Errorf("%s at %d: %v does not wrap ErrCorrupt", kind, at, err)
		}
	}
	for i := range len(next) + 1 {
		check("truncated", i, next[:i])
		check("overwritten with more", i, append(bytes.Clone(next[:i]), old[min(i, len(old)):]...))
		if i < len(next) {
			flipped := bytes.Clone(next)
			flipped[i] ^= 0x20
			check("one bit", i, flipped)
		}
	}
	for i := range len(old) + 1 {
		check("overwritten with less", i, append(bytes.Clone(old[:i]), next[i:]...))
	}
	check("longer than it says", 0, append(bytes.Clone(next), "# more\n"...))
}

func TestHashShort(t *testing.T) {
	h := bottle.Sum([]byte("abc"))
	if h != "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" {
		t.Errorf("Sum(abc) = %s", h)
	}
	if h.Short() != "sha256:ba7816bf8f01" || bottle.Hash("x").Short() != "x" || bottle.Hash("").Short() != "" {
		t.Errorf("short: %s", h.Short())
	}
}
