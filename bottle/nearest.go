package bottle

import "strings"

// Nearest returns the known key that key is most likely a misspelling of, or "" if none
// is near: at most about a third of its letters may be wrong, swapped, missing or too many.
func Nearest(key string, known []string) string {
	if len(key) > 64 {
		return ""
	}
	best, at := "", max(1, (len(key)+1)/3)+1
	for _, k := range known {
		if n := editDistance(strings.ToLower(key), k); n < at {
			best, at = k, n
		}
	}
	return best
}

// editDistance is the optimal string alignment distance: insertions, deletions,
// substitutions, and swaps of neighbours, each of cost 1.
func editDistance(a, b string) int {
	var before, prev []int
	for j := range len(b) + 1 {
		prev = append(prev, j)
	}
	for i := 1; i <= len(a); i++ {
		row := []int{i}
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			n := min(prev[j]+1, row[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				n = min(n, before[j-2]+1)
			}
			row = append(row, n)
		}
		before, prev = prev, row
	}
	return prev[len(b)]
}
