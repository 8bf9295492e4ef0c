package pipelock

import (
	"fmt"
	"net/netip"
	"strings"
)

// RealBase returns the file that the real pipelock is started with, before its allowlist is set. Left
// to its defaults it would end each tunnel after five minutes or two of silence, take 60 requests a
// minute for a host, and refuse every private address (pipelock 2.3).
func RealBase(allow []netip.Prefix) ([]byte, error) {
	const year = 365 * 24 * 60 * 60 // seconds
	var b strings.Builder
	fmt.Fprintf(&b, "# The second layer's config. bottle keeps api_allowlist in step with routes.yaml.\nversion: 1\nmode: strict\n"+
		"forward_proxy: {enabled: true, max_tunnel_seconds: %[1]d, idle_timeout_seconds: %[1]d}\n"+
		"fetch_proxy: {monitoring: {max_requests_per_minute: 1000000000}}\n", year)
	if len(allow) > 0 {
		b.WriteString("ssrf:\n  ip_allowlist:\n")
		for _, p := range allow {
			fmt.Fprintf(&b, "    - %s\n", p)
		}
	}
	b.WriteString("api_allowlist:\n  - " + placeholder + "\n")
	doc, err := Parse([]byte(b.String()))
	if err != nil {
		return nil, err
	}
	out, _, err := doc.Bytes()
	return out, err
}

// RealGaps is what the real pipelock does not do that the built-in gate does, for the operator.
func RealGaps(local bool) []string {
	gaps := []string{"the real pipelock knows no ports: a host that a route lists is allowed on each, as far as the second layer goes"}
	if local {
		gaps = append(gaps, "the real pipelock asks its clients for no secret: each user of this machine can use it, for the hosts that are allowed")
	}
	return gaps
}
