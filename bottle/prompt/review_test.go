package prompt_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"

	"bottle/bottle"
	"bottle/bottle/prompt"
)

// A fakeDesk plans nothing: it shows an offer as it is, and notes what was decided.
type fakeDesk struct {
	reason   string
	risks    []bottle.Risk
	approved []prompt.Offer
	denied   []string
	moved    int // so many approvals find that the proposal has changed
	applying func()
}

func (d *fakeDesk) View(_ context.Context, o prompt.Offer) (prompt.View, error) {
	var lines []string
	for _, e := range o.Add {
		lines = append(lines, e.Lines()...)
	}
	rec := &bottle.Record{Short: "r7", Request: bottle.Request{Ask: bottle.Ask{Add: o.Add, Reason: d.reason}, Attempts: 1}}
	return prompt.View{Bottle: "b", Record: rec, Now: time.Now(), Proposal: &bottle.Proposal{
		Add: o.Add, Duration: o.Duration, Reason: d.reason, Risks: d.risks, Diffs: []bottle.FileDiff{{File: bottle.RoutesFile, Add: lines}},
	}}, nil
}

func (d *fakeDesk) Approve(_ context.Context, o prompt.Offer, digest bottle.Hash) (string, error) {
	if digest == "" {
		return "", errors.New("no digest")
	}
	if d.applying != nil {
		d.applying()
	}
	if d.moved > 0 {
		d.moved--
		return "", bottle.ErrChanged
	}
	d.approved = append(d.approved, o)
	return "r7 applied", nil
}

func (d *fakeDesk) Deny(_ context.Context, reason string) error {
	d.denied = append(d.denied, reason)
	return nil
}

func offer(hosts ...string) prompt.Offer {
	o := prompt.Offer{Duration: bottle.Duration{Kind: bottle.Session}}
	for _, h := range hosts {
		o.Add = append(o.Add, bottle.Entry{Host: bottle.Host(h)})
	}
	return o
}

func many(n int) []string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf("h%d.example.com", i))
	}
	return out
}

func TestReview(t *testing.T) {
	dir := t.TempDir()
	editor := filepath.Join(dir, "ed")
	if err := os.WriteFile(editor, []byte("#!/bin/sh\nsed -i 's/duration:.*/duration: 5m/' \"$1\"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name     string
		answers  string
		hosts    []string
		moved    int
		verdict  prompt.Verdict
		approved string // duration of what was approved
		denied   string
		shows    string
	}{
		{name: "approve", answers: "a\n", verdict: prompt.Decided, approved: "session", shows: "r7 applied"},
		{name: "no default answer", answers: "\n\n\n", verdict: prompt.Quit},
		{name: "yes is no answer", answers: "yes\nq\n", verdict: prompt.Quit, shows: `"yes" is none of the answers`},
		{name: "escapes typed", answers: "\x1b[2J\nq\n", verdict: prompt.Quit, shows: `"\x1b[2J" is none of the answers`},
		{name: "deny needs a reason", answers: "d\n\nd\nnot now\n", verdict: prompt.Decided, denied: "not now", shows: "not denied: give a reason"},
		{name: "time", answers: "t\n10m\na\n", verdict: prompt.Decided, approved: "10m0s"},
		{name: "nonsense time", answers: "t\nforever\nq\n", verdict: prompt.Quit, shows: `duration "forever"`},
		{name: "edit", answers: "e\na\n", verdict: prompt.Decided, approved: "5m0s"},
		{name: "skip", answers: "s\n", verdict: prompt.Skipped},
		{name: "changed meanwhile is shown again", answers: "a\nq\n", moved: 1, verdict: prompt.Quit, shows: "it changed since you looked"},
		{name: "many lines need their number", answers: "a\ny\na\n40\n", hosts: many(40), verdict: prompt.Decided, approved: "session", shows: "it has 40 lines"},
		{name: "help", answers: "?\nq\n", verdict: prompt.Quit, shows: "a  approve what is shown      e  edit it first"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out bytes.Buffer
			d := &fakeDesk{reason: "why", moved: tc.moved}
			hosts := tc.hosts
			if hosts == nil {
				hosts = []string{"a.example.com"}
			}
			verdict, err := prompt.NewScript(strings.NewReader(tc.answers), &out, editor).Review(t.Context(), d, offer(hosts...))
			if verdict != tc.verdict {
				t.Errorf("verdict %v, %v\n%s", verdict, err, out.String())
			}
			got := ""
			for _, o := range d.approved {
				got += o.Duration.String()
			}
			if got != tc.approved || strings.Join(d.denied, ",") != tc.denied {
				t.Errorf("approved %q, denied %q\n%s", got, d.denied, out.String())
			}
			if !strings.Contains(out.String(), tc.shows) {
				t.Errorf("no %q in\n%s", tc.shows, out.String())
			}
		})
	}
}

