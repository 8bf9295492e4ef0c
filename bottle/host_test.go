package bottle_test

import (
	"testing"

	"bottle/bottle"
)

func TestParseHost(t *testing.T) {
	for in, want := range map[string]string{
		"API.Example.com":     "api.example.com",
		"api.example.com.":    "api.example.com",
		"bücher.example":      "xn--bcher-kva.example",
		"ex..com":             "",
		"a.com..":             "",
		"1.2.3.4":             "",
		"0x7f.1":              "",
		"2130706433":          "",
		"0177.1":              "",
		"::1":                 "",
		"a@b.com":             "",
		"a b.com":             "",
		"a%2eb.com":           "",
		"ａｐｉ.example.com":     "api.example.com",
		"a\u200bb.com":        "",
		"127。0。0。1":           "",
		"localhost":           "localhost",
		"foo_bar.example.com": "",
	} {
		got, err := bottle.ParseHost(in)
		if string(got) != want || (err == nil) != (want != "") {
			t.Errorf("ParseHost(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
}
