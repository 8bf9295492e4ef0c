package egress

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"unicode"

	"bottle/bottle"
)

// A held token is one that was handed over, in the form in which it goes out. All of it but
// the names is secret.
type held struct {
	token  string
	header string // that carries it; "" if the query does
	query  string // the parameter's name
	value  string
	// echoes are what must not come back, or be shown: the token, and what it is part of when
	// it goes out encoded.
	echoes []string
}

// newHeld puts a token into the form that its credential has. An error does not show it.
func newHeld(c bottle.Credential, token string) (*held, error) {
	h := &held{token: token, header: c.Carrier(), query: c.Query, value: token, echoes: []string{token}}
	switch {
	case c.Basic != nil:
		pair := c.Basic.User + ":" + token
		if c.Basic.User == "" {
			user, password, ok := strings.Cut(token, ":")
			if !ok {
				return nil, fmt.Errorf("the token has no colon, and must be user:password; or name the user in basic.user")
			}
			pair = token
			h.echoes = append(h.echoes, user, password)
		}
		encoded := base64.StdEncoding.EncodeToString([]byte(pair))
		h.value = "Basic " + encoded
		h.echoes = append(h.echoes, strings.TrimRight(encoded, "="))
	case c.Query != "":
		h.value = url.QueryEscape(token)
		h.echoes = append(h.echoes, h.value, url.PathEscape(token))
	case c.Scheme != "":
		h.value = c.Scheme + " " + token
	}
	return h, nil
}

// put puts it into a request that is about to go out, in place of what the agent sent.
func (h *held) put(out *http.Request) {
	if h.header != "" {
		out.Header.Set(h.header, h.value)
		return
	}
	// First, so that nothing that the agent wrote before it (a # say) can hide it from the
	// upstream, which would then answer as to nobody.
	query := h.query + "=" + h.value
	if rest := stripQuery(out.URL.RawQuery, h.query); rest != "" {
		query += "&" + rest
	}
	out.URL.RawQuery, out.URL.ForceQuery = query, false
}

// hide returns text without it.
func (h *held) hide(text string) string {
	for _, e := range h.echoes {
		if len(e) >= minRedacted {
			text = strings.ReplaceAll(text, e, strings.Repeat("*", len(e)))
		}
	}
	return text
}

// stripQuery takes out of a raw query each parameter of that name, however it is encoded and
// in whichever case. The rest stays as it is, byte for byte.
func stripQuery(raw, name string) string {
	var kept []string
	for piece := range strings.SplitSeq(raw, "&") {
		if !isParameter(piece, name) {
			kept = append(kept, piece)
		}
	}
	return strings.Join(kept, "&")
}

// isParameter reports whether a piece of a query is a parameter of that name, as the URL
// standard reads it (application/x-www-form-urlencoded) but for the case.
func isParameter(piece, name string) bool {
	own, _, _ := strings.Cut(piece, "=")
	decoded, err := url.QueryUnescape(own)
	return err == nil && strings.EqualFold(decoded, name)
}

// queryTwin returns a parameter that [stripQuery] leaves and that some servers take for name;
// empty if there is none. Which of the two they would act on is anyone's guess.
func queryTwin(raw, name string) string {
	want := looseName(name)
	for piece := range strings.SplitSeq(raw, "&") {
		if isParameter(piece, name) && !strings.Contains(piece, ";") {
			continue
		}
		for part := range strings.SplitSeq(piece, ";") { // as HTML 4.01 had it (B.2.2)
			if own, _, _ := strings.Cut(part, "="); looseName(own) == want {
				return own
			}
		}
	}
	return ""
}

// looseName is a parameter's name as the most generous of servers reads it: decoded as often as it
// can be, %uXXXX too (IIS); up to a NUL (C) or a [ (PHP, Rails: part of an array); without
// leading blanks, and with _ for blanks, dots (PHP) and dashes.
func looseName(name string) string {
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
