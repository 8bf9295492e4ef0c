package egress

import (
	"fmt"
	"strconv"
	"strings"

	"bottle/bottle"
)

// An authority is a host and a port in their one form. Two name the same place if and
// only if they are equal.
type authority struct {
	host bottle.Host
	port int
}

// parseAuthority reads "host" or "host:port". fallback is the port where none is given;
// 0 makes it an error. The port has digits only: no sign, space or leading zero, which
// some parsers take and others don't.
func parseAuthority(s string, fallback int) (authority, error) {
	name, digits, found := s, "", false
	if i := strings.LastIndexByte(s, ':'); i >= 0 {
		name, digits, found = s[:i], s[i+1:], true
	}
	host, err := bottle.ParseHost(name)
	if err != nil {
		return authority{}, err
	}
	if !found {
		if fallback == 0 {
			return authority{}, fmt.Errorf("%s has no port; give host:port: %w", host, bottle.ErrInvalid)
		}
		return authority{host, fallback}, nil
	}
	port, err := strconv.Atoi(digits)
	if err != nil || port < 1 || port > 65535 || digits[0] < '1' || digits[0] > '9' {
		return authority{}, fmt.Errorf("port %q of %s: use 1 to 65535: %w", clip(digits, 20), host, bottle.ErrInvalid)
	}
	return authority{host, port}, nil
}

// String is host:port, always with the port: for dialling and for CONNECT.
func (a authority) String() string { return string(a.host) + ":" + strconv.Itoa(a.port) }

// header is the form of the Host header: without the scheme's own port (RFC 9110 section 7.2).
func (a authority) header(tls bool) string {
	if a.port == schemePort(tls) {
		return string(a.host)
	}
	return a.String()
}

func schemePort(tls bool) int {
	if tls {
		return 443
	}
	return 80
}

func scheme(tls bool) string {
	if tls {
		return "https"
	}
	return "http"
}

// clip bounds text of the agent's to n bytes, valid UTF-8.
func clip(s string, n int) string {
	if len(s) <= n {
		return strings.ToValidUTF8(s, "\uFFFD")
	}
	return strings.ToValidUTF8(s[:n], "") + "..."
}

// printable is [clip] with everything escaped that is not printable ASCII.
func printable(s string, n int) string {
	q := strconv.QuoteToASCII(clip(s, n))
	return strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`)
}
