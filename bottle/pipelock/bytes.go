package pipelock

import "bottle/bottle"

// Codec is the codec of pipelock.yaml for those who hold the file's bytes, as apply does.
// Its errors are those of the functions that it stands for.
type Codec struct{}

// Allowlist returns the hosts and ports that the file allows, sorted by host.
func (Codec) Allowlist(b []byte) ([]bottle.AllowEntry, error) {
	doc, err := Parse(b)
	if err != nil {
		return nil, err
	}
	return doc.Allowlist(), nil
}

// SetAllowlist returns the file with another allowlist and all else as it was, sealed; of an
// empty b, a new file. The same list gives the same bytes again.
func (Codec) SetAllowlist(b []byte, list []bottle.AllowEntry) ([]byte, error) {
	doc, err := parseOrNew(b)
	if err != nil {
		return nil, err
	}
	if err := doc.SetAllowlist(list); err != nil {
		return nil, err
	}
	out, _, err := doc.Bytes()
	return out, err
}

func parseOrNew(b []byte) (*Doc, error) {
	if len(b) == 0 {
		return New(nil)
	}
	return Parse(b)
}

// Validate is [Validate].
func (Codec) Validate(old, new []byte) error { return Validate(old, new) } //nolint:revive // as there

// NeedsReplacement is [NeedsReplacement].
func (Codec) NeedsReplacement(old, new []byte) bool { return NeedsReplacement(old, new) } //nolint:revive // as there

// Lines describes the file for a semantic diff, a line for each host.
func (Codec) Lines(b []byte) ([]string, error) {
	doc, err := Parse(b)
	if err != nil {
		return nil, err
	}
	return Lines(doc), nil
}
