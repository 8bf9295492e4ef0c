package bottle

import (
	"slices"
	"strconv"
	"strings"
)

// A Credential is a secret that egress puts into requests to its hosts. The token itself
// is read on the host, from TokenEnv, and handed to egress over a private socket.
//
// It goes in one of three forms: a header, a parameter of the query, or basic authentication
// (RFC 7617). What the agent sent in its place is taken out first, and Authorization always.
type Credential struct {
	Header string `yaml:"header,omitempty" json:"header,omitempty"` // canonicalised, e.g. X-Api-Key
	Scheme string `yaml:"scheme,omitempty" json:"scheme,omitempty"` // put before the token in a header, e.g. Bearer
	Query  string `yaml:"query,omitempty" json:"query,omitempty"`   // the parameter's name; see [CheckQueryName]
	Basic  *Basic `yaml:"basic,omitempty" json:"basic,omitempty"`
	// TokenEnv names the variable.
	TokenEnv string `yaml:"token_env" json:"token_env"`
	Hosts    []Host `yaml:"hosts" json:"hosts"` // required: nowhere else
}

// Basic is the form of basic authentication.
type Basic struct {
	// User is the user, and the token is the password. If it is empty, the token is both, in the form
	// user:password: for hosts where the user is the secret, or where it should not be in the manifest.
	User string `yaml:"user,omitempty" json:"user,omitempty"`
}

// authorization is the header of basic authentication, and of any other that an agent may try.
const authorization = "Authorization"

// Allows reports whether the credential may be sent to h: one of its hosts covers it.
func (c Credential) Allows(h Host) bool {
	for _, have := range c.Hosts {
		if have.Covers(h) {
			return true
		}
	}
	return false
}

// Carrier is the header that the credential goes in, canonicalised; empty if it goes in the query.
func (c Credential) Carrier() string {
	if c.Basic != nil {
		return authorization
	}
	return c.Header
}

// Judged names what one of the matches judges by although the credential takes the agent's
// out, "header X" say; empty if there is nothing. A route can't have both: what it judged would
// not be what is sent.
func (c Credential) Judged(matches []Match) string {
	for _, m := range matches {
		for _, h := range m.Headers {
			if strings.EqualFold(h.Name, authorization) || strings.EqualFold(h.Name, c.Carrier()) {
				return "header " + h.Name
			}
		}
		for _, q := range m.Query {
			if c.Query != "" && LooseName(q.Name) == LooseName(c.Query) {
				return "query parameter " + strconv.Quote(q.Name)
			}
		}
	}
	return ""
}

// CheckQueryName reports whether name can be the parameter of a credential: of letters, digits,
// _ . and -, at most 64, so that it means the same however it is encoded.
func CheckQueryName(name string) error {
	if name == "" || len(name) > 64 || strings.ContainsFunc(name, func(c rune) bool {
		return !isAlphanumeric(c) && !strings.ContainsRune("_.-", c)
	}) {
		return invalid("query", "%q is not the name of a parameter; use up to 64 letters, digits, and _ . -, such as api_key", clip(name, 40))
	}
	return nil
}

func isAlphanumeric(c rune) bool {
	return c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
}

// checkUser reports whether the user can be sent (RFC 7617 section 2: no colon, no control character).
func (b *Basic) checkUser() bool {
	return len(b.User) <= 256 && !slices.ContainsFunc([]byte(b.User), func(c byte) bool { return c == ':' || c < 0x20 || c >= 0x7f })
}
