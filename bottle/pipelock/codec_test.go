package pipelock_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"bottle/bottle"
	"bottle/bottle/pipelock"
)

const operators = `# top
version: 1 # v
mode: strict
# about the list
api_allowlist:
  # first
  - a.test # ports 8443; mine
  - "*.b.test" # a note
dlp: {scan_env: true}
# foot
`

func TestCodecKeepsWhatItDoesNotKnow(t *testing.T) {
	doc, err := pipelock.Parse([]byte(operators))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := pipelock.Lines(doc), []string{"*.b.test  ports 80,443", "a.test  ports 8443"}; !slices.Equal(got, want) {
		t.Errorf("lines %q; want %q", got, want)
	}
	if err := doc.SetAllowlist(doc.Allowlist()); err != nil {
		t.Fatal(err)
	}
	b, rev, err := doc.Bytes()
	if err != nil || string(bottle.Body(b)) != operators {
		t.Errorf("unchanged, yet:\n%s%v", b, err)
	}
	if got, err := bottle.CheckSeal(b); err != nil || got != rev {
		t.Errorf("seal %s, %v; want %s", got, err, rev)
	}
	if err := doc.SetAllowlist([]bottle.AllowEntry{entry("c.test"), entry("a.test", 443, 9, 9), entry("*.b.test")}); err != nil {
		t.Fatal(err)
	}
	b, _, err = doc.Bytes()
	want := strings.Replace(operators, "ports 8443; mine", "ports 9,443; mine", 1)
	want = strings.Replace(want, "# a note\n", "# a note\n  - c.test\n", 1)
	if err != nil || string(bottle.Body(b)) != want {
		t.Errorf("got:\n%s%v\nwant:\n%s", b, err, want)
	}
	if err := doc.SetAllowlist(nil); err != nil {
		t.Fatal(err)
	}
	b, _, err = doc.Bytes()
	if err != nil || !strings.Contains(string(b), "- bottle.invalid\n") || !strings.Contains(string(b), "dlp: {scan_env: true}\n# foot\n") {
		t.Errorf("empty: %s%v", b, err)
	}
	again, err := pipelock.Parse(b)
	if err != nil || len(again.Allowlist()) != 0 {
		t.Errorf("empty list reads back as %v, %v", again.Allowlist(), err)
	}
}

func TestCodecRefuses(t *testing.T) {
	for name, tt := range map[string]struct{ in, want string }{
		"empty":               {"", "empty"},
		"no mode":             {"api_allowlist: [a.test]\n", "mode: missing"},
		"balanced":            {"mode: balanced\napi_allowlist: [a.test]\n", "only strict"},
		"a null mode":         {"mode:\napi_allowlist: [a.test]\n", "only strict"},
		"mode twice":          {"mode: strict\nmode: balanced\napi_allowlist: [a.test]\n", "twice"},
		"mode by merge":       {"mode: strict\n<<: {mode: audit}\napi_allowlist: [a.test]\n", "merge key"},
		"mode by alias":       {"x: &m strict\nmode: *m\napi_allowlist: [a.test]\n", "alias"},
		"an agent's mode":     {"mode: strict\napi_allowlist: [a.test]\nagents: {x: {mode: audit}}\n", "agents.x.mode"},
		"no enforcement":      {"mode: strict\nenforce: false\napi_allowlist: [a.test]\n", "enforce"},
		"an agent's":          {"mode: strict\napi_allowlist: [a.test]\nagents: {x: {enforce: no}}\n", "agents.x.enforce"},
		"no list":             {"mode: strict\n", "api_allowlist"},
		"an empty list":       {"mode: strict\napi_allowlist: []\n", "bottle.invalid"},
		"a list of maps":      {"mode: strict\napi_allowlist: [{host: a.test}]\n", "an entry is a host name"},
		"an address":          {"mode: strict\napi_allowlist: [\"127.0.0.1\"]\n", "IP address"},
		"every host":          {"mode: strict\napi_allowlist: [\"*\"]\n", "wildcard"},
		"a public suffix":     {"mode: strict\napi_allowlist: [\"*.com\"]\n", "public suffix"},
		"a host twice":        {"mode: strict\napi_allowlist: [a.test, A.test.]\n", "twice"},
		"bad ports":           {"mode: strict\napi_allowlist:\n  - a.test # ports 99999\n", "does not list ports"},
		"no ports":            {"mode: strict\napi_allowlist:\n  - a.test # ports\n", "does not list ports"},
		"two documents":       {"mode: strict\napi_allowlist: [a.test]\n---\nmode: audit\n", "more than one"},
		"not a mapping":       {"[a]\n", "not a mapping"},
		"not YAML":            {"a: [\n", "not YAML"},
		"bytes that are none": {"mode: strict\napi_allowlist: [a.test]\nx: \"\x00\"\n", "not YAML"},
	} {
		if _, err := pipelock.Parse([]byte(tt.in)); err == nil || !strings.Contains(err.Error(), tt.want) || !errors.Is(err, bottle.ErrInvalid) {
			t.Errorf("%s: %v; want %q", name, err, tt.want)
		}
	}
	doc, err := pipelock.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, list := range map[string][]bottle.AllowEntry{
		"a host twice":    {entry("a.test"), entry("A.test")},
		"an address":      {entry("10.0.0.1")},
		"a port too high": {entry("a.test", 65536)},
		"a port of 0":     {entry("a.test", 0)},
		"the placeholder": {entry("bottle.invalid")},
	} {
		if err := doc.SetAllowlist(list); !errors.Is(err, bottle.ErrInvalid) {
			t.Errorf("SetAllowlist with %s: %v", name, err)
		}
	}
}

