package allow

import (
	"net/netip"
)

// Public is the class of addresses that need nobody's permission.
const Public = "public"

type class struct {
	prefix netip.Prefix
	name   string
	inner  func(netip.Addr) []netip.Addr // IPv4 addresses that traffic would end up at
}

// The special-purpose address registries of IANA (RFC 6890 and its updates), and what
// cloud providers serve credentials on. The first prefix that fits decides, so the
// narrower stand first.
var classes = []class{
	{prefix: prefix("0.0.0.0/8"), name: "unspecified"},
	{prefix: prefix("10.0.0.0/8"), name: "private"},
	{prefix: prefix("100.64.0.0/10"), name: "cgnat"},
	{prefix: prefix("127.0.0.0/8"), name: "loopback"},
	{prefix: prefix("169.254.0.0/16"), name: "link-local"},
	{prefix: prefix("172.16.0.0/12"), name: "private"},
	{prefix: prefix("192.0.0.0/24"), name: "ietf-protocol"},
	{prefix: prefix("192.0.2.0/24"), name: "documentation"},
	{prefix: prefix("192.31.196.0/24"), name: "as112"},
	{prefix: prefix("192.52.193.0/24"), name: "amt"},
	{prefix: prefix("192.88.99.0/24"), name: "6to4"},
	{prefix: prefix("192.168.0.0/16"), name: "private"},
	{prefix: prefix("192.175.48.0/24"), name: "as112"},
	{prefix: prefix("198.18.0.0/15"), name: "benchmark"},
	{prefix: prefix("198.51.100.0/24"), name: "documentation"},
	{prefix: prefix("203.0.113.0/24"), name: "documentation"},
	{prefix: prefix("224.0.0.0/4"), name: "multicast"},
	{prefix: prefix("255.255.255.255/32"), name: "broadcast"},
	{prefix: prefix("240.0.0.0/4"), name: "reserved"},

	{prefix: prefix("::/128"), name: "unspecified"},
	{prefix: prefix("::1/128"), name: "loopback"},
	{prefix: prefix("::/96"), name: "v4-compatible", inner: lastFour},
	{prefix: prefix("64:ff9b::/96"), name: "nat64", inner: lastFour},
	{prefix: prefix("64:ff9b:1::/48"), name: "nat64", inner: lastFour},
	{prefix: prefix("100::/64"), name: "discard"},
	{prefix: prefix("100:0:0:1::/64"), name: "dummy"},
	{prefix: prefix("2001::/32"), name: "teredo", inner: teredo},
	{prefix: prefix("2001:2::/48"), name: "benchmark"},
	{prefix: prefix("2001::/23"), name: "ietf-protocol"},
	{prefix: prefix("2001:db8::/32"), name: "documentation"},
	{prefix: prefix("2002::/16"), name: "6to4", inner: sixToFour},
	{prefix: prefix("2620:4f:8000::/48"), name: "as112"},
	{prefix: prefix("3fff::/20"), name: "documentation"},
	{prefix: prefix("2000::/3"), name: Public},
	{prefix: prefix("fc00::/7"), name: "unique-local"},
	{prefix: prefix("fe80::/10"), name: "link-local"},
	{prefix: prefix("fec0::/10"), name: "site-local"},
	{prefix: prefix("ff00::/8"), name: "multicast"},
	{prefix: prefix("::/0"), name: "reserved"}, // not allocated for global unicast
}

// metadata lists the addresses on which clouds hand out their machines' credentials.
var metadata = map[netip.Addr]bool{
	netip.MustParseAddr("169.254.169.254"): true, // AWS, Azure, GCP and most others
	netip.MustParseAddr("169.254.170.2"):   true, // AWS ECS
	netip.MustParseAddr("169.254.170.23"):  true, // AWS EKS
	netip.MustParseAddr("fd00:ec2::254"):   true, // AWS
	netip.MustParseAddr("fd00:ec2::23"):    true, // AWS EKS
	netip.MustParseAddr("fd20:ce::254"):    true, // GCP
	netip.MustParseAddr("100.100.100.200"): true, // Alibaba Cloud
	netip.MustParseAddr("168.63.129.16"):   true, // Azure
	netip.MustParseAddr("192.0.0.192"):     true, // Oracle Cloud
}

// Classify returns the class of an address and whether it may be dialled: public ones may,
// others only where the operator permitted a prefix that holds them.
//
//   - A v4-mapped address is what the kernel makes of it: the IPv4 address inside. Dial
//     addr.Unmap(), so that what was classified is what is dialled.
//   - Addresses that carry an IPv4 address for a translator or relay (NAT64, 6to4, Teredo,
//     v4-compatible) need a permitted prefix for themselves, and the address inside must be
//     one that could be dialled too.
//   - A metadata address must be permitted as itself, with a full-length prefix: whoever
//     opens 169.254.0.0/16 or a private network has hardly meant the machine's credentials.
//   - An address with a zone, and an invalid one, can't be permitted.
func Classify(addr netip.Addr, permitted []netip.Prefix) (name string, ok bool) {
	switch {
	case !addr.IsValid():
		return "invalid", false
	case addr.Zone() != "":
		return "zone", false
	}
	addr = addr.Unmap()
	if metadata[addr] {
		for _, p := range permitted {
			if p.IsSingleIP() && unmapped(p).Addr() == addr {
				return "metadata", true
			}
		}
		return "metadata", false
	}
	c := class{name: Public}
	for _, have := range classes {
		if have.prefix.Contains(addr) {
			c = have
			break
		}
	}
	if c.name == Public {
		return Public, true
	}
	for _, p := range permitted {
		if !unmapped(p).Contains(addr) {
			continue
		}
		if c.inner != nil {
			for _, a := range c.inner(addr) {
				if name, ok := Classify(a, permitted); !ok {
					return c.name + " with " + name + " inside", false
				}
			}
		}
		return c.name, true
	}
	return c.name, false
}

// unmapped lets an operator write a v4 network as v4-mapped.
func unmapped(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func four(b []byte) netip.Addr { return netip.AddrFrom4([4]byte(b)) }

func lastFour(a netip.Addr) []netip.Addr {
	b := a.As16()
	return []netip.Addr{four(b[12:16])}
}

// sixToFour is RFC 3056.
func sixToFour(a netip.Addr) []netip.Addr {
	b := a.As16()
	return []netip.Addr{four(b[2:6])}
}

// teredo is RFC 4380: the relay server, and the client's address with all bits flipped.
func teredo(a netip.Addr) []netip.Addr {
	b := a.As16()
	return []netip.Addr{four(b[4:8]), four([]byte{^b[12], ^b[13], ^b[14], ^b[15]})}
}
