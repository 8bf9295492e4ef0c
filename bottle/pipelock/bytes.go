package pipelock

import "bottle/bottle"

// A Codec is this package on bytes instead of documents, for those who know pipelock.yaml
// only through an interface of their own (apply.Codec). It holds no state.
type Codec struct{}

// Allowlist returns the hosts and ports of a file; the seal is not checked.
func (Codec) Allowlist(b []byte) ([]bottle.AllowEntry, error) {
	d, err := Parse(b)
	if err != nil {
		return nil, err
	}
	return d.Allowlist(), nil
}

// SetAllowlist returns the file, sealed, with that list and all else as it was. An empty b
// means a new file.
func (Codec) SetAllowlist(b []byte, list []bottle.AllowEntry) ([]byte, error) {
	if len(b) == 0 {
		d, err := New(list)
		if err != nil {
			return nil, err
		}
		out, _, err := d.Bytes()
		return out, err
	}
	d, err := Parse(b)
	if err != nil {
		return nil, err
	}
	if err := d.SetAllowlist(list); err != nil {
		return nil, err
	}
	out, _, err := d.Bytes()
	return out, err
}

// Validate is [Validate].
func (Codec) Validate(old, new []byte) error { return Validate(old, new) } //nolint:revive // as there

// NeedsReplacement is [NeedsReplacement].
func (Codec) NeedsReplacement(old, new []byte) bool { return NeedsReplacement(old, new) } //nolint:revive // as there

// Lines is [Lines] of a file.
func (Codec) Lines(b []byte) ([]string, error) {
	d, err := Parse(b)
	if err != nil {
		return nil, err
	}
	return Lines(d), nil
}
