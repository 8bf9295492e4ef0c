package prompt

import (
	"unicode"

	"golang.org/x/text/width"
)

// fold breaks a line that went through [Text] into rows of at most n columns, so that the
// terminal does not do it: each row can then carry a mark of whose words it is. It breaks
// after a space where there is one, and leaves that where it is: the rows together are the
// line. n < 1 leaves it whole.
func fold(s string, n int) []string {
	if n < 1 {
		return []string{s}
	}
	var rows []string
	start, used, word := 0, 0, 0 // word is where the last one begins
	for i, r := range s {
		w := columns(r)
		for used+w > n && i > start {
			cut := i
			if r != ' ' && word > start {
				cut = word
			}
			rows = append(rows, s[start:cut])
			start, used = cut, columnsOf(s[cut:i])
		}
		used += w
		if r == ' ' {
			word = i + 1
		}
	}
	return append(rows, s[start:])
}

func columnsOf(s string) int {
	n := 0
	for _, r := range s {
		n += columns(r)
	}
	return n
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
