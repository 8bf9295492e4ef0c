// Package prompt is what an operator sees: untrusted text made harmless, a proposal with
// its diff first, and the line by line review.
//
// Everything that an agent, or a bundle that it may have taken over, can write (reasons,
// hosts, paths, queue files, log lines, daemons' errors) goes through [Text] or [JSON]
// before it reaches a terminal. The rule is the same in both: no byte of it moves the
// cursor, changes what is on the screen, hides, or looks like what it is not.
package prompt

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxMarks is how many combining marks in a row are shown; more is a stack that climbs
// into the lines above it.
const maxMarks = 3

// Text returns s in one line, safe to print: control characters, escapes, bidirectional
// and invisible characters, line breaks, bytes that are not UTF-8, and letters of another
// script inside a Latin word come out as <U+XXXX> (<0xXX> for a byte). Plain text in any
// one script stays as it is, but for runs of spaces, which can push text to where it looks
// like ours: three or more come out as <space x N>.
func Text(s string) string { return escape(s, 0) }

// Lines is [Text] for text that may have several lines; each comes out on its own, and no
// more than limit of them (the rest is counted in a last line).
func Lines(s string, limit int) []string {
	in := strings.Split(strings.ReplaceAll(s, "\r\n", "\n"), "\n")
	var out []string
	for i, l := range in {
		if i == limit {
			return append(out, fmt.Sprintf("... and %d more lines (bottle show --full)", len(in)-i))
		}
		out = append(out, escape(l, 0))
	}
	return out
}

// Clip is [Text] of at most n runes, marked where it was cut.
func Clip(s string, n int) string { return escape(s, n) }

// plain reports whether nothing of s needs an escape: it is ASCII without controls and
// without long runs of spaces, as most of what is shown is.
func plain(s string) bool {
	run := 0
	for i := range len(s) {
		switch c := s[i]; {
		case c < ' ' || c >= 0x7f:
			return false
		case c == ' ':
			if run++; run == maxSpaces {
				return false
			}
		default:
			run = 0
		}
	}
	return true
}

func escape(s string, limit int) string {
	if plain(s) && (limit == 0 || len(s) <= limit) {
		return s
	}
	var b strings.Builder
	foreign := foreignLetters(s)
	marks, shown := 0, 0
	for i := 0; i < len(s); {
		if n := spaces(s[i:]); n >= maxSpaces && (limit == 0 || shown < limit) {
			fmt.Fprintf(&b, "<space x %d>", n)
			marks, shown = 0, shown+1
			i += n
			continue
		}
		if limit > 0 && shown == limit {
			b.WriteString("...")
			break
		}
		shown++
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && size <= 1:
			fmt.Fprintf(&b, "<0x%02X>", s[i])
		case unicode.In(r, unicode.Mn, unicode.Me) && !hidden(r):
			if marks++; marks > maxMarks {
				fmt.Fprintf(&b, "<%U>", r)
			} else {
				b.WriteRune(r)
			}
			i += size
			continue
		case hidden(r) || foreign[i]:
			fmt.Fprintf(&b, "<%U>", r)
		default:
			b.WriteRune(r)
		}
		marks = 0
		i += size
	}
	return b.String()
}

// maxSpaces is where a run of spaces is no separator any more.
const maxSpaces = 3

func spaces(s string) int { return len(s) - len(strings.TrimLeft(s, " ")) }

// hidden reports whether r does something to a terminal or is not to be seen there.
func hidden(r rune) bool {
	switch {
	case r == ' ':
		return false
	case r < 0x20, r == 0x7f:
		return true
	case r < 0x7f:
		return false
	case !unicode.IsPrint(r): // controls, formats (bidi, zero-width, tags), surrogates, private use, unassigned, odd spaces
		return true
	case r == 0x115F, r == 0x1160, r == 0x3164, r == 0xFFA0: // Hangul fillers: letters without a glyph
		return true
	case r == 0x2800: // braille blank
		return true
	case r >= 0xFE00 && r <= 0xFE0F, r >= 0xE0100 && r <= 0xE01EF: // variation selectors
		return true
	}
	return false
}

// foreignLetters returns the byte offsets of letters that stand in a word with ASCII
// letters or digits but are of a script with look-alikes of them: the Cyrillic a in
// "p<U+0430>ypal". Words of one script are left alone.
func foreignLetters(s string) map[int]bool {
	var out map[int]bool
	ascii := false
	var odd []int
	flush := func() {
		if ascii {
			for _, i := range odd {
				if out == nil {
					out = map[int]bool{}
				}
				out[i] = true
			}
		}
		ascii, odd = false, odd[:0]
	}
	for i, r := range s {
		switch {
		case r < 0x80 && (unicode.IsLetter(r) || unicode.IsDigit(r)):
			ascii = true
		case r == '-' || r == '.' || r == '_': // one name, as in a host
		case r >= 0x80 && lookAlikeScript(r):
			odd = append(odd, i)
		case r >= 0x80 && (unicode.IsLetter(r) || unicode.Is(unicode.Mn, r)):
		default:
			flush()
		}
	}
	flush()
	return out
}

func lookAlikeScript(r rune) bool {
	if unicode.In(r, unicode.Cyrillic, unicode.Greek, unicode.Armenian, unicode.Cherokee, unicode.Coptic, unicode.Lisu) {
		return true
	}
	return r >= 0x1D400 && r <= 0x1D7FF || // mathematical alphabets
		r >= 0xFF01 && r <= 0xFF5E || // full-width ASCII
		r >= 0x2100 && r <= 0x214F || // letter-like symbols
		r == 0x0131 || r == 0x0237 || r == 0x0251 || r == 0x0261 || r == 0x01C0 || // dotless i and j, script a and g, click
		r == 0x2044 || r == 0x2215 || r == 0x29F8 || r == 0x2024 || r == 0x3002 // slashes and dots
}