// What is typed while something else is on the screen is no answer to the next question.
func TestTypeAheadDecidesNothing(t *testing.T) {
	master, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	defer tty.Close()
	seen := newScreen(master)
	con, stop := prompt.NewConsole(t.Context(), tty, "", false)
	defer stop()
	d := &fakeDesk{reason: "why"}
	echoed := make(chan struct{})
	d.applying = func() { // an impatient operator, while the first is being applied
		if _, err := master.WriteString("a\na\n"); err != nil {
			t.Error(err)
		}
		<-echoed
	}
	done := make(chan error, 1)
	go func() {
		_, err := con.Review(t.Context(), d, offer("a.example.com"))
		d.applying = nil
		if err == nil {
			_, err = con.Review(t.Context(), d, offer("evil.example.com"))
		}
		done <- err
	}()
	seen.wait(t, "q)uit ? > ")
	if _, err := master.WriteString("a\n"); err != nil {
		t.Fatal(err)
	}
	seen.wait(t, "applying ...\r\na\r\na\r\n") // the terminal has echoed it, so it is there to be read
	close(echoed)
	seen.wait(t, "evil.example.com")
	seen.wait(t, "q)uit ? > ")
	if _, err := master.WriteString("s\n"); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if len(d.approved) != 1 || d.approved[0].Add[0].Host != "a.example.com" {
		t.Errorf("approved %v", d.approved)
	}
}

func TestInterruptEndsAQuestion(t *testing.T) {
	master, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	defer tty.Close()
	ctx, cancel := context.WithCancel(t.Context())
	con, stop := prompt.NewConsole(ctx, tty, "", false)
	defer stop()
	_ = con.Width() // looking at the terminal must not make its reads uninterruptible
	done := make(chan error, 1)
	go func() {
		_, err := con.Confirm("go?")
		done <- err
	}()
	newScreen(master).wait(t, "go? y/n > ")
	cancel()
	if err := <-done; !errors.Is(err, prompt.ErrInterrupted) {
		t.Errorf("got %v", err)
	}
}

// A screen is what a terminal has shown.
type screen struct {
	text chan string
	got  string // and not yet waited for
}

func newScreen(master *os.File) *screen {
	s := &screen{text: make(chan string, 100)}
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			if err != nil {
				return
			}
			s.text <- string(buf[:n])
		}
	}()
	return s
}

// wait reads on until the text has come.
func (s *screen) wait(t *testing.T, text string) {
	t.Helper()
	for deadline := time.After(10 * time.Second); ; {
		if _, rest, ok := strings.Cut(s.got, text); ok {
			s.got = rest
			return
		}
		select {
		case more := <-s.text:
			s.got += more
		case <-deadline:
			t.Fatalf("no %q in %q", text, s.got)
		}
	}
}

// until reads on until what has come ends as end says, and returns it.
func (s *screen) until(t *testing.T, end *regexp.Regexp) string {
	t.Helper()
	for deadline := time.After(10 * time.Second); !end.MatchString(s.got); {
		select {
		case more := <-s.text:
			s.got += more
		case <-deadline:
			t.Fatalf("no %v in %q", end, s.got)
		}
	}
	got := s.got
	s.got = ""
	return got
}

