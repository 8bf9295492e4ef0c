package allow

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"

	"github.com/mtibben/confusables"
	"golang.org/x/net/publicsuffix"

	"bottle/bottle"
)

// HostNotes says what an operator should know of a host's spelling, a line each: how a
// punycode label reads, scripts that are mixed within a label, and a name in another
// script whose every character passes for an ASCII one (Unicode TR 39).
func HostNotes(h bottle.Host) []string {
	var notes []string
	if !strings.Contains(string(h), "xn--") {
		return nil
	}
	shown := h.Unicode()
	if shown == string(h) {
		return []string{fmt.Sprintf("%s has a punycode label that can't be shown", h)}
	}
	notes = append(notes, fmt.Sprintf("%s is punycode for %s", h, shown))
	for label := range strings.SplitSeq(shown, ".") {
		if isASCII(label) {
			continue
		}
		if s := scripts(label); mixed(s) {
			notes = append(notes, fmt.Sprintf("the label %s mixes scripts: %s", label, strings.Join(s, ", ")))
		}
		// With its marks: who sees the umlaut is not deceived.
		if sk := strings.ToLower(confusables.Skeleton(label)); isASCII(sk) {
			if !strings.Contains(label, "rn") { // TR 39 takes every m apart
				sk = strings.ReplaceAll(sk, "rn", "m")
			}
			notes = append(notes, fmt.Sprintf("the label %s reads like %s but is another name", label, sk))
		}
	}
	return notes
}

// LookAlike reports whether h could be taken for one of the hosts already known, for which
// it is not, and nobody's own: which one, and how, in a line. Names below a known host's
// registrable domain are its owner's and no look-alikes.
func LookAlike(h bottle.Host, known []bottle.Host) (bottle.Host, string, bool) {
	name := newSpelling(h)
	var others []spelling
	for _, k := range known {
		s := newSpelling(k)
		if s.site == name.site {
			return "", "", false
		}
		others = append(others, s)
	}
	for _, check := range lookAlikeChecks {
		for _, k := range others {
			if why := check(name, k); why != "" {
				return k.host, why, true
			}
		}
	}
	return "", "", false
}

// A spelling is a host taken apart for comparison.
type spelling struct {
	host   bottle.Host
	name   string // without "*."
	site   string // registrable domain
	label  string // its first label, in Unicode
	suffix string // public suffix
	folded string // label, with all that looks alike made equal
}

func newSpelling(h bottle.Host) spelling {
	s := spelling{host: h, name: strings.TrimPrefix(string(h), "*."), site: site(h)}
	label, _, _ := strings.Cut(s.site, ".")
	s.suffix, _ = publicsuffix.PublicSuffix(s.name)
	s.label, _, _ = strings.Cut(bottle.Host(s.site).Unicode(), ".")
	if strings.HasPrefix(s.label, "xn--") {
		s.label = label
	}
	s.folded = fold(s.label)
	return s
}

// The checks, strongest first. Each returns how a looks like b, or "".
var lookAlikeChecks = []func(a, b spelling) string{
	func(a, b spelling) string { // github.com.evil.test
		if strings.HasPrefix(a.name, b.name+".") || strings.Contains(a.name, "."+b.name+".") {
			return fmt.Sprintf("it starts like %s but belongs to %s", b.name, a.site)
		}
		return ""
	},
	func(a, b spelling) string { // github-com.test, login.github-com.evil.test
		if dashed := strings.ReplaceAll(b.site, ".", "-"); len(b.label) >= 3 && strings.Contains(a.name, dashed) {
			return fmt.Sprintf("it has %s, with hyphens for dots, in a name that belongs to %s", b.site, a.site)
		}
		return ""
	},
	func(a, b spelling) string { // gıthub.com, githυb.com, g1thub.com, rnicrosoft.com
		if a.label != b.label && a.folded == b.folded {
			return fmt.Sprintf("%s reads like %s", a.label, b.label)
		}
		return ""
	},
	func(a, b spelling) string { // git-hub.com
		if a.label != b.label && strings.ReplaceAll(a.folded, "-", "") == strings.ReplaceAll(b.folded, "-", "") {
			return fmt.Sprintf("%s is %s but for hyphens", a.label, b.label)
		}
		return ""
	},
	func(a, b spelling) string { // github.co
		if a.label == b.label && len(a.label) >= 3 && a.suffix != b.suffix {
			return fmt.Sprintf("it is %s under another suffix, .%s", b.label, a.suffix)
		}
		return ""
	},
	func(a, b spelling) string { // gihtub.com, githubb.com
		if len(b.folded) >= 6 && oneEdit([]rune(a.folded), []rune(b.folded)) {
			return fmt.Sprintf("%s is one typing error away from %s", a.label, b.label)
		}
		return ""
	},
	func(a, b spelling) string { // github-login.com
		if len(b.label) >= 5 && slices.Contains(strings.Split(a.label, "-"), b.label) {
			return fmt.Sprintf("%s bears the name %s but belongs to %s", a.label, b.label, a.site)
		}
		return ""
	},
}

// foldASCII makes equal what a hurried reader takes for equal, beyond what TR 39 does.
var foldASCII = strings.NewReplacer("rn", "m", "vv", "w", "cl", "d", "0", "o", "1", "l", "i", "l", "|", "l", "5", "s", "3", "e", "2", "z")

func fold(s string) string { return foldASCII.Replace(skeleton(s)) }

// skeleton is that of TR 39 with marks (TR 39 keeps them; a reader may not) and case dropped.
func skeleton(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.Is(unicode.Mn, r) {
			return -1
		}
		return unicode.ToLower(r)
	}, confusables.Skeleton(s))
}

// scripts lists the scripts of a label, without Common and Inherited.
func scripts(label string) []string {
	seen := map[string]bool{}
	for _, r := range label {
		for name, table := range unicode.Scripts {
			if name != "Common" && name != "Inherited" && unicode.Is(table, r) {
				seen[name] = true
				break
			}
		}
	}
	return slices.Sorted(maps.Keys(seen))
}

// mixed applies the highly restrictive level of TR 39, 5.2: one script, or Latin with the
// scripts that Japanese, Korean or Chinese are written in.
func mixed(scripts []string) bool {
	if len(scripts) < 2 {
		return false
	}
	for _, set := range [][]string{
		{"Latin", "Han", "Hiragana", "Katakana"},
		{"Latin", "Han", "Bopomofo"},
		{"Latin", "Han", "Hangul"},
	} {
		if !slices.ContainsFunc(scripts, func(s string) bool { return !slices.Contains(set, s) }) {
			return false
		}
	}
	return true
}

// oneEdit reports whether one insertion, deletion, substitution or swap of neighbours
// makes a into b.
func oneEdit(a, b []rune) bool {
	if len(a) > len(b) {
		a, b = b, a
	}
	i := 0
	for i < len(a) && a[i] == b[i] {
		i++
	}
	switch len(b) - len(a) {
	case 0:
		return i < len(a) && (slices.Equal(a[i+1:], b[i+1:]) ||
			i+1 < len(a) && a[i] == b[i+1] && a[i+1] == b[i] && slices.Equal(a[i+2:], b[i+2:]))
	case 1:
		return slices.Equal(a[i:], b[i+1:])
	}
	return false
}

func isASCII(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r > unicode.MaxASCII }) < 0
}
