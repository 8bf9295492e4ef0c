package bottle

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"
)

// A Proposal is everything that an operator is shown before the yes. Its digest is what
// an approval is bound to: if any part of it would come out differently, the digest does.
type Proposal struct {
	Request    string     `json:"request"` // UUID
	Kind       string     `json:"kind"`
	Add        []Entry    `json:"add,omitempty"`
	Remove     []Entry    `json:"remove,omitempty"`
	Credential string     `json:"credential,omitempty"`
	Duration   Duration   `json:"duration"`
	Reason     string     `json:"reason"` // the first one
	Diffs      []FileDiff `json:"diffs"`  // in the order of file names
	Risks      []Risk     `json:"risks,omitempty"`
}

// A FileDiff says what changes in one config file, in lines with a meaning of their own.
// It holds no times and no comments, so rebasing onto an unrelated change keeps it equal.
type FileDiff struct {
	File   string   `json:"file"`
	Add    []string `json:"add,omitempty"`
	Remove []string `json:"remove,omitempty"`
}

// Empty reports whether nothing changes.
func (d FileDiff) Empty() bool { return len(d.Add)+len(d.Remove) == 0 }

// A Risk is something that an operator should weigh: a wildcard, a whole host, a
// look-alike of an allowed host, a permanent grant.
type Risk struct {
	Level string `json:"level"` // high, medium or low
	Code  string `json:"code"`  // stable, for programs: wildcard, look-alike, whole-host ...
	Text  string `json:"text"`
}

// Digest returns the digest that an approval names.
func (p Proposal) Digest() Hash { return digestJSON("bottle proposal 1", p) }

// DiffLines compares two multisets of lines and returns what was added and removed, sorted.
func DiffLines(file string, before, after []string) FileDiff {
	count := map[string]int{}
	for _, l := range before {
		count[l]--
	}
	for _, l := range after {
		count[l]++
	}
	d := FileDiff{File: file}
	for l, n := range count {
		for ; n > 0; n-- {
			d.Add = append(d.Add, l)
		}
		for ; n < 0; n++ {
			d.Remove = append(d.Remove, l)
		}
	}
	slices.Sort(d.Add)
	slices.Sort(d.Remove)
	return d
}

// digestJSON hashes a value's JSON under a domain label. encoding/json writes struct
// fields in order and map keys sorted, so equal values give equal bytes.
func digestJSON(label string, v any) Hash {
	b, err := json.Marshal(v)
	if err != nil { // only for types that JSON can't hold, which is a programming error; never equal to anything
		return Sum([]byte(label + "\x00" + err.Error()))
	}
	return Sum(append([]byte(label+"\x00"), b...))
}

func sortEntries(e []Entry) []Entry {
	key := func(e Entry) string { return strings.Join(e.Lines(), "\n") }
	slices.SortFunc(e, func(a, b Entry) int { return cmp.Compare(key(a), key(b)) })
	return slices.CompactFunc(e, func(a, b Entry) bool { return key(a) == key(b) })
}