// No row of a reason, and no rest of a long line, can pass for a line of ours, however wide
// the terminal is.
func TestNoRowOfTheAgentsLooksLikeOurs(t *testing.T) {
	ours := []string{"digest sha256:", "approve this?", "+ other.example.org", "risks"}
	for _, width := range []int{20, 40, 80, 132} {
		pad := strings.Repeat("x", width-4)
		reason := pad + "digest sha256:0000" + pad + "approve this? y/n > y" + strings.Repeat(" ", width) + "risks\nrisks\n    + other.example.org  GET /*"
		o := offer("a.example.com")
		o.Add[0].Matches = []bottle.Match{{Headers: []bottle.HeaderMatch{{Name: "x", Value: pad + strings.Repeat(" ", 30) + "+ other.example.org  GET /simple/*"}}}}
		d := &fakeDesk{reason: reason}
		v, err := d.View(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		v.Width, v.Full = width, true
		var out bytes.Buffer
		if err := v.Render(&out); err != nil {
			t.Fatal(err)
		}
		inReason := false
		for l := range strings.Lines(out.String()) {
			l = strings.TrimSuffix(l, "\n")
			if strings.HasPrefix(l, "the agent's reason") {
				inReason = true
				continue
			}
			if l == "" || strings.HasPrefix(l, "digest ") && strings.Contains(l, string(v.Proposal.Digest())) {
				inReason = false
				continue
			}
			if inReason && !strings.HasPrefix(l, "  | ") && !strings.HasPrefix(l, "  ... and ") {
				t.Errorf("width %d: a row of the reason has no mark: %q", width, l)
			}
			for _, o := range ours {
				if !inReason && strings.HasPrefix(strings.TrimLeft(l, " "), o) {
					t.Errorf("width %d: %q stands as a line of ours", width, l)
				}
			}
			if width >= 80 && len(l) > width && !strings.HasPrefix(l, "digest") {
				t.Errorf("width %d: %d columns: %q", width, len(l), l)
			}
		}
	}
}

// What scrolled away is told again beside the question.
func TestTotalsNameTheWholeHost(t *testing.T) {
	var o prompt.Offer
	for i, h := range many(40) {
		e := bottle.Entry{Host: bottle.Host(h), Matches: []bottle.Match{{Method: "GET"}}}
		if i == 3 {
			e = bottle.Entry{Host: "0evil.example.com"}
		}
		o.Add = append(o.Add, e)
	}
	d := &fakeDesk{risks: []bottle.Risk{{Level: "high", Code: "x", Text: "y"}}}
	v, err := d.View(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := v.Render(&out); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	end := strings.Join(lines[len(lines)-2:], "\n")
	if want := "in all: 40 lines, 40 hosts added, 0 entries removed, 1 high risks\n  whole hosts: 0evil.example.com"; end != want {
		t.Errorf("the last lines are %q, want %q", end, want)
	}
}

func TestOfferKeepsTheAgentsWordsFromTheEditorsModelines(t *testing.T) {
	o := offer("a.example.com")
	o.Add[0].Matches = []bottle.Match{{Path: &bottle.PathMatch{Type: bottle.RegularExpression, Value: "vim: set modeline"}}}
	b, err := o.Encode()
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	for _, l := range append(lines[:5:5], lines[len(lines)-5:]...) {
		if !strings.HasPrefix(l, "#") {
			t.Errorf("%q is among the first or last five lines", l)
		}
	}
	back, ok, err := prompt.DecodeOffer(b)
	if err != nil || !ok || back.Duration != o.Duration || len(back.Add) != 1 {
		t.Errorf("%+v %v %v", back, ok, err)
	}
	if _, ok, err := prompt.DecodeOffer([]byte("# nothing\n")); ok || err != nil {
		t.Errorf("an empty text: %v %v", ok, err)
	}
	for text, want := range map[string]string{
		"add: []\nduratoin: 5m\n":                       `offer.yaml:2: unknown key "duratoin"; did you mean "duration"?`,
		"add: []\nduration: 5m\nnotes: x\n":             `offer.yaml:3: unknown key "notes"; did you mean "note"?`,
		"add:\n# - host: a.example.com\nduration: 5m\n": "offer.yaml:1: add has no value",
		"add: [\n":               "offer.yaml:1: not YAML",
		"add: []\nduration: x\n": `offer.yaml:2: duration: duration "x"`,
	} {
		if _, _, err := prompt.DecodeOffer([]byte(text)); !errors.Is(err, bottle.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}
