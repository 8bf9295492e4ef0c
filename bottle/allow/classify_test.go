package allow_test

import (
	"net/netip"
	"testing"

	"bottle/bottle/allow"
)

func TestClassify(t *testing.T) {
	for addr, want := range map[string]string{
		"8.8.8.8": "public", "1.1.1.1": "public", "99.255.255.255": "public", "172.32.0.1": "public", "::ffff:8.8.8.8": "public",
		"2606:4700::1111": "public", "2001:4860:4860::8888": "public", "3ffe::1": "public",
		"0.0.0.0": "unspecified", "0.1.2.3": "unspecified", "10.255.0.1": "private", "172.16.0.1": "private", "172.31.255.255": "private",
		"192.168.0.1": "private", "100.64.0.1": "cgnat", "100.127.255.255": "cgnat", "127.0.0.1": "loopback", "127.255.255.254": "loopback",
		"169.254.0.1": "link-local", "192.0.0.1": "ietf-protocol", "192.0.2.1": "documentation", "198.51.100.1": "documentation",
		"203.0.113.1": "documentation", "192.31.196.1": "as112", "192.52.193.1": "amt", "192.88.99.1": "6to4", "192.175.48.1": "as112",
		"198.18.0.1": "benchmark", "198.19.255.255": "benchmark", "224.0.0.1": "multicast", "239.1.1.1": "multicast",
		"240.0.0.1": "reserved", "255.255.255.255": "broadcast",
		"169.254.169.254": "metadata", "169.254.170.2": "metadata", "100.100.100.200": "metadata", "168.63.129.16": "metadata",
		"fd00:ec2::254": "metadata", "fd20:ce::254": "metadata", "::ffff:169.254.169.254": "metadata",
		"::": "unspecified", "::1": "loopback", "::ffff:127.0.0.1": "loopback", "::ffff:10.0.0.1": "private", "::127.0.0.1": "v4-compatible",
		"64:ff9b::8.8.8.8": "nat64", "64:ff9b::7f00:1": "nat64", "64:ff9b:1::a00:1": "nat64", "100::1": "discard", "100:0:0:1::1": "dummy",
		"2001::1": "teredo", "2001:2::1": "benchmark", "2001:20::1": "ietf-protocol", "2001:db8::1": "documentation", "2002:7f00:1::": "6to4",
		"2620:4f:8000::1": "as112", "3fff::1": "documentation", "5f00::1": "reserved", "fc00::1": "unique-local", "fdff::1": "unique-local",
		"fe80::1": "link-local", "fec0::1": "site-local", "ff02::1": "multicast", "4000::1": "reserved", "::2:0:0:1": "reserved",
	} {
		got, ok := allow.Classify(netip.MustParseAddr(addr), nil)
		if got != want || ok != (want == "public") {
			t.Errorf("%s: %s, %v; want %s", addr, got, ok, want)
		}
	}
	for name, a := range map[string]netip.Addr{"zone": netip.MustParseAddr("fe80::1%eth0"), "invalid": {}} {
		if got, ok := allow.Classify(a, []netip.Prefix{netip.MustParsePrefix("::/0"), netip.MustParsePrefix("fe80::/10")}); got != name || ok {
			t.Errorf("%s: %s, %v", name, got, ok)
		}
	}
}

func TestClassifyPermitted(t *testing.T) {
	for _, tt := range []struct {
		name, addr string
		permitted  []string
		ok         bool
	}{
		{"its network", "10.1.2.3", []string{"10.0.0.0/8"}, true},
		{"another network", "10.1.2.3", []string{"192.168.0.0/16"}, false},
		{"the one address", "127.0.0.1", []string{"127.0.0.1/32"}, true},
		{"its neighbour", "127.0.0.2", []string{"127.0.0.1/32"}, false},
		{"v4-mapped, by its inside", "::ffff:10.1.2.3", []string{"10.0.0.0/8"}, true},
		{"written as v4-mapped", "10.1.2.3", []string{"::ffff:10.0.0.0/104"}, true},
		{"IPv6 all over does not mean v4-mapped", "::ffff:10.1.2.3", []string{"::/0"}, false},
		{"metadata by its network", "169.254.169.254", []string{"169.254.0.0/16"}, false},
		{"metadata by everything", "169.254.169.254", []string{"0.0.0.0/0"}, false},
		{"metadata by itself", "169.254.169.254", []string{"169.254.169.254/32"}, true},
		{"v6 metadata by its network", "fd00:ec2::254", []string{"fd00::/8"}, false},
		{"v6 metadata by itself", "fd00:ec2::254", []string{"fd00:ec2::254/128"}, true},
		{"NAT64 to a public address", "64:ff9b::808:808", []string{"64:ff9b::/96"}, true},
		{"NAT64 to loopback", "64:ff9b::7f00:1", []string{"64:ff9b::/96"}, false},
		{"NAT64 to what is permitted", "64:ff9b::a00:1", []string{"64:ff9b::/96", "10.0.0.0/8"}, true},
		{"NAT64 to metadata", "64:ff9b::a9fe:a9fe", []string{"64:ff9b::/96", "0.0.0.0/0"}, false},
		{"local NAT64 to a private address", "64:ff9b:1::a00:1", []string{"64:ff9b:1::/48"}, false},
		{"6to4 to a private address", "2002:a00:1::1", []string{"2002::/16"}, false},
		{"6to4 to a public address", "2002:808:808::1", []string{"2002::/16"}, true},
		{"Teredo, its server private", "2001:0:a00:1::f7f7:f7f7", []string{"2001::/32"}, false},
		{"Teredo, its client loopback", "2001:0:808:808::80ff:fffe", []string{"2001::/32"}, false},
		{"Teredo, both public", "2001:0:808:808::f7f7:f7f7", []string{"2001::/32"}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var p []netip.Prefix
			for _, s := range tt.permitted {
				p = append(p, netip.MustParsePrefix(s))
			}
			if got, ok := allow.Classify(netip.MustParseAddr(tt.addr), p); ok != tt.ok {
				t.Errorf("%s, %v; want %v", got, ok, tt.ok)
			}
		})
	}
}
