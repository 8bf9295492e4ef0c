package bottle_test

import (
	"errors"
	"net/url"
	"strings"
	"testing"

	"bottle/bottle"
)

func TestNormalizePath(t *testing.T) {
	for _, tt := range []struct{ name, in, want, reason string }{
		{"root", "/", "/", ""},
		{"plain", "/v1/x", "/v1/x", ""},
		{"a slash at the end is kept", "/v1/", "/v1/", ""},
		{"case is kept", "/V1/X", "/V1/X", ""},
		{"unreserved are decoded", "/%76%31/%7euser", "/v1/~user", ""},
		{"upper-case digits", "/a%3fb", "/a%3Fb", ""},
		{"reserved stay escaped", "/a%3Ab%26", "/a%3Ab%26", ""},
		{"and as they are", "/a:b&c=(d)!,'*+@$", "/a:b&c=(d)!,'*+@$", ""},
		{"UTF-8 is escaped", "/bücher", "/b%C3%BCcher", ""},
		{"quotes and brackets are escaped", `/"<x>{y}|^`, "/%22%3Cx%3E%7By%7D%7C%5E", ""},
		{"an escaped percent sign", "/100%25", "/100%25", ""},
		{"an escaped space", "/a%20b", "/a%20b", ""},
		{"three dots are a name", "/a/.../b", "/a/.../b", ""},
		{"dots in a name", "/a/.git/b..c", "/a/.git/b..c", ""},
		{"a parameter", "/v1;a=b/x", "/v1;a=b/x", ""},

		{"empty", "", "", "must start with /"},
		{"relative", "v1", "", "must start with /"},
		{"an absolute URL", "http://a.test/", "", "must start with /"},
		{"an asterisk", "*", "", "must start with /"},
		{"two slashes first", "//a.test/x", "", "two slashes"},
		{"two slashes", "/v1//x", "", "empty segment"},
		{"two slashes at the end", "/v1//", "", "empty segment"},
		{"a segment of parameters", "/v1/;x/y", "", "empty segment"},
		{"a segment of parameters at the end", "/v1/;x", "", "empty segment"},
		{"a segment of spaces", "/v1/%20/y", "", "empty segment"},
		{"one dot", "/v1/./x", "", "dot segment"},
		{"two dots", "/v1/../admin", "", "dot segment"},
		{"two dots at the end", "/v1/..", "", "dot segment"},
		{"two dots first", "/../v1", "", "dot segment"},
		{"escaped dots", "/v1/%2e%2e/admin", "", "dot segment"},
		{"half-escaped dots", "/v1/.%2E/admin", "", "dot segment"},
		{"an escaped dot", "/v1/%2e/x", "", "dot segment"},
		{"dots with a parameter", "/v1/..;/admin", "", "dot segment"},
		{"dots with a named parameter", "/v1/..;a=b/admin", "", "dot segment"},
		{"dots with an escaped parameter", "/v1/..%3b/admin", "", "dot segment"},
		{"dots with a space", "/v1/..%20/admin", "", "dot segment"},
		{"dots escaped twice", "/v1/%252e%252e/admin", "", "dot segment"},
		{"dots escaped thrice", "/v1/%25252e%25252e/admin", "", "dot segment"},
		{"a digit escaped on its own", "/v1/%2%65%2%65/admin", "", "not followed by two"},
		{"an escaped slash", "/v1%2fadmin", "", "encoded slash"},
		{"an escaped slash, upper case", "/v1%2Fadmin", "", "encoded slash"},
		{"a slash escaped twice", "/v1%252fadmin", "", "several layers"},
		{"dots behind an escaped slash", "/v1/..%2fadmin", "", "encoded slash"},
		{"a backslash", `/v1\admin`, "", "backslash"},
		{"dots and a backslash", `/v1/..\admin`, "", "backslash"},
		{"an escaped backslash", "/v1/..%5cadmin", "", "backslash"},
		{"a backslash escaped twice", "/v1/..%255cadmin", "", "several layers"},
		{"NUL", "/v1\x00/x", "", "control character"},
		{"an escaped NUL", "/v1%00/x", "", "control character"},
		{"a NUL escaped twice", "/v1%2500/x", "", "several layers"},
		{"CRLF", "/v1\r\nX: y", "", "control character"},
		{"escaped CRLF", "/v1%0d%0aX", "", "control character"},
		{"a tab", "/v1\tx", "", "control character"},
		{"DEL", "/v1\x7f", "", "control character"},
		{"a space", "/v1 x", "", "space"},
		{"an overlong slash", "/v1%c0%afadmin", "", "UTF-8"},
		{"overlong dots", "/v1/%c0%ae%c0%ae/x", "", "UTF-8"},
		{"bytes that are no UTF-8", "/v1/\xff", "", "UTF-8"},
		{"a half escape", "/v1%2", "", "not followed by two"},
		{"no escape", "/v1%zz", "", "not followed by two"},
		{"an IIS escape", "/v1%u002e", "", "not followed by two"},
		{"a query", "/v1?x", "", "query"},
		{"a fragment", "/v1#x", "", "fragment"},
		{"too long", "/" + strings.Repeat("a", bottle.MaxPath), "", "longer than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := bottle.NormalizePath(tt.in)
			if got != tt.want || (err == nil) != (tt.reason == "") {
				t.Fatalf("NormalizePath(%q) = %q, %v; want %q %s", tt.in, got, err, tt.want, tt.reason)
			}
			if err != nil && (!strings.Contains(err.Error(), tt.reason) || !errors.Is(err, bottle.ErrInvalid) || strings.ContainsAny(err.Error(), "\n\r\x00")) {
				t.Errorf("error %q; want %q in one line", err, tt.reason)
			}
		})
	}
}

