package bottle

import (
	"strings"
	"unicode/utf8"
)

// MaxPath bounds a request path, in bytes as sent.
const MaxPath = 8192

// NormalizePath returns the one form in which a path is matched, shown and sent
// upstream, so that matcher and upstream can't read it differently:
//
//   - escapes of unreserved characters are decoded, all others stay, with upper-case
//     digits (RFC 3986, 6.2.2); what may not stand in a path as it is gets escaped;
//   - what has more than one reading is refused, not guessed at: dot segments (clients
//     resolve them before they send, RFC 3986, 5.2.4), empty segments ("//", "/;x/"),
//     backslashes, and encoded slashes, backslashes and control characters. Escapes
//     inside escapes (%252e) and parameters ("..;x", RFC 3986, 3.3) hide none of these.
//   - invalid escapes, and bytes that decode to something other than UTF-8 (overlong
//     encodings), are refused too.
//
// The result is a fixed point: it normalises to itself. p has no query and no fragment.
// Errors name the reason and wrap [ErrInvalid].
func NormalizePath(p string) (string, error) {
	if err := checkRawPath(p); err != nil {
		return "", err
	}
	var out strings.Builder
	out.Grow(len(p))
	decoded := make([]byte, 0, len(p))
	for i := 0; i < len(p); i++ {
		c, escaped := p[i], false
		if c == '%' {
			v, ok := unhex(p, i)
			if !ok {
				return "", invalid("path", "%q has a %% that is not followed by two hexadecimal digits", clip(p, 80))
			}
			c, escaped = v, true
			i += 2
		}
		switch {
		case c == '\\':
			return "", invalid("path", "%q has a backslash, which some servers read as a slash", clip(p, 80))
		case c == '/' && escaped:
			return "", invalid("path", "%q has an encoded slash (%%2F), which some servers read as a slash", clip(p, 80))
		case c < 0x20 || c == 0x7f:
			return "", invalid("path", "%q has an encoded control character", clip(p, 80))
		case unreserved(c) || !escaped && pchar(c):
			out.WriteByte(c)
		default:
			writeEscape(&out, c)
		}
		decoded = append(decoded, c)
	}
	if !utf8.Valid(decoded) {
		return "", invalid("path", "%q does not decode to UTF-8", clip(p, 80))
	}
	norm := out.String()
	if len(norm) > MaxPath { // else the normal form would not be one
		return "", invalid("path", "longer than %d bytes once what needs it is escaped", MaxPath)
	}
	segments := strings.Split(norm[1:], "/")
	for i, s := range segments {
		if err := checkSegment(s, i == len(segments)-1); err != "" {
			return "", invalid("path", "%q %s", clip(p, 80), err)
		}
	}
	return norm, nil
}

// CheckRawPath is for a path that no rule constrains and that is passed on as it came:
// it refuses only what could break out of the request line or change the host that the
// request is for. Errors wrap [ErrInvalid].
func CheckRawPath(p string) error { return checkRawPath(p) }

func checkRawPath(p string) error {
	switch {
	case p == "" || p[0] != '/':
		return invalid("path", "%q must start with /", clip(p, 80))
	case len(p) > MaxPath:
		return invalid("path", "longer than %d bytes", MaxPath)
	case strings.HasPrefix(p, "//"):
		// RFC 3986, 4.2: a reference that starts so names another host.
		return invalid("path", "%q starts with two slashes, which some programs read as a host", clip(p, 80))
	}
	for i := 0; i < len(p); i++ {
		switch c := p[i]; {
		case c <= ' ' || c == 0x7f:
			return invalid("path", "%q has a control character or a space", clip(p, 80))
		case c == '?' || c == '#':
			return invalid("path", "%q has a query or a fragment; give the path alone", clip(p, 80))
		}
	}
	return nil
}

// checkSegment looks at a segment of the normal form as the most lenient server would:
// without parameters and trailing spaces, and decoded again for as long as that changes
// it. It returns what is wrong, or "".
func checkSegment(s string, last bool) string {
	if s == "" && last {
		return ""
	}
	for {
		name, _, _ := strings.Cut(s, ";")
		switch strings.TrimSpace(name) {
		case "":
			return "has an empty segment (//), which some servers drop"
		case ".", "..":
			return "has a dot segment (. or ..), in some spelling; resolve it before you send"
		}
		next := unescape(s)
		if next == s {
			return ""
		}
		for i := 0; i < len(next); i++ {
			if c := next[i]; c == '/' || c == '\\' || c < 0x20 || c == 0x7f {
				return "has a slash, a backslash or a control character inside several layers of escapes"
			}
		}
		s = next
	}
}

// unescape decodes each valid escape once and leaves the rest.
func unescape(s string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if v, ok := unhex(s, i); ok && s[i] == '%' {
			b = append(b, v)
			i += 2
			continue
		}
		b = append(b, s[i])
	}
	return string(b)
}

// unhex reads the two digits after s[i].
func unhex(s string, i int) (byte, bool) {
	if i+2 >= len(s) {
		return 0, false
	}
	hi, ok1 := hexDigit(s[i+1])
	lo, ok2 := hexDigit(s[i+2])
	return hi<<4 | lo, ok1 && ok2
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

func writeEscape(b *strings.Builder, c byte) {
	const digits = "0123456789ABCDEF"
	b.WriteByte('%')
	b.WriteByte(digits[c>>4])
	b.WriteByte(digits[c&15])
}

// unreserved is RFC 3986, 2.3.
func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		c == '-' || c == '.' || c == '_' || c == '~'
}

// pchar is what else may stand in a path unescaped (RFC 3986, 3.3), the slash included.
func pchar(c byte) bool { return strings.IndexByte("/!$&'()*+,;=:@", c) >= 0 }
