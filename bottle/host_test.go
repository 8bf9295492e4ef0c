package bottle_test

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"bottle/bottle"
)

func TestParseHost(t *testing.T) {
	label63 := strings.Repeat("a", 63)
	for _, tt := range []struct{ name, in, want string }{ // want "": refused
		{"plain", "api.example.com", "api.example.com"},
		{"case", "API.Example.com", "api.example.com"},
		{"trailing dot", "api.example.com.", "api.example.com"},
		{"one label", "localhost", "localhost"},
		{"hyphen inside", "a-b.example", "a-b.example"},
		{"digits in front", "1password.com", "1password.com"},
		{"IDN", "bücher.example", "xn--bcher-kva.example"},
		{"IDN in upper case", "BÜCHER.example", "xn--bcher-kva.example"},
		{"IDN decomposed (NFD)", "bu\u0308cher.example", "xn--bcher-kva.example"},
		{"A-label", "xn--bcher-kva.example", "xn--bcher-kva.example"},
		{"A-label in upper case", "XN--BCHER-KVA.EXAMPLE", "xn--bcher-kva.example"},
		{"sharp s is kept (non-transitional)", "straße.example", "xn--strae-oqa.example"},
		{"fullwidth letters", "ａｐｉ.example.com", "api.example.com"},
		{"fullwidth dot", "api．example.com", "api.example.com"},
		{"ideographic dot", "api。example.com", "api.example.com"},
		{"halfwidth ideographic dot", "api｡example.com", "api.example.com"},
		{"Kelvin sign", "\u212A.example", "k.example"},
		{"longest label", label63 + ".example", label63 + ".example"},
		{"longest name", strings.Repeat(label63+".", 3) + strings.Repeat("a", 61), strings.Repeat(label63+".", 3) + strings.Repeat("a", 61)},

		{"empty", "", ""},
		{"dot", ".", ""},
		{"empty label", "ex..com", ""},
		{"leading dot", ".example.com", ""},
		{"two trailing dots", "a.com..", ""},
		{"ideographic trailing dot", "a.com。", ""},
		{"long label", label63 + "a.example", ""},
		{"long name", strings.Repeat(label63+".", 3) + strings.Repeat("a", 62), ""},
		{"very long", strings.Repeat("a.", 5000), ""},
		{"IDN that grows too long", strings.Repeat("ü", 60) + ".example", ""},
		{"not UTF-8", "a\xff.example", ""},

		{"IPv4", "1.2.3.4", ""},
		{"IPv4, trailing dot", "1.2.3.4.", ""},
		{"IPv4, short", "127.1", ""},
		{"IPv4, hex", "0x7f.1", ""},
		{"IPv4, hex in upper case", "0X7F000001", ""},
		{"IPv4, bare 0x", "0x", ""},
		{"IPv4, decimal", "2130706433", ""},
		{"IPv4, octal", "0177.1", ""},
		{"IPv4, padded", "127.0.0.0001", ""},
		{"IPv4, fullwidth digits", "１２７.0.0.1", ""},
		{"IPv4, ideographic dots", "127。0。0。1", ""},
		{"IPv4, circled digits", "①②⑦.0.0.1", ""},
		{"IPv4, too many parts", "1.2.3.4.5", ""},
		{"name that ends in a number", "example.1", ""},
		{"IPv6", "::1", ""},
		{"IPv6 in brackets", "[::1]", ""},
		{"IPv4-mapped", "::ffff:1.2.3.4", ""},
		{"zone", "fe80::1%eth0", ""},

		{"userinfo", "a@b.com", ""},
		{"port", "b.com:443", ""},
		{"scheme", "https://b.com", ""},
		{"path", "b.com/x", ""},
		{"backslash", `b.com\x`, ""},
		{"query", "b.com?x", ""},
		{"fragment", "b.com#x", ""},
		{"percent", "a%2eb.com", ""},
		{"fullwidth percent", "a％2eb.com", ""},
		{"fullwidth slash", "a／b.com", ""},
		{"fullwidth at", "a＠b.com", ""},
		{"account-of sign has a slash in it", "a℀b.com", ""},
		{"space", "a b.com", ""},
		{"no-break space", "a\u00a0b.com", ""},
		{"tab", "a\tb.com", ""},
		{"CRLF", "a.com\r\nHost: b.com", ""},
		{"NUL", "a.com\x00.b.com", ""},
		{"DEL", "a\x7f.com", ""},
		{"escape", "\x1b[31ma.com", ""},
		{"zero-width space", "a\u200bb.com", ""},
		{"zero-width joiner", "a\u200db.com", ""},
		{"zero-width non-joiner", "a\u200cb.com", ""},
		{"soft hyphen", "a\u00adb.com", ""},
		{"byte order mark", "\ufeffa.com", ""},
		{"right-to-left override", "a\u202eb.com", ""},
		{"combining mark in front", "\u0301a.com", ""},
		{"mixed direction in a label", "aא.com", ""},
		{"underscore", "foo_bar.example.com", ""},
		{"hyphen in front", "-a.com", ""},
		{"hyphen behind", "a-.com", ""},
		{"hyphens in third and fourth place", "ab--c.com", ""},
		{"invalid punycode", "xn--a.com", ""},
		{"punycode of ASCII", "xn--abc-.com", ""},
		{"punycode that is not canonical", "xn--BCHER-KVA-.com", ""},
		{"punycode of nothing", "xn--.com", ""},
		{"punycode of a capital letter", "xn--bcher-3ya.com", ""},
		{"wildcard", "*.example.com", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := bottle.ParseHost(tt.in)
			if string(got) != tt.want || (err == nil) != (tt.want != "") {
				t.Errorf("ParseHost(%q) = %q, %v; want %q", tt.in, got, err, tt.want)
			}
			if err != nil && (!errors.Is(err, bottle.ErrInvalid) || strings.ContainsAny(err.Error(), "\x00\x1b\r\n\u202e") || len(err.Error()) > 500) {
				t.Errorf("not one clean line that wraps ErrInvalid: %q", err)
			}
		})
	}
}

