package prompt

import (
	"slices"
	"strings"
	"testing"
)

func TestFold(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		n        int
		want     []string
	}{
		{"short", "a b", 10, []string{"a b"}},
		{"after a space", "all the way", 9, []string{"all the ", "way"}},
		{"a space at the end of a row", "all the way", 7, []string{"all the", " way"}},
		{"a word that is longer than a row", "an abcdefghij", 4, []string{"an ", "abcd", "efgh", "ij"}},
		{"wide letters", "a アアア", 3, []string{"a ", "ア", "ア", "ア"}},
		{"one column", "ab c", 1, []string{"a", "b", " ", "c"}},
		{"no width", "a b", 0, []string{"a b"}},
		{"nothing", "", 5, []string{""}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := fold(tc.in, tc.n); !slices.Equal(got, tc.want) {
				t.Errorf("fold(%q, %d) = %q, want %q", tc.in, tc.n, got, tc.want)
			}
		})
	}
}

func FuzzFold(f *testing.F) {
	f.Add("all the way アア", 4)
	f.Fuzz(func(t *testing.T, s string, n int) {
		s, n = Text(s), n%200
		rows := fold(s, n)
		if strings.Join(rows, "") != s {
			t.Fatalf("%q came out as %q", s, rows)
		}
		for _, r := range rows {
			if n > 1 && columnsOf(r) > n {
				t.Fatalf("%q has %d columns, of %d", r, columnsOf(r), n)
			}
		}
	})
}
