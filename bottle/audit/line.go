package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

const (
	hashPrefix = "sha256:"
	hashMember = `,"hash":"` + hashPrefix
	hashSuffix = len(hashMember) + 2*sha256.Size + len(`"}`)

	maxName = 256 // bytes of a field that identifies something and so cannot be shortened
)

// genesis is the Prev of the first entry.
var genesis = hashPrefix + strings.Repeat("0", 2*sha256.Size)

// maxEvent bounds an event's name, in bytes.
const maxEvent = 64

// eventForm reports whether s is lower case letters and dashes, a letter first. It is no
// regexp because a bounded repetition takes 1 ms to compile, at each start of each program.
func eventForm(s string) bool {
	return s != "" && s[0] != '-' && len(s) <= maxEvent && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz-") == ""
}

// encode renders e, whose Hash it ignores, as a line with its newline.
func encode(e Entry) ([]byte, error) {
	e.Hash = ""
	body, err := marshalShort(e)
	if err != nil {
		return nil, err
	}
	line := append(body[:len(body)-1:len(body)-1], hashMember...)
	line = append(line, digest(body)...)
	return append(line, "\"}\n"...), nil
}

// decode reads one line, without its newline, and checks its own hash, but not its place in the chain. Where it
// returns errHash the entry is what the line claims.
func decode(line []byte) (Entry, error) {
	var e Entry
	if err := json.Unmarshal(line, &e); err != nil {
		return Entry{}, errors.New("not an audit entry")
	}
	if e.Schema > Schema {
		return e, fmt.Errorf("schema %d: %w", e.Schema, ErrNewer)
	}
	if e.Schema < 1 || len(line) <= hashSuffix {
		return Entry{}, errors.New("not an audit entry")
	}
	cut := len(line) - hashSuffix
	body := append(bytes.Clone(line[:cut]), '}')
	if want := hashMember + digest(body) + `"}`; string(line[cut:]) != want {
		return e, errHash
	}
	return e, nil
}

var errHash = errors.New("changed: its hash does not match its content")

func digest(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:])
}

// marshal returns e as printable ASCII JSON: an operator's terminal must be safe from `tail -f audit.jsonl` as well.
// Outside of strings JSON is ASCII by itself, so escaping can go by runes.
func marshal(e Entry) ([]byte, error) {
	raw, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode audit entry: %w", err)
	}
	out := make([]byte, 0, len(raw)+hashSuffix)
	for len(raw) > 0 {
		r, n := utf8.DecodeRune(raw)
		switch {
		case r >= ' ' && r < 0x7f:
			out = append(out, byte(r))
		case r > 0xffff:
			hi, lo := utf16.EncodeRune(r)
			out = escape(escape(out, hi), lo)
		default:
			out = escape(out, r)
		}
		raw = raw[n:]
	}
	return out, nil
}

func escape(out []byte, r rune) []byte {
	const hexDigits = "0123456789abcdef"
	return append(out, '\\', 'u', hexDigits[r>>12&15], hexDigits[r>>8&15], hexDigits[r>>4&15], hexDigits[r&15])
}

// check refuses what must not be shortened.
func check(e Entry) error {
	if !eventForm(string(e.Event)) {
		return fmt.Errorf("audit entry: event %q: want lower case letters and dashes, 64 at most", e.Event)
	}
	names := []struct{ field, value string }{
		{"bottle", e.Bottle},
		{"request", e.Request},
		{"short", e.Short},
		{"change", e.Change},
		{"digest", e.Digest},
	}
	if e.Actor != nil {
		names = append(names, struct{ field, value string }{"actor name", e.Actor.Name})
	}
	for _, n := range names {
		if len(n.value) > maxName {
			return fmt.Errorf("audit entry: %s has %d bytes: at most %d are kept", n.field, len(n.value), maxName)
		}
	}
	return nil
}

// marshalShort halves what a string and a list may hold until e fits. The first bounds leave alone whatever could fit.
func marshalShort(e Entry) ([]byte, error) {
	for text, items := MaxLine, MaxLine/4; text >= 64; text, items = text/2, max(items/4, 4) {
		body, err := marshal(shorten(e, text, items))
		if err != nil {
			return nil, err
		}
		if len(body)+hashSuffix < MaxLine { // and a newline
			return body, nil
		}
	}
	return nil, fmt.Errorf("audit entry: cannot be shortened to %d bytes", MaxLine)
}

func shorten(e Entry, text, items int) Entry {
	e.Outcome = cut(e.Outcome, text)
	e.Detail = cut(e.Detail, text)
	e.Edited = cutList(e.Edited, text, items)
	e.Before = cutMap(e.Before, text, items, func(l []string) []string { return cutList(l, text, items) })
	e.After = cutMap(e.After, text, items, func(l []string) []string { return cutList(l, text, items) })
	e.Revision = cutMap(e.Revision, text, items, func(s string) string { return cut(s, text) })
	return e
}

func cut(s string, size int) string {
	if len(s) <= size {
		return s
	}
	keep := size
	for keep > 0 && !utf8.RuneStart(s[keep]) {
		keep--
	}
	return fmt.Sprintf("%s [cut: %d more bytes]", s[:keep], len(s)-keep)
}

func cutList(list []string, text, items int) []string {
	short := make([]string, 0, min(len(list), items)+1)
	for i, s := range list {
		if i == items {
			short = append(short, fmt.Sprintf("[cut: %d more lines]", len(list)-items))
			break
		}
		short = append(short, cut(s, text))
	}
	return short
}

// cutMap keeps the first keys in their order, and says how many are missing in one more key.
func cutMap[V any](m map[string]V, text, items int, value func(V) V) map[string]V {
	short := make(map[string]V, min(len(m), items)+1)
	for i, key := range slices.Sorted(maps.Keys(m)) {
		if i == items {
			var none V
			short[fmt.Sprintf("[cut: %d more files]", len(m)-items)] = none
			break
		}
		short[cut(key, text)] = value(m[key])
	}
	return short
}
