package prompt

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"bottle/bottle"
)

// maxReasonRows is what is shown of a reason unless all of it is asked for, in rows of the
// terminal.
const maxReasonRows = 12

// maxGlance is how many lines of a change an operator can be expected to have seen.
const maxGlance = 30

// A View is one request with all that an operator needs to judge it.
type View struct {
	Bottle   string
	Record   *bottle.Record
	Proposal *bottle.Proposal  // nil if there is nothing to decide any more
	Edited   []bottle.FileDiff // lines of an edited file, shown if the proposal's diffs describe none of them
	Problem  string            // why it can't be approved as it stands, if so
	Note     string            // that goes to the agent with the approval
	Now      time.Time
	Full     bool // every line of the reason
	Color    bool
	Width    int // columns to fold at; 0 leaves lines whole, for a pipe
}

// Lines is how many lines the change has, in all files.
func (v View) Lines() int {
	n := 0
	if v.Proposal != nil {
		for _, d := range v.diffs() {
			n += len(d.Add) + len(d.Remove)
		}
	}
	return n
}

// diffs are those to show. routes.yaml is first: pipelock.yaml follows from it.
func (v View) diffs() []bottle.FileDiff {
	diffs := slices.DeleteFunc(slices.Clone(v.Proposal.Diffs), bottle.FileDiff.Empty)
	if len(diffs) == 0 {
		return v.Edited
	}
	slices.SortStableFunc(diffs, func(a, b bottle.FileDiff) int { return cmp.Compare(b.File, a.File) })
	return diffs
}

// Render writes the view: what would change first, then the risks, and the agent's words
// last, each line of them marked as such, so that no reason can pass for the prompt.
func (v View) Render(w io.Writer) error {
	p := &printer{w: w, color: v.Color, width: v.Width}
	r := v.Record
	status := r.State.Status()
	p.line("%s  %s  %s  %s", p.bold(r.Short), Text(v.Bottle), p.status(status), v.when())
	if v.Proposal != nil {
		v.renderProposal(p)
	} else {
		p.section("asked for")
		renderEntries(p, r.Request.Ask)
		if r.Decision != nil {
			v.renderDecision(p)
		}
	}
	if v.Problem != "" {
		p.section("can't be approved as it stands")
		p.text("  ", "  ", v.Problem, nil)
	}
	if r.Error != "" {
		p.section("it failed")
		p.text("  ", "  ", r.Error, nil)
	}
	p.section("the agent's reason (its words, not checked)")
	v.renderReason(p)
	if v.Proposal != nil {
		p.line("")
		p.line("digest %s", v.Proposal.Digest())
		v.renderTotals(p)
	}
	return p.err
}