func TestRules(t *testing.T) {
	base := "mode: strict\napi_allowlist: [a.test]\n"
	seal := func(s string) []byte { b, _ := bottle.Seal([]byte(s)); return b }
	for name, tt := range map[string]struct {
		next    string
		replace bool
	}{
		"another list":     {"mode: strict\napi_allowlist: [b.test]\n", false},
		"another order":    {"# c\napi_allowlist: [a.test]\nmode: strict\n", false},
		"trusted domains":  {base + "trusted_domains: [a.test]\n", true},
		"passthrough":      {base + "tls_interception: {passthrough_domains: [a.test]}\n", true},
		"an address range": {base + "ssrf: {ip_allowlist: [10.0.0.0/8]}\n", true},
	} {
		if err := pipelock.Validate(seal(base), seal(tt.next)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := pipelock.NeedsReplacement(seal(base), seal(tt.next)); got != tt.replace {
			t.Errorf("%s: needs replacement: %v", name, got)
		}
	}
	if err := pipelock.Validate(nil, []byte(base)); !errors.Is(err, bottle.ErrCorrupt) {
		t.Errorf("unsealed: %v", err)
	}
	if err := pipelock.Validate([]byte("x"), seal(base)); err == nil {
		t.Error("an old file that is none passed")
	}
	if err := pipelock.Validate(seal(base), seal("mode: audit\n")); !errors.Is(err, bottle.ErrInvalid) {
		t.Errorf("audit mode: %v", err)
	}
	if !pipelock.NeedsReplacement(nil, seal(base)) {
		t.Error("nothing can't be reloaded")
	}
}

func TestCodecOfBytes(t *testing.T) {
	var c pipelock.Codec
	list := []bottle.AllowEntry{entry("a.test", 8443), entry("b.test", 80, 443)}
	b, err := c.SetAllowlist(nil, list)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := c.SetAllowlist(b, list); err != nil || string(again) != string(b) {
		t.Errorf("the same list again: %s, %v", again, err)
	}
	if got, err := c.Lines(b); err != nil || !slices.Equal(got, []string{"a.test  ports 8443", "b.test  ports 80,443"}) {
		t.Errorf("lines %q, %v", got, err)
	}
	if got, err := c.Allowlist(b); err != nil || len(got) != 2 {
		t.Errorf("allowlist %v, %v", got, err)
	}
	if c.Validate(nil, b) != nil || c.NeedsReplacement(b, b) {
		t.Error("the file refuses itself")
	}
	for _, bad := range []string{"x", "mode: audit\n"} {
		_, err1 := c.SetAllowlist([]byte(bad), list)
		_, err2 := c.Allowlist([]byte(bad))
		_, err3 := c.Lines([]byte(bad))
		for _, err := range []error{err1, err2, err3, c.Validate(nil, []byte(bad))} {
			if !errors.Is(err, bottle.ErrInvalid) {
				t.Errorf("%q: %v", bad, err)
			}
		}
	}
}

// What bottle writes by itself is nothing to warn of.
func TestKeysThatTheGateDoesNotEnforce(t *testing.T) {
	const head = "mode: strict\napi_allowlist: [a.example.com]\n"
	own, err := pipelock.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := own.Keys(); len(got) > 0 {
		t.Errorf("of bottle's own file: %q", got)
	}
	for text, want := range map[string]string{
		"forward_proxy: {enabled: true}":          "",
		"forward_proxy: {enabled: false}":         "forward_proxy",
		"forward_proxy: {enabled: true, port: 1}": "forward_proxy",
		"forward_proxy: yes":                      "forward_proxy",
		"dlp: {enabled: true}":                    "dlp",
	} {
		doc, err := pipelock.Parse([]byte(head + text + "\n"))
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got := strings.Join(doc.Keys(), ","); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}
