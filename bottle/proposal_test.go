package bottle_test

import (
	"reflect"
	"testing"
	"time"

	"bottle/bottle"
)

func proposal() bottle.Proposal {
	return bottle.Proposal{
		Request: "01890a5d-ac96-774b-bcce-b302099a8057", Kind: bottle.KindAccess, Reason: "to fetch",
		Add:      []bottle.Entry{{Host: "a.example"}},
		Duration: bottle.Duration{Kind: bottle.TTL, TTL: time.Minute},
		Diffs:    []bottle.FileDiff{{File: bottle.RoutesFile, Add: []string{"a.example  every method and path"}}},
		Risks:    []bottle.Risk{{Level: "medium", Code: "whole-host", Text: "the whole host"}},
	}
}

// An operator approves a digest: everything that was shown is in it.
func TestProposalDigest(t *testing.T) {
	base := proposal().Digest()
	const golden = "sha256:0e6df672af80328f0be1986f6e8adda05a7205c142e5c6dab47f279fec0de0ee"
	if base != golden {
		t.Errorf("digest is %s, was %s", base, golden)
	}
	for name, edit := range map[string]func(*bottle.Proposal){
		"request":     func(p *bottle.Proposal) { p.Request = "x" },
		"kind":        func(p *bottle.Proposal) { p.Kind = "push" },
		"reason":      func(p *bottle.Proposal) { p.Reason = "x" },
		"add":         func(p *bottle.Proposal) { p.Add[0].Ports = []int{443} },
		"remove":      func(p *bottle.Proposal) { p.Add, p.Remove = nil, p.Add },
		"credential":  func(p *bottle.Proposal) { p.Credential = "tok" },
		"duration":    func(p *bottle.Proposal) { p.Duration.TTL = 2 * time.Minute },
		"kind of end": func(p *bottle.Proposal) { p.Duration = bottle.Duration{Kind: bottle.Session} },
		"diff":        func(p *bottle.Proposal) { p.Diffs[0].Add[0] = "b.example" },
		"diff's sign": func(p *bottle.Proposal) { d := &p.Diffs[0]; d.Add, d.Remove = nil, d.Add },
		"file":        func(p *bottle.Proposal) { p.Diffs[0].File = bottle.PipelockFile },
		"risk":        func(p *bottle.Proposal) { p.Risks = nil },
	} {
		p := proposal()
		edit(&p)
		if p.Digest() == base {
			t.Errorf("%s is not in the digest", name)
		}
	}
}

func TestDiffLines(t *testing.T) {
	for _, tt := range []struct {
		name          string
		before, after []string
		add, remove   []string
	}{
		{"nothing", nil, nil, nil, nil},
		{"order alone", []string{"a", "b"}, []string{"b", "a"}, nil, nil},
		{"both ways", []string{"a", "b"}, []string{"c", "b"}, []string{"c"}, []string{"a"}},
		{"a line twice", []string{"a"}, []string{"a", "a", "a"}, []string{"a", "a"}, nil},
		{"sorted", nil, []string{"c", "a", "b"}, []string{"a", "b", "c"}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := bottle.DiffLines("f", tt.before, tt.after)
			want := bottle.FileDiff{File: "f", Add: tt.add, Remove: tt.remove}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got %+v, want %+v", got, want)
			}
			if got.Empty() != (len(tt.add)+len(tt.remove) == 0) {
				t.Errorf("Empty() = %t", got.Empty())
			}
		})
	}
}
