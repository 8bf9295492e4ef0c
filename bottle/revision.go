package bottle

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
)

// A config file ends in a line that names the digest of all bytes before it:
//
//	# revision: sha256:<64 hex digits>\n
//
// A reader that sees another digest has a torn or hand-edited file and keeps what it
// had. It is a YAML comment, so every parser passes over it.
const revisionPrefix = "# revision: "

// Sum is the sha256 of b as a [Hash].
func Sum(b []byte) Hash {
	s := sha256.Sum256(b)
	return Hash("sha256:" + hex.EncodeToString(s[:]))
}

// Seal returns the body with its revision line, and the revision. A revision line that
// the body already ends in is replaced.
func Seal(body []byte) ([]byte, Hash) {
	body = Body(body)
	if len(body) > 0 && body[len(body)-1] != '\n' {
		body = append(bytes.Clone(body), '\n')
	}
	rev := Sum(body)
	out := make([]byte, 0, len(body)+len(revisionPrefix)+len(rev)+1)
	out = append(out, body...)
	out = append(out, revisionPrefix...)
	out = append(out, rev...)
	return append(out, '\n'), rev
}

// Body returns b without its last line if that is a revision line.
func Body(b []byte) []byte {
	body, _, ok := cutRevision(b)
	if !ok {
		return b
	}
	return body
}

// CheckSeal verifies the revision line and returns the revision. The error wraps
// [ErrCorrupt] and says whether the line is missing or wrong.
func CheckSeal(b []byte) (Hash, error) {
	body, claimed, ok := cutRevision(b)
	if !ok {
		return "", fmt.Errorf("the last line is not a revision line (torn, or edited by hand): %w", ErrCorrupt)
	}
	if got := Sum(body); got != claimed {
		return "", fmt.Errorf("the revision line says %s but the content is %s (torn, or edited by hand): %w", claimed.Short(), got.Short(), ErrCorrupt)
	}
	return claimed, nil
}

func cutRevision(b []byte) (body []byte, rev Hash, ok bool) {
	if len(b) == 0 || b[len(b)-1] != '\n' {
		return nil, "", false
	}
	start := bytes.LastIndexByte(b[:len(b)-1], '\n') + 1
	line, found := bytes.CutPrefix(b[start:len(b)-1], []byte(revisionPrefix))
	if !found || len(line) != len("sha256:")+64 {
		return nil, "", false
	}
	return b[:start], Hash(line), true
}
