package bottle

import (
	"crypto/subtle"
	"encoding/base64"
	"net/url"
	"strings"
)

// proxyUser is the user name that goes with a bottle's proxy secrets. Clients leave out an
// empty one in different ways.
const proxyUser = "bottle"

// ProxyUserinfo is what a client puts into the proxy's URL to be let in, nil if there is
// no secret. Programs that take a proxy from their environment (curl, git, node, Go's
// net/http) send it as Basic credentials (RFC 7617) in Proxy-Authorization.
func ProxyUserinfo(secret string) *url.Userinfo {
	if secret == "" {
		return nil
	}
	return url.UserPassword(proxyUser, secret)
}

// ProxyAuthorization is the value of Proxy-Authorization for secret, "" if there is none.
func ProxyAuthorization(secret string) string {
	if secret == "" {
		return ""
	}
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(proxyUser+":"+secret))
}

// ProxyAuthorized reports whether the Proxy-Authorization fields of a request hold the
// secret, in a time that doesn't tell how much of it. With no secret everyone is let in.
func ProxyAuthorized(fields []string, secret string) bool {
	if secret == "" {
		return true
	}
	if len(fields) != 1 {
		return false
	}
	scheme, given, _ := strings.Cut(fields[0], " ")
	if !strings.EqualFold(scheme, "Basic") {
		return false
	}
	_, want, _ := strings.Cut(ProxyAuthorization(secret), " ")
	return subtle.ConstantTimeCompare([]byte(strings.TrimSpace(given)), []byte(want)) == 1
}
