package egress

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"strings"

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
	want := bottle.LooseName(name)
	for piece := range strings.SplitSeq(raw, "&") {
		if isParameter(piece, name) && !strings.Contains(piece, ";") {
			continue
		}
		for part := range strings.SplitSeq(piece, ";") { // as HTML 4.01 had it (B.2.2)
			if own, _, _ := strings.Cut(part, "="); bottle.LooseName(own) == want {
				return own
			}
		}
	}
	return ""
}
