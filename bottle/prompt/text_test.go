package prompt_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"bottle/bottle/prompt"
)

func TestText(t *testing.T) {
	for _, tc := range []struct{ name, in, want string }{
		{"plain", "I need v1.2 of it, 100 %", "I need v1.2 of it, 100 %"},
		{"accents", "déjà vu für Zoë", "déjà vu für Zoë"},
		{"one other script", "нужен доступ", "нужен доступ"},
		{"japanese", "アクセスが必要です", "アクセスが必要です"},
		{"csi", "a\x1b[31mb", "a<U+001B>[31mb"},
		{"osc title", "\x1b]0;x\x07", "<U+001B>]0;x<U+0007>"},
		{"c1 csi", "\u009b31m", "<U+009B>31m"},
		{"raw c1 byte", "\x9b31m", "<0x9B>31m"},
		{"newline", "a\nb", "a<U+000A>b"},
		{"carriage return", "safe\rEVIL", "safe<U+000D>EVIL"},
		{"backspace", "ab\b", "ab<U+0008>"},
		{"bidi override", "a\u202eb", "a<U+202E>b"},
		{"bidi isolate", "a\u2066b", "a<U+2066>b"},
		{"zero width", "a\u200bb\u200d\ufeff", "a<U+200B>b<U+200D><U+FEFF>"},
		{"soft hyphen", "a\u00adb", "a<U+00AD>b"},
		{"line separator", "a\u2028b", "a<U+2028>b"},
		{"no-break space", "a\u00a0b", "a<U+00A0>b"},
		{"tag", "a\U000e0041", "a<U+E0041>"},
		{"variation", "a\ufe0f", "a<U+FE0F>"},
		{"hangul filler", "a\u3164b", "a<U+3164>b"},
		{"cyrillic in latin", "p\u0430ypal.com", "p<U+0430>ypal.com"},
		{"greek in latin", "g\u03bf\u03bfgle", "g<U+03BF><U+03BF>gle"},
		{"full width", "a\uff42c", "a<U+FF42>c"},
		{"whole-cyrillic label before latin", "\u0440\u0430.com", "<U+0440><U+0430>.com"},
		{"marks climb", "e\u0301\u0301\u0301\u0301", "e\u0301\u0301\u0301<U+0301>"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := prompt.Text(tc.in); got != tc.want {
				t.Errorf("Text(%q) = %q, want %q", tc.in, got, tc.want)
			}
		})
	}
}

func TestLinesAreBounded(t *testing.T) {
	got := prompt.Lines(strings.Repeat("x\n", 100), 5)
	if len(got) != 6 || got[5] != "... and 96 more lines (bottle show --full)" {
		t.Errorf("got %q", got)
	}
}

func TestJSONIsASCIIAndMeansTheSame(t *testing.T) {
	in := map[string]string{"reason": "a\x1b[2J\u202e\u200b\U0001f600\x7f é"}
	var b bytes.Buffer
	if err := prompt.JSON(&b, in); err != nil {
		t.Fatal(err)
	}
	for i, c := range b.Bytes() {
		if c > 0x7e || c < 0x20 && c != '\n' {
			t.Fatalf("byte %d is %#x in %q", i, c, b.String())
		}
	}
	var out map[string]string
	if err := json.Unmarshal(b.Bytes(), &out); err != nil || out["reason"] != in["reason"] {
		t.Errorf("got %q, %v", out, err)
	}
}

func FuzzText(f *testing.F) {
	f.Add("a\x1b]8;;x\x07\u202e")
	f.Fuzz(func(t *testing.T, s string) {
		out := prompt.Text(s)
		if !utf8.ValidString(out) {
			t.Fatalf("not UTF-8: %q", out)
		}
		for _, r := range out {
			if r < 0x20 || r >= 0x7f && r < 0xa0 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 || r == 0x200b {
				t.Fatalf("%U came through in %q", r, out)
			}
		}
		if again := prompt.Text(out); again != out {
			t.Fatalf("not a fixed point: %q, then %q", out, again)
		}
	})
}