func TestParsePattern(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"name", "Example.com", "example.com"},
		{"wildcard", "*.Example.com.", "*.example.com"},
		{"wildcard on IDN", "*.bücher.example", "*.xn--bcher-kva.example"},
		{"below a private suffix", "*.me.github.io", "*.me.github.io"},
		{"everything", "*", ""},
		{"wildcard and nothing", "*.", ""},
		{"top level", "*.com", ""},
		{"country's second level", "*.co.uk", ""},
		{"private suffix", "*.github.io", ""},
		{"private suffix in upper case", "*.GitHub.IO", ""},
		{"unknown top level", "*.nowhere", ""},
		{"localhost", "*.localhost", ""},
		{"two wildcards", "*.*.x", ""},
		{"wildcard inside", "a.*.b.com", ""},
		{"part of a label", "a*.b.com", ""},
		{"behind", "b.com.*", ""},
		{"fullwidth asterisk", "＊.b.com", ""},
		{"address", "*.1.2.3.4", ""},
		{"reserved", "bottle.internal", ""},
		{"below reserved", "egress.Bottle.internal.", ""},
		{"wildcard on reserved", "*.bottle.internal", ""},
		{"ends like reserved", "notbottle.internal", "notbottle.internal"},
		{"too long with the asterisk", "*." + strings.Repeat(strings.Repeat("a", 63)+".", 3) + strings.Repeat("a", 60), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := bottle.ParsePattern(tt.in)
			if string(got) != tt.want || (err == nil) != (tt.want != "") {
				t.Errorf("ParsePattern(%q) = %q, %v; want %q", tt.in, got, err, tt.want)
			}
			if err != nil && !errors.Is(err, bottle.ErrInvalid) {
				t.Errorf("%v does not wrap ErrInvalid", err)
			}
			if strings.Contains(tt.in, "*") && err != nil && strings.Count(err.Error(), "host ") > 1 && !strings.HasPrefix(tt.in, "*.") {
				t.Errorf("said twice: %v", err)
			}
		})
	}
}

func TestHostCovers(t *testing.T) {
	for _, tt := range []struct {
		pattern, name bottle.Host
		want          bool
	}{
		{"a.example", "a.example", true},
		{"a.example", "b.a.example", false},
		{"a.example", "nota.example", false},
		{"a.example", "a.example.evil.test", false},
		{"*.a.example", "b.a.example", true},
		{"*.a.example", "a.example", false},
		{"*.a.example", "c.b.a.example", false},
		{"*.a.example", ".a.example", false},
		{"*.a.example", "nota.example", false},
		{"*.a.example", "*.a.example", true},
		{"*.a.example", "*.b.a.example", false},
		{"b.a.example", "*.a.example", false},
		{"*.a.example", "", false},
	} {
		if got := tt.pattern.Covers(tt.name); got != tt.want {
			t.Errorf("%s covers %s: %t, want %t", tt.pattern, tt.name, got, tt.want)
		}
	}
}

func TestHostUnicode(t *testing.T) {
	for in, want := range map[bottle.Host]string{
		"a.example": "a.example", "xn--bcher-kva.example": "bücher.example", "*.xn--bcher-kva.example": "*.bücher.example",
	} {
		if got := in.Unicode(); got != want {
			t.Errorf("%s in Unicode is %s, want %s", in, got, want)
		}
	}
}

func FuzzParseHost(f *testing.F) {
	for _, s := range []string{"API.Example.com.", "bücher.example", "xn--bcher-kva.example", "127。0。0。1", "0x7f.1", "a\u200db", "*.co.uk", "a_b", "℀.com", "ß.example", "１.２.３.４", "fe80::1%eth0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		h, err := bottle.ParseHost(s)
		if err != nil {
			if h != "" || !errors.Is(err, bottle.ErrInvalid) {
				t.Fatalf("ParseHost(%q) = %q, %v", s, h, err)
			}
			return
		}
		if again, err := bottle.ParseHost(string(h)); err != nil || again != h {
			t.Fatalf("%q -> %q -> %q, %v: not a fixed point", s, h, again, err)
		}
		for _, r := range string(h) {
			if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '.' {
				t.Fatalf("%q -> %q has %q", s, h, r)
			}
		}
		trimmed := strings.Trim(string(h), ".[]")
		if _, err := netip.ParseAddr(trimmed); err == nil || net.ParseIP(trimmed) != nil {
			t.Fatalf("%q -> %q is an address", s, h)
		}
		if len(h) > 253 || strings.HasPrefix(string(h), ".") || strings.HasSuffix(string(h), ".") {
			t.Fatalf("%q -> %q", s, h)
		}
	})
}
