package bottle

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/idna"
	"golang.org/x/net/publicsuffix"
)

// ReservedDomain holds the names that egress answers itself; no route may name them.
const ReservedDomain = "bottle.internal"

// EgressHost is the name under which egress tells what is in force:
// GET http://egress.bottle.internal/routes, /denials, /check, /healthz.
const EgressHost = "egress." + ReservedDomain

// Host is a canonical host name, or (where a pattern is allowed) "*." and one:
// lower-case A-labels (RFC 5891), no trailing dot, no port, no IP literal in any
// spelling. It is made by [ParseHost] and [ParsePattern] alone; two hosts are the
// same if and only if their Hosts are equal.
type Host string

// The profile is UTS 46 lookup without transitional mapping, with the checks that
// browsers leave out (STD3 characters, hyphens, joiners, bidi, DNS lengths): a name
// that only some resolvers would accept is refused rather than guessed at.
var hostProfile = idna.New(
	idna.MapForLookup(),
	idna.Transitional(false),
	idna.StrictDomainName(true),
	idna.CheckHyphens(true),
	idna.CheckJoiners(true),
	idna.ValidateLabels(true),
	idna.BidiRule(),
	idna.VerifyDNSLength(true),
)

// maxHostInput bounds what is handed to IDNA; a DNS name has at most 253 bytes.
const maxHostInput = 1024

// ParseHost returns the canonical form of one host name, without wildcard. The
// error says what is wrong with it and wraps [ErrInvalid].
func ParseHost(s string) (Host, error) {
	bad := func(why string, args ...any) (Host, error) {
		return "", invalidError(fmt.Sprintf("host %q: %s", clip(s, 80), fmt.Sprintf(why, args...)))
	}
	switch {
	case s == "":
		return bad("empty; give a name such as api.example.com")
	case len(s) > maxHostInput:
		return bad("longer than a DNS name can be (253 bytes)")
	case !utf8.ValidString(s):
		return bad("not UTF-8")
	}
	for _, r := range s {
		switch {
		case r == 0 || unicode.IsControl(r) || unicode.IsSpace(r):
			return bad("has a control character or a space")
		case unicode.Is(unicode.Cf, r):
			return bad("has an invisible character (%U)", r)
		case r == ':':
			return bad("has a port, a scheme or an IPv6 literal; give the bare name, and the port in ports")
		case r == '@':
			return bad("has userinfo; give the bare name")
		case r == '*':
			return bad("a wildcard is not allowed here")
		case strings.ContainsRune(`/\?#[]%<>^|"`+"`{}", r):
			return bad("has %q; give the bare name, without scheme, path or escapes", r)
		}
	}
	name, err := hostProfile.ToASCII(strings.TrimSuffix(s, "."))
	if err != nil {
		return bad("not a valid host name (%v)", err)
	}
	name = strings.ToLower(name)
	if strings.HasSuffix(name, ".") {
		return bad("ends in more than one dot")
	}
	if endsInNumber(name) {
		return bad("an IP address or a number; routes are by name (use resolve and allow_cidrs in the manifest for a private address)")
	}
	// IDNA mapping must have reached a fixed point, or matcher and resolver could differ.
	if again, err := hostProfile.ToASCII(name); err != nil || again != name {
		return bad("has no stable canonical form")
	}
	return Host(name), nil
}

// ParsePattern is [ParseHost], but also takes "*.name", which stands for exactly one
// label. A wildcard directly on a public suffix (*.com, *.github.io) is refused, and
// so is every name under [ReservedDomain].
func ParsePattern(s string) (Host, error) {
	rest, wild := strings.CutPrefix(s, "*.")
	h, err := ParseHost(rest)
	switch {
	case err == nil:
	case strings.Contains(rest, "*"), wild && rest == "":
		return "", invalidError(fmt.Sprintf("host pattern %q: a wildcard is a whole first label, with a name below it, as in *.example.com", clip(s, 80)))
	case wild:
		return "", fmt.Errorf("host pattern %q: %w", clip(s, 80), err)
	default:
		return "", err
	}
	if h == ReservedDomain || strings.HasSuffix(string(h), "."+ReservedDomain) {
		return "", invalidError(fmt.Sprintf("host %q: names under %s are answered by bottle itself and can't be routed", h, ReservedDomain))
	}
	if !wild {
		return h, nil
	}
	if suffix, _ := publicsuffix.PublicSuffix(string(h)); suffix == string(h) {
		return "", invalidError(fmt.Sprintf("host pattern %q: %s is a public suffix, so this would cover everybody's names below it; name a domain below it", clip(s, 80), h))
	}
	if len(h) > 251 {
		return "", invalidError(fmt.Sprintf("host pattern %q: longer than a DNS name can be (253 bytes)", clip(s, 80)))
	}
	return "*." + h, nil
}

// endsInNumber is the WHATWG URL rule: a name whose last label is a number, decimal
// or hexadecimal, is an IPv4 address in some spelling (1.2.3.4, 0x7f.1, 2130706433, 0177.1).
func endsInNumber(name string) bool {
	last := name[strings.LastIndexByte(name, '.')+1:]
	if last == "" {
		return false
	}
	if strings.Trim(last, "0123456789") == "" {
		return true
	}
	hex, ok := strings.CutPrefix(last, "0x")
	return ok && strings.Trim(hex, "0123456789abcdef") == ""
}

// Wildcard reports whether h is a pattern.
func (h Host) Wildcard() bool { return strings.HasPrefix(string(h), "*.") }

// Covers reports whether the name is h, or one label below it if h is a wildcard.
// A wildcard covers neither its apex nor deeper names.
func (h Host) Covers(name Host) bool {
	if h == name {
		return true
	}
	base, wild := strings.CutPrefix(string(h), "*.")
	if !wild {
		return false
	}
	label, rest, ok := strings.Cut(string(name), ".")
	return ok && label != "" && label != "*" && rest == base
}

// Unicode returns the form in which a browser might show h; it equals h for ASCII names.
func (h Host) Unicode() string {
	base, wild := strings.CutPrefix(string(h), "*.")
	u, err := idna.Display.ToUnicode(base)
	if err != nil {
		return string(h)
	}
	if wild {
		return "*." + u
	}
	return u
}

// clip shortens s for an error text.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "..."
}
