package bottle

import (
	"strconv"
	"strings"
	"unicode"
)

// LooseName is a parameter's name as the most generous of servers reads it: decoded as often as it
// can be, %uXXXX too (IIS); up to a NUL (C) or a [ (PHP, Rails: part of an array); without
// leading blanks, and with _ for blanks, dots (PHP) and dashes.
func LooseName(name string) string {
	for range 4 {
		decoded := decodeLoosely(name)
		if decoded == name {
			break
		}
		name = decoded
	}
	name = strings.TrimLeftFunc(name, func(r rune) bool { return r == '?' || unicode.IsSpace(r) })
	if i := strings.IndexAny(name, "\x00["); i >= 0 {
		name = name[:i]
	}
	name = strings.ToLower(strings.TrimRightFunc(name, unicode.IsSpace))
	return strings.Map(func(r rune) rune {
		if r == '.' || r == '-' || unicode.IsSpace(r) {
			return '_'
		}
		return r
	}, name)
}

// decodeLoosely decodes what can be decoded and leaves the rest.
func decodeLoosely(s string) string {
	if !strings.ContainsAny(s, "%+") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '+':
			b.WriteByte(' ')
		case s[i] == '%' && i+5 < len(s) && (s[i+1] == 'u' || s[i+1] == 'U'):
			if n, err := strconv.ParseUint(s[i+2:i+6], 16, 16); err == nil {
				b.WriteRune(rune(n))
				i += 5
				continue
			}
			b.WriteByte('%')
		case s[i] == '%' && i+2 < len(s):
			if n, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b.WriteByte(byte(n))
				i += 2
				continue
			}
			b.WriteByte('%')
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String()
}