// brief names what a question is about, beside the question: what was shown above it may be
// some pages away.
func (v View) brief() string {
	digest := v.Proposal.Digest().Short()
	if v.Record == nil {
		return fmt.Sprintf("%s in all, digest %s", count(v.Lines(), "line"), digest)
	}
	hosts := map[bottle.Host]bool{}
	for _, e := range slices.Concat(v.Proposal.Add, v.Proposal.Remove) {
		hosts[e.Host] = true
	}
	return fmt.Sprintf("%s: %s, digest %s", v.Record.Short, count(len(hosts), "host"), digest)
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// RenderChange writes the part about the proposal alone, for a change that nobody asked for
// over MCP: an edit.
func (v View) RenderChange(w io.Writer) error {
	p := &printer{w: w, color: v.Color, width: v.Width}
	v.renderProposal(p)
	p.line("")
	p.line("digest %s", v.Proposal.Digest())
	return p.err
}

// renderReason marks every row as the agent's, and shows no more rows than fit a glance.
func (v View) renderReason(p *printer) {
	var rows []string
	for _, l := range Lines(v.Record.Request.Ask.Reason, bottle.MaxReason) {
		rows = append(rows, fold(l, v.Width-len("  | "))...)
	}
	for i, row := range rows {
		if i == maxReasonRows && !v.Full {
			p.line("  ... and %d more lines (bottle show %s --full)", len(rows)-i, v.Record.Short)
			return
		}
		p.line("  | %s", row)
	}
}

// renderTotals says below a long change, next to the question, what scrolled away.
func (v View) renderTotals(p *printer) {
	n := v.Lines()
	if n <= maxGlance {
		return
	}
	hosts := map[bottle.Host]bool{}
	var whole []string
	for _, e := range v.Proposal.Add {
		hosts[e.Host] = true
		if len(e.Matches) == 0 {
			whole = append(whole, string(e.Host))
		}
	}
	high := 0
	for _, r := range v.Proposal.Risks {
		if r.Level == "high" {
			high++
		}
	}
	p.line("%s", p.bold(fmt.Sprintf("in all: %d lines, %d hosts added, %d entries removed, %d high risks", n, len(hosts), len(v.Proposal.Remove), high)))
	if len(whole) > 0 {
		p.text("  whole hosts: ", "    ", strings.Join(whole, ", "), nil)
	}
}

func (v View) renderProposal(p *printer) {
	p.section("what would change")
	diffs := v.diffs()
	for _, d := range diffs {
		p.line("  %s", Text(d.File))
		p.diff(d.Remove, d.Add)
	}
	if len(diffs) == 0 {
		p.line("  nothing: all of it is allowed (or absent) already")
	}
	if c := v.Proposal.Credential; c != "" {
		p.line("  with the credential %s, which the agent never sees", p.bold(Text(c)))
	}
	switch d := v.Proposal.Duration; {
	case len(v.Proposal.Add) > 0:
		p.line("  granted %s", d.Words())
	case len(v.Proposal.Remove) > 0:
		p.line("  until you add it back (bottle routes edit)")
	}
	if v.Note != "" {
		p.text("  note to the agent: ", "    ", v.Note, nil)
	}
	if len(v.Proposal.Risks) > 0 {
		p.section("risks")
		for _, r := range v.Proposal.Risks {
			p.risk(r)
		}
	}
}

func (v View) renderDecision(p *printer) {
	d := v.Record.Decision
	p.section("decided")
	p.line("  by %s at %s", Text(d.By.Who()), d.At.Local().Format(time.DateTime))
	if len(d.Add)+len(d.Remove) > 0 {
		renderEntries(p, bottle.Ask{Add: d.Add, Remove: d.Remove, Credential: d.Credential})
	}
	if len(d.Add) > 0 {
		p.line("  %s", d.Duration.Words())
	}
	if v.Record.GrantEnds != nil {
		p.line("  until %s", v.Record.GrantEnds.Local().Format(time.DateTime))
	}
	if len(d.Edited) > 0 {
		p.line("  edited: not as asked in %s", Text(strings.Join(d.Edited, ", ")))
	}
	if d.Note != "" {
		for _, l := range Lines(d.Note, maxReasonRows) {
			p.line("  note: %s", l)
		}
	}
}

func renderEntries(p *printer, a bottle.Ask) {
	p.diff(linesOf(a.Remove), linesOf(a.Add))
	if a.Credential != "" {
		p.line("    with the credential %s", Text(a.Credential))
	}
}

func linesOf(entries []bottle.Entry) []string {
	var out []string
	for _, e := range entries {
		out = append(out, e.Lines()...)
	}
	return out
}

func (v View) when() string {
	r := v.Record
	s := "asked " + Ago(v.Now.Sub(r.FirstSeen))
	if n := r.Request.Attempts; n > 1 {
		s = fmt.Sprintf("asked %d times, first %s", n, Ago(v.Now.Sub(r.FirstSeen)))
	}
	if r.State.Status() == bottle.Pending {
		s += ", expires in " + Span(r.ExpiresAt.Sub(v.Now))
	}
	return s
}

// Ago says how long ago something was: "just now", "5s ago", "3h ago".
func Ago(d time.Duration) string {
	if d < time.Second {
		return "just now"
	}
	return Span(d) + " ago"
}

// Span rounds a time span to one unit that people use.
func Span(d time.Duration) string {
	d = d.Round(time.Second)
	switch {
	case d <= 0:
		return "0s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", d.Round(time.Minute)/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", d.Round(time.Hour)/time.Hour)
	}
	return fmt.Sprintf("%dd", d.Round(24*time.Hour)/(24*time.Hour))
}

type printer struct {
	w     io.Writer
	color bool
	width int
	err   error
}

// text prints untrusted text in rows, the first after one prefix and the others after
// another, in a color if paint is given.
func (p *printer) text(first, rest, s string, paint func(string) string) {
	n := 0
	if p.width > 0 {
		n = max(p.width-max(len(first), len(rest)), 1)
	}
	for i, row := range fold(Text(s), n) {
		if paint != nil {
			row = paint(row)
		}
		if i == 0 {
			p.line("%s%s", first, row)
		} else {
			p.line("%s%s", rest, row)
		}
	}
}

// diff prints what goes and what comes. What reads as a rest of a line is marked so, for a
// value can be made to look like a line of its own.
func (p *printer) diff(remove, add []string) {
	const rest = "      ... "
	for _, l := range remove {
		p.text("    ", rest, "- "+l, p.red)
	}
	for _, l := range add {
		p.text("    ", rest, "+ "+l, p.green)
	}
}

func (p *printer) risk(r bottle.Risk) {
	rows := fold(Text(r.Text), max(0, p.width-len("  medium ")))
	for i, row := range rows {
		if i == 0 {
			p.line("  %s %s", p.level(r.Level), row)
		} else {
			p.line("         %s", row)
		}
	}
}

func (p *printer) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", args...)
	}
}

func (p *printer) section(title string) {
	p.line("")
	p.line("%s", p.bold(title))
}

func (p *printer) paint(code, s string) string {
	if !p.color {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (p *printer) bold(s string) string  { return p.paint("1", s) }
func (p *printer) red(s string) string   { return p.paint("31", s) }
func (p *printer) green(s string) string { return p.paint("32", s) }

func (p *printer) level(l string) string {
	s := fmt.Sprintf("%-6s", Text(cmp.Or(l, "-")))
	switch l {
	case "high":
		return p.paint("1;31", s)
	case "medium":
		return p.paint("33", s)
	}
	return s
}

func (p *printer) status(s bottle.Status) string {
	switch s {
	case bottle.Applied:
		return p.green(string(s))
	case bottle.Failed, bottle.Denied, bottle.Revoked:
		return p.red(string(s))
	case bottle.Pending, bottle.Approved, bottle.Cancelled, bottle.Expired:
	}
	return string(s)
}
