package mcp

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"bottle/bottle"
)

// A ticketResult is what the request tools return.
type ticketResult struct {
	ID        string                 `json:"id"`
	Short     string                 `json:"short,omitempty"`
	Status    bottle.Status          `json:"status"`
	Next      string                 `json:"next"`
	Asked     change                 `json:"asked"`
	Granted   *change                `json:"granted,omitempty"`
	Duration  string                 `json:"duration,omitempty"`
	ExpiresAt *time.Time             `json:"expires_at,omitempty"`
	Edited    []string               `json:"edited,omitempty"`
	Note      string                 `json:"note,omitempty"`
	Error     string                 `json:"error,omitempty"`
	Revision  map[string]bottle.Hash `json:"revision,omitempty"`
	Attempts  int                    `json:"attempts"`
	Joined    bool                   `json:"joined,omitempty"`
	CreatedAt time.Time              `json:"created_at"`
	UpdatedAt *time.Time             `json:"updated_at,omitempty"`
}

type change struct {
	Add        []bottle.Entry `json:"add,omitempty"`
	Remove     []bottle.Entry `json:"remove,omitempty"`
	Credential string         `json:"credential,omitempty"`
	TTLSeconds int            `json:"ttl_seconds,omitempty"`
}

// lines describes a change, one line for each entry and match.
func (c change) lines() []string {
	var out []string
	for _, e := range c.Add {
		for _, l := range e.Lines() {
			out = append(out, strings.Replace(l, "  ", " ", 1))
		}
	}
	for _, e := range c.Remove {
		for _, l := range e.Lines() {
			out = append(out, "no longer "+strings.Replace(l, "  ", " ", 1))
		}
	}
	return out
}

func (c change) words() string {
	const limit = 3
	lines := c.lines()
	if n := len(lines); n > limit {
		lines = append(lines[:limit:limit], fmt.Sprintf("and %d more", n-limit))
	}
	return strings.Join(lines, ", ")
}

func newTicketResult(t bottle.Ticket) ticketResult {
	r := ticketResult{
		ID: t.Request.ID, Status: t.Status(), Attempts: t.Request.Attempts, Joined: t.Joined, CreatedAt: t.Request.CreatedAt,
		Asked: change{Add: t.Request.Ask.Add, Remove: t.Request.Ask.Remove, Credential: t.Request.Ask.Credential, TTLSeconds: t.Request.Ask.TTLSeconds},
	}
	if a := t.Answer; a != nil {
		r.Short, r.Note, r.Error, r.Edited, r.Revision = a.Short, a.Note, bare(a.Error), a.Edited, a.Revision
		if !a.UpdatedAt.IsZero() {
			r.UpdatedAt = &a.UpdatedAt
		}
		if len(a.Add)+len(a.Remove) > 0 {
			r.Granted = &change{Add: a.Add, Remove: a.Remove, Credential: a.Credential}
			r.Duration, r.ExpiresAt = a.Duration, a.ExpiresAt
		}
	}
	r.Next = r.next()
	return r
}

// next is the sentence that tells the model what has become of its request and what to do.
func (r ticketResult) next() string {
	switch r.Status {
	case bottle.Pending:
		s := "not decided yet: call wait_for_decision with id " + r.ID + ", or go on with other work and look with get_request later"
		if r.Joined {
			s = "the same request was pending already, and this is it; " + s
		}
		return s
	case bottle.Approved:
		return "approved, and being put in force: call wait_for_decision with id " + r.ID
	case bottle.Applied:
		return r.grantedWords() + "; it is in force, so try again what was refused"
	case bottle.Failed:
		return "approved, but it could not be put in force and the old rules hold" + because(r.Error) + "; tell the operator, and ask again when it is mended"
	case bottle.Denied:
		return "denied" + because(r.Note) + "; don't ask for the same again: ask for less, or find another way"
	case bottle.Cancelled:
		return "cancelled; nothing was changed"
	case bottle.Revoked:
		return "it was in force, and the operator has taken it back; if you still need it, ask again and say why" // the note is that of the approval
	case bottle.Expired:
		if r.Granted != nil {
			return "the grant has ended; if you still need it, ask again and say why"
		}
		return "nobody decided in time; ask again if you still need it"
	}
	return "look again with get_request"
}

func (r ticketResult) grantedWords() string {
	if r.Granted == nil {
		return "granted as asked"
	}
	s := "granted: " + r.Granted.words()
	if d, err := bottle.ParseDuration(r.Duration); err == nil {
		s += " " + d.Words()
	}
	if !slices.Equal(r.Granted.lines(), r.Asked.lines()) {
		s += "; you asked for " + r.Asked.words()
	} else if len(r.Edited) > 0 {
		s += "; the operator changed " + strings.Join(r.Edited, ", ")
	}
	return s
}

func because(why string) string {
	if why == "" {
		return ""
	}
	return ": " + why
}

func nameOf(t bottle.Ticket) string {
	if t.Answer != nil && t.Answer.Short != "" {
		return t.Answer.Short
	}
	return t.Request.ID
}

// maxRequests bounds one answer: all requests of a long day are more than a model wants.
const maxRequests = 50

type ticketList struct {
	Requests []ticketResult `json:"requests"`
	Total    int            `json:"total"`
	Next     string         `json:"next"`
}

func newTicketList(tickets []bottle.Ticket) ticketList {
	tickets = slices.Clone(tickets)
	slices.SortStableFunc(tickets, func(a, b bottle.Ticket) int { return b.Request.CreatedAt.Compare(a.Request.CreatedAt) })
	out := ticketList{Requests: []ticketResult{}, Total: len(tickets), Next: "nothing was asked yet; request_allowlist_change asks"}
	open := 0
	for i, t := range tickets {
		decided := t.Status().Decided()
		if i < maxRequests || !decided {
			out.Requests = append(out.Requests, newTicketResult(t))
		}
		if !decided {
			open++
		}
	}
	switch {
	case open > 0:
		out.Next = fmt.Sprintf("%d not decided yet; wait_for_decision waits for one of them", open)
	case len(tickets) > 0:
		out.Next = "all are decided; each says in next what follows"
	}
	if n := len(out.Requests); n < out.Total {
		out.Next += fmt.Sprintf("; only %d of %d are shown, and all that are not decided", n, out.Total)
	}
	return out
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "..."
}

// keys lists an object schema's fields, sorted.
func keys(n node) string {
	props, _ := n["properties"].(node)
	if len(props) == 0 {
		return "none"
	}
	names := make([]string, 0, len(props))
	for k := range props {
		names = append(names, k)
	}
	slices.SortFunc(names, cmp.Compare[string])
	return strings.Join(names, ", ")
}
