package bottle

import (
	"cmp"
	"slices"
	"strings"
	"unicode/utf8"
)

// MaxQueryParams is how many parameters of the query one match may name.
const MaxQueryParams = 16

// A QueryMatch compares the value of one parameter of the query (queryParams of HTTPRoute).
// Name and Value are what is meant, not how it is escaped. HTTPRoute leaves open what becomes
// of a parameter that is there twice; here nothing matches that servers could read in two
// ways: see [allow.Query].
type QueryMatch struct {
	Type  MatchType `yaml:"type,omitempty" json:"type,omitempty"` // Exact if empty
	Name  string    `yaml:"name" json:"name"`                     // case-sensitive
	Value string    `yaml:"value" json:"value"`
}

// canonicalQuery returns the matches sorted, and each once.
func canonicalQuery(in []QueryMatch) ([]QueryMatch, error) {
	if len(in) > MaxQueryParams {
		return nil, invalid("queryParams", "%d of them; at most %d", len(in), MaxQueryParams)
	}
	var out []QueryMatch
	for _, q := range in {
		switch {
		case q.Name == "" || len(q.Name) > 128 || !plainText(q.Name):
			return nil, invalid("queryParams", "%q is not a parameter's name of at most 128 bytes", clip(q.Name, 40))
		case len(q.Value) > MaxValue || !plainText(q.Value):
			return nil, invalid("queryParams", "the value for %s has a control character, is not UTF-8 or is longer than %d bytes", clip(q.Name, 40), MaxValue)
		}
		switch q.Type {
		case "", Exact:
			q.Type = ""
		case RegularExpression:
			if err := checkRegexp(q.Value); err != nil {
				return nil, err
			}
		case PathPrefix:
			fallthrough
		default:
			return nil, invalid("queryParams", "type %q of %s is not Exact or RegularExpression", clip(string(q.Type), 40), clip(q.Name, 40))
		}
		out = append(out, q)
	}
	slices.SortFunc(out, func(a, b QueryMatch) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Type, b.Type), cmp.Compare(a.Value, b.Value))
	})
	return slices.Compact(out), nil
}

// plainText reports whether s is UTF-8 without control characters.
func plainText(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}
