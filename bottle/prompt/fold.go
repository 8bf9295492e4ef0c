package prompt

import (
	"unicode"

	"golang.org/x/text/width"
)

// fold breaks a line that went through [Text] into rows of at most n columns, so that the
// terminal does not do it: each row can then carry a mark of whose words it is. n < 1
// leaves the line whole.
func fold(s string, n int) []string {
	if n < 1 {
		return []string{s}
	}
	var rows []string
	start, used := 0, 0
	for i, r := range s {
		w := columns(r)
		if used+w > n && i > start {
			rows = append(rows, s[start:i])
			start, used = i, 0
		}
		used += w
	}
	return append(rows, s[start:])
}

// columns is how many cells of a terminal a printable character takes (UAX 11).
func columns(r rune) int {
	if r < 0x7f {
		return 1
	}
	if unicode.In(r, unicode.Mn, unicode.Me) {
		return 0
	}
	switch width.LookupRune(r).Kind() {
	case width.EastAsianWide, width.EastAsianFullwidth:
		return 2
	case width.Neutral, width.EastAsianAmbiguous, width.EastAsianNarrow, width.EastAsianHalfwidth:
	}
	return 1
}
