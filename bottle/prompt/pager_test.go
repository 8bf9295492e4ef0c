package prompt_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/creack/pty"

	"bottle/bottle"
	"bottle/bottle/prompt"
)

// However long a request is, none of its lines has left the terminal when the next are asked
// for, and the question says once more what it is about.
func TestLongRequestsComeInPages(t *testing.T) {
	for _, size := range []pty.Winsize{{Rows: 24, Cols: 80}, {Rows: 40, Cols: 120}} {
		master, tty, err := pty.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer master.Close()
		defer tty.Close()
		if err := pty.Setsize(tty, &size); err != nil {
			t.Fatal(err)
		}
		con, stop := prompt.NewConsole(t.Context(), tty, "", true)
		defer stop()
		hosts := many(28)
		d := &fakeDesk{reason: strings.Repeat("because ", 60), risks: []bottle.Risk{{Level: "high", Code: "x", Text: strings.Repeat("all the way ", 20)}}}
		seen := newScreen(master)
		done := make(chan error, 1)
		go func() {
			_, err := con.Review(t.Context(), d, offer(hosts...))
			done <- err
		}()
		var pages []string
		for ended := false; !ended; {
			page := seen.until(t, regexp.MustCompile(`Enter for more > $|q\)uit \? > $`))
			ended = strings.HasSuffix(page, "q)uit ? > ")
			pages = append(pages, page)
			answer := "\n"
			if ended {
				answer = "s\n"
			}
			if _, err := master.WriteString(answer); err != nil {
				t.Fatal(err)
			}
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if len(pages) < 2 || !strings.Contains(pages[0], "r7") {
			t.Errorf("%d pages: %q", len(pages), pages)
		}
		for i, p := range pages {
			rows := strings.Split(strings.TrimPrefix(p, "\r\n"), "\r\n")
			if len(rows) > int(size.Rows) {
				t.Errorf("page %d has %d rows, of %d", i, len(rows), size.Rows)
			}
			for _, r := range rows {
				if r = colors.ReplaceAllString(r, ""); len(r) > int(size.Cols) {
					t.Errorf("a row has %d columns: %q", len(r), r)
				}
			}
		}
		all := strings.Join(pages, "")
		for _, h := range hosts {
			if !strings.Contains(all, "+ "+h) {
				t.Errorf("%s was not shown", h)
			}
		}
		v, err := d.View(t.Context(), offer(hosts...))
		if err != nil {
			t.Fatal(err)
		}
		if want := "r7: 28 hosts, digest " + v.Proposal.Digest().Short() + "\r\n"; !strings.Contains(pages[len(pages)-1], want) {
			t.Errorf("no %q beside the question: %q", want, pages[len(pages)-1])
		}
	}
}

var colors = regexp.MustCompile(`\x1b\[[0-9;]*m`)
