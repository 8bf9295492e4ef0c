package bottle_test

import (
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"bottle/bottle"
)

var statuses = []bottle.Status{
	bottle.Pending, bottle.Approved, bottle.Applied, bottle.Failed,
	bottle.Denied, bottle.Cancelled, bottle.Expired, bottle.Revoked,
}

// recordIn returns a record in a state that only a chain of transitions leads to.
func recordIn(t *testing.T, s bottle.Status) *bottle.Record {
	t.Helper()
	r := &bottle.Record{Short: "r1"}
	chains := map[bottle.Status][]bottle.Status{
		bottle.Pending: {}, bottle.Approved: {bottle.Approved}, bottle.Applied: {bottle.Approved, bottle.Applied},
		bottle.Failed: {bottle.Approved, bottle.Failed}, bottle.Denied: {bottle.Denied}, bottle.Cancelled: {bottle.Cancelled},
		bottle.Expired: {bottle.Expired}, bottle.Revoked: {bottle.Approved, bottle.Applied, bottle.Revoked},
	}
	for _, next := range chains[s] {
		if err := r.Transition(next, time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func TestTransition(t *testing.T) {
	legal := map[[2]bottle.Status]bool{
		{bottle.Pending, bottle.Approved}: true, {bottle.Pending, bottle.Denied}: true,
		{bottle.Pending, bottle.Cancelled}: true, {bottle.Pending, bottle.Expired}: true,
		{bottle.Approved, bottle.Applied}: true, {bottle.Approved, bottle.Failed}: true,
		{bottle.Applied, bottle.Revoked}: true, {bottle.Applied, bottle.Expired}: true,
	}
	at := time.Date(2026, 1, 1, 1, 0, 0, 0, time.FixedZone("x", 3600))
	for _, from := range statuses {
		for _, to := range append(slices.Clone(statuses), "", "nonsense") {
			r := recordIn(t, from)
			before := r.State
			err := r.Transition(to, at)
			if legal[[2]bottle.Status{from, to}] {
				if err != nil || r.State.Status() != to || !r.State.Since().Equal(at) || r.State.Since().Location() != time.UTC {
					t.Errorf("%s -> %s: %v, now %s since %s", from, to, err, r.State.Status(), r.State.Since())
				}
				continue
			}
			if !errors.Is(err, bottle.ErrState) || r.State != before {
				t.Errorf("%s -> %s: %v, now %s", from, to, err, r.State.Status())
			}
		}
	}
}

func TestStatus(t *testing.T) {
	final := []bottle.Status{bottle.Failed, bottle.Denied, bottle.Cancelled, bottle.Expired, bottle.Revoked}
	for _, s := range statuses {
		if got, want := s.Final(), slices.Contains(final, s); got != want {
			t.Errorf("%s.Final() = %t", s, got)
		}
		if got, want := s.Decided(), s != bottle.Pending && s != bottle.Approved; got != want {
			t.Errorf("%s.Decided() = %t", s, got)
		}
		r := recordIn(t, s)
		b, err := json.Marshal(r.State)
		if err != nil {
			t.Fatal(err)
		}
		var back bottle.State
		if err := json.Unmarshal(b, &back); err != nil || back.Status() != s || !back.Since().Equal(r.State.Since()) {
			t.Errorf("%s: %v from %s", s, err, b)
		}
	}
	var zero bottle.State
	if zero.Status() != bottle.Pending {
		t.Errorf("the zero state is %s", zero.Status())
	}
	if err := json.Unmarshal([]byte(`{"status":"granted"}`), &zero); !errors.Is(err, bottle.ErrCorrupt) {
		t.Errorf("an unknown status: %v", err)
	}
}

func ask() bottle.Ask {
	return bottle.Ask{
		Kind: bottle.KindAccess, Reason: "to fetch modules",
		Add: []bottle.Entry{
			{Host: "b.example", Ports: []int{443}},
			{Host: "a.example", Matches: []bottle.Match{{Method: "GET", Path: &bottle.PathMatch{Type: bottle.PathPrefix, Value: "/v1"}}}},
		},
	}
}

func canonical(t *testing.T, a bottle.Ask) bottle.Ask {
	t.Helper()
	c, err := a.Canonical()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestAskCanonical(t *testing.T) {
	a := ask()
	a.Kind = ""
	a.Add = append(a.Add, bottle.Entry{Host: "B.Example.", Ports: []int{443, 443}}, bottle.Entry{Host: "c.example", Ports: []int{443, 80}})
	a.Add[1].Matches[0].Method = "get"
	a.Add[1].Matches[0].Path.Value = "/v1/"
	got := canonical(t, a)
	want := ask()
	want.Add = []bottle.Entry{want.Add[1], want.Add[0], {Host: "c.example"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if again := canonical(t, got); !reflect.DeepEqual(again, got) {
		t.Errorf("not a fixed point: %+v", again)
	}
}

func TestAskRefused(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(*bottle.Ask)
		want error
		text string
	}{
		{"kind", func(a *bottle.Ask) { a.Kind = "sudo" }, bottle.ErrInvalid, `kind: "sudo"`},
		{"nothing", func(a *bottle.Ask) { a.Add = nil }, bottle.ErrInvalid, "name at least one entry"},
		{"too much", func(a *bottle.Ask) { a.Add = make([]bottle.Entry, 51) }, bottle.ErrLimit, "51 entries in one request; at most 50"},
		{"too much together", func(a *bottle.Ask) { a.Remove = make([]bottle.Entry, 49) }, bottle.ErrLimit, "51 entries"},
		{"no reason", func(a *bottle.Ask) { a.Reason = " \n" }, bottle.ErrInvalid, "reason: empty"},
		{"long reason", func(a *bottle.Ask) { a.Reason = strings.Repeat("x", 4001) }, bottle.ErrLimit, "4001 bytes; at most 4000"},
		{"negative ttl", func(a *bottle.Ask) { a.TTLSeconds = -1 }, bottle.ErrInvalid, "ttl_seconds: -1; use 1 to 2592000"},
		{"long ttl", func(a *bottle.Ask) { a.TTLSeconds = 1 << 40 }, bottle.ErrInvalid, "ttl_seconds"},
		{"ttl that overflows", func(a *bottle.Ask) { a.TTLSeconds = 1 << 62 }, bottle.ErrInvalid, "ttl_seconds"},
		{"credential", func(a *bottle.Ask) { a.Credential = "../x" }, bottle.ErrInvalid, `credential: name "../x"`},
		{"host", func(a *bottle.Ask) { a.Add[1].Host = "*.com" }, bottle.ErrInvalid, "add[1]: host pattern"},
		{"host to remove", func(a *bottle.Ask) { a.Remove = []bottle.Entry{{Host: "1.2.3.4"}} }, bottle.ErrInvalid, "remove[0]: host"},
		{"port", func(a *bottle.Ask) { a.Add[0].Ports = []int{0} }, bottle.ErrInvalid, "ports: 0 of b.example"},
		{"ports", func(a *bottle.Ask) { a.Add[0].Ports = make([]int, 65) }, bottle.ErrInvalid, "ports: 65 of them"},
		{"matches", func(a *bottle.Ask) { a.Add[0].Matches = make([]bottle.Match, 51) }, bottle.ErrInvalid, "51 of them for b.example"},
		{"empty match", func(a *bottle.Ask) { a.Add[0].Matches = []bottle.Match{{}} }, bottle.ErrInvalid, "would match everything"},
		{"method", func(a *bottle.Ask) { a.Add[1].Matches[0].Method = "GET /" }, bottle.ErrInvalid, "is not an HTTP method"},
		{"CONNECT", func(a *bottle.Ask) { a.Add[1].Matches[0].Method = "connect" }, bottle.ErrInvalid, "CONNECT can't be routed"},
		{"path", func(a *bottle.Ask) { a.Add[1].Matches[0].Path.Value = "v1" }, bottle.ErrInvalid, "path"},
		{"path type", func(a *bottle.Ask) { a.Add[1].Matches[0].Path.Type = "Glob" }, bottle.ErrInvalid, "use Exact, PathPrefix or RegularExpression"},
		{"long path", func(a *bottle.Ask) { a.Add[1].Matches[0].Path.Value = "/" + strings.Repeat("x", 2048) }, bottle.ErrInvalid, "longer than 2048 bytes"},
		{"regexp", func(a *bottle.Ask) {
			a.Add[1].Matches[0].Path = &bottle.PathMatch{Type: bottle.RegularExpression, Value: "("}
		}, bottle.ErrInvalid, "not a regular expression"},
		{"regexp that leaves its anchors", func(a *bottle.Ask) {
			a.Add[1].Matches[0].Path = &bottle.PathMatch{Type: bottle.RegularExpression, Value: "a)|(?:b"}
		}, bottle.ErrInvalid, "not a regular expression"},
		{"empty regexp", func(a *bottle.Ask) { a.Add[1].Matches[0].Path = &bottle.PathMatch{Type: bottle.RegularExpression} }, bottle.ErrInvalid, "an empty regular expression"},
		{"header name", func(a *bottle.Ask) { a.Add[1].Matches[0].Headers = []bottle.HeaderMatch{{Name: "a:b"}} }, bottle.ErrInvalid, "is not a header name"},
		{"header value", func(a *bottle.Ask) {
			a.Add[1].Matches[0].Headers = []bottle.HeaderMatch{{Name: "a", Value: "x\r\ny"}}
		}, bottle.ErrInvalid, "is not a header value"},
		{"header type", func(a *bottle.Ask) {
			a.Add[1].Matches[0].Headers = []bottle.HeaderMatch{{Name: "a", Type: bottle.PathPrefix}}
		}, bottle.ErrInvalid, "is not Exact or RegularExpression"},
		{"headers", func(a *bottle.Ask) { a.Add[1].Matches[0].Headers = make([]bottle.HeaderMatch, 17) }, bottle.ErrInvalid, "17 of them; at most 16"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := ask()
			tt.edit(&a)
			_, err := a.Canonical()
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, want %v that says %s", err, tt.want, tt.text)
			}
		})
	}
}

// What the same ask is decides whether a submission joins one that is pending.
func TestAskDigest(t *testing.T) {
	base := canonical(t, ask()).Digest()
	const golden = "sha256:142d05833d12f83c5789a9da4a386805550a9f46d435c6325918f2acc79a8101" // moves only with the meaning of an ask
	if base != golden {
		t.Errorf("digest is %s, was %s", base, golden)
	}
	for _, tt := range []struct {
		name string
		edit func(*bottle.Ask)
		same bool
	}{
		{"another reason", func(a *bottle.Ask) { a.Reason = "please" }, true},
		{"another order", func(a *bottle.Ask) { slices.Reverse(a.Add) }, true},
		{"an entry twice", func(a *bottle.Ask) { a.Add = append(a.Add, a.Add[0]) }, true},
		{"another spelling", func(a *bottle.Ask) { a.Add[0].Host = "B.EXAMPLE." }, true},
		{"the kind left out", func(a *bottle.Ask) { a.Kind = "" }, true},
		{"another host", func(a *bottle.Ask) { a.Add[0].Host = "c.example" }, false},
		{"another port", func(a *bottle.Ask) { a.Add[0].Ports = []int{8443} }, false},
		{"another method", func(a *bottle.Ask) { a.Add[1].Matches[0].Method = "POST" }, false},
		{"any method", func(a *bottle.Ask) { a.Add[1].Matches[0].Method = "" }, false},
		{"another path", func(a *bottle.Ask) { a.Add[1].Matches[0].Path.Value = "/v2" }, false},
		{"another type of path", func(a *bottle.Ask) { a.Add[1].Matches[0].Path.Type = bottle.Exact }, false},
		{"a header", func(a *bottle.Ask) { a.Add[1].Matches[0].Headers = []bottle.HeaderMatch{{Name: "a", Value: "b"}} }, false},
		{"to remove", func(a *bottle.Ask) { a.Add, a.Remove = nil, a.Add }, false},
		{"a credential", func(a *bottle.Ask) { a.Credential = "tok" }, false},
		{"a time", func(a *bottle.Ask) { a.TTLSeconds = 60 }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := ask()
			tt.edit(&a)
			if got := canonical(t, a).Digest(); (got == base) != tt.same {
				t.Errorf("digest %s, base %s; same should be %t", got, base, tt.same)
			}
		})
	}
}

// What may change in queue/requests after first sight, and what is tampering.
func TestFirstDigest(t *testing.T) {
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	request := func() bottle.Request {
		return bottle.Request{Schema: 1, ID: "01890a5d-ac96-774b-bcce-b302099a8057", Ask: ask(), CreatedAt: at, Attempts: 1, LastAt: at}
	}
	base := request().FirstDigest()
	const golden = "sha256:50b2c6e7b9da330f4678e32d8b9d8c37e19fa04e10771e01d9c854884dd607a2"
	if base != golden {
		t.Errorf("digest is %s, was %s", base, golden)
	}
	for _, tt := range []struct {
		name string
		edit func(*bottle.Request)
		same bool
	}{
		{"attempts", func(r *bottle.Request) { r.Attempts = 9 }, true},
		{"last attempt", func(r *bottle.Request) { r.LastAt = at.Add(time.Hour) }, true},
		{"keys", func(r *bottle.Request) { r.Keys = []string{"k"} }, true},
		{"time zone", func(r *bottle.Request) { r.CreatedAt = at.In(time.FixedZone("x", 3600)) }, true},
		{"time", func(r *bottle.Request) { r.CreatedAt = at.Add(time.Nanosecond) }, false},
		{"id", func(r *bottle.Request) { r.ID = "x" }, false},
		{"reason", func(r *bottle.Request) { r.Ask.Reason = "other" }, false},
		{"host", func(r *bottle.Request) { r.Ask.Add[0].Host = "c.example" }, false},
		{"time asked for", func(r *bottle.Request) { r.Ask.TTLSeconds = 1 }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := request()
			tt.edit(&r)
			if got := r.FirstDigest(); (got == base) != tt.same {
				t.Errorf("digest %s, base %s; same should be %t", got, base, tt.same)
			}
		})
	}
}

func TestAnswer(t *testing.T) {
	r := recordIn(t, bottle.Applied)
	r.Request.ID = "id"
	if a := r.Answer(); a.Duration != "" || a.Status != bottle.Applied || a.Short != "r1" || a.Schema != bottle.Schema {
		t.Errorf("without a decision: %+v", a)
	}
	r.Decision = &bottle.Decision{By: bottle.Actor{UID: 1000, Name: "op"}, Note: "less", Duration: bottle.Duration{Kind: bottle.Once}}
	a := r.Answer()
	if a.Note != "less" || a.Duration != "once" {
		t.Errorf("with one: %+v", a)
	}
	b, err := json.Marshal(a)
	if err != nil || strings.Contains(string(b), "1000") {
		t.Errorf("the agent is told who decided: %s, %v", b, err)
	}
	if got := (bottle.Ticket{}).Status(); got != bottle.Pending {
		t.Errorf("a ticket without answer is %s", got)
	}
	if got := (bottle.Ticket{Answer: &a}).Status(); got != bottle.Applied {
		t.Errorf("a ticket is %s", got)
	}
	if got := r.Decision.By.String(); got != "1000 op" {
		t.Errorf("actor %q", got)
	}
}
