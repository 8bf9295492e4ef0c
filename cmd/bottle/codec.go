package main

import (
	"bottle/apply"
	"bottle/bottle"
	"bottle/bottle/allow"
	"bottle/bottle/pipelock"
)

// pipelockCodec is apply's view of pipelock.yaml.
type pipelockCodec struct{}

var _ apply.Codec = pipelockCodec{}

func (pipelockCodec) Allowlist(b []byte) ([]bottle.AllowEntry, error) {
	doc, err := pipelock.Parse(b)
	if err != nil {
		return nil, err
	}
	return doc.Allowlist(), nil
}

func (pipelockCodec) SetAllowlist(b []byte, list []bottle.AllowEntry) ([]byte, error) {
	var doc *pipelock.Doc
	var err error
	if len(b) == 0 {
		doc, err = pipelock.New(list)
	} else if doc, err = pipelock.Parse(b); err == nil {
		err = doc.SetAllowlist(list)
	}
	if err != nil {
		return nil, err
	}
	out, _, err := doc.Bytes()
	return out, err
}

func (pipelockCodec) Validate(before, after []byte) error { return pipelock.Validate(before, after) }

func (pipelockCodec) NeedsReplacement(before, after []byte) bool {
	return pipelock.NeedsReplacement(before, after)
}

func (pipelockCodec) Lines(b []byte) ([]string, error) {
	doc, err := pipelock.Parse(b)
	if err != nil {
		return nil, err
	}
	return pipelock.Lines(doc), nil
}

func hostNotes(h bottle.Host) []string { return allow.HostNotes(h) }