func TestCheckRawPath(t *testing.T) {
	for in, ok := range map[string]bool{
		"/": true, "/@scope%2fname": true, "/a//b": true, "/a/../b": true, "/%zz": true, `/a\b`: true, "/ü": true,
		"": false, "a": false, "*": false, "//a.test/": false, "/a b": false, "/a\r\nb": false, "/\x00": false, "/a?b": false, "/a#b": false,
	} {
		if err := bottle.CheckRawPath(in); (err == nil) != ok {
			t.Errorf("CheckRawPath(%q) = %v; want ok %v", in, err, ok)
		}
	}
}

// Escaping makes a path longer: one within the bound may have no normal form within it.
func TestNormalFormIsWithinTheBound(t *testing.T) {
	in := "/" + strings.Repeat("^", bottle.MaxPath/2)
	if norm, err := bottle.NormalizePath(in); err == nil {
		t.Errorf("a path of %d bytes has a normal form of %d", len(in), len(norm))
	}
}

// FuzzNormalizePath: no panic; the result is a fixed point; and it means the same to the
// strictest and to the most lenient reader: however often it is decoded, split at slashes
// of either kind, and resolved, no segment goes, comes or climbs.
func FuzzNormalizePath(f *testing.F) {
	for _, s := range []string{"/", "/v1/x", "/v1/%2e%2e/x", "/v1/..;x/y", "/v1/%252e%252e/x", "/a//b", "/ü%20;x", "/v1%c0%af", "/%25%32%65"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		norm, err := bottle.NormalizePath(in)
		if err != nil {
			if norm != "" {
				t.Fatalf("%q: both %q and %v", in, norm, err)
			}
			return
		}
		if again, err := bottle.NormalizePath(norm); err != nil || again != norm {
			t.Fatalf("%q: %q normalises to %q, %v", in, norm, again, err)
		}
		u, err := url.ParseRequestURI(norm)
		if err != nil || u.EscapedPath() != norm || u.Host != "" || u.RawQuery != "" {
			t.Fatalf("%q: %q is not sent as it is: %v, %v", in, norm, u, err)
		}
		want := strings.Count(norm, "/")
		for s := norm; ; {
			segments := strings.FieldsFunc(s, func(r rune) bool { return r == '/' || r == '\\' })
			n := len(segments)
			if strings.HasSuffix(s, "/") {
				n++
			}
			if n != want {
				t.Fatalf("%q: %q has %d segments when read as %q, else %d", in, norm, n, s, want)
			}
			for _, seg := range segments {
				name, _, _ := strings.Cut(seg, ";")
				if name == "." || name == ".." || name == "" {
					t.Fatalf("%q: %q has a dot or empty segment when read as %q", in, norm, s)
				}
			}
			next, err := url.PathUnescape(s)
			if err != nil || next == s {
				return
			}
			s = next
		}
	})
}
