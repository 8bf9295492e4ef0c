package prompt

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"golang.org/x/term"
)

// Rows that a page leaves free: for the line above what is shown, for what the question
// repeats, and for the question.
const pageMargin = 3

// minPage is the smallest page; a terminal that claims fewer rows is not believed.
const minPage = 5

// Show renders a view, page by page where it is longer than the terminal, so that nothing of
// it has scrolled away unseen when the question comes.
func (c *Console) Show(v View) error { return c.page(v.Render) }

// ShowChange is [View.RenderChange] in pages.
func (c *Console) ShowChange(v View) error { return c.page(v.RenderChange) }

func (c *Console) page(render func(io.Writer) error) error {
	var buf bytes.Buffer
	if err := render(&buf); err != nil {
		return err
	}
	width, height := c.size()
	if height-pageMargin < minPage {
		_, err := c.out.Write(buf.Bytes())
		return err
	}
	lines := strings.Split(strings.TrimSuffix(buf.String(), "\n"), "\n")
	for at := 0; at < len(lines); {
		end := at
		for used := 0; end < len(lines); end++ {
			if used += rowsOf(lines[end], width); used > height-pageMargin && end > at {
				break
			}
		}
		if _, err := fmt.Fprintln(c.out, strings.Join(lines[at:end], "\n")); err != nil {
			return err
		}
		if at = end; at < len(lines) {
			if err := c.Wait(fmt.Sprintf("%d of %d lines; Enter for more", at, len(lines))); err != nil {
				return err
			}
		}
	}
	return nil
}

// size is that of the terminal in columns and rows; no rows if it doesn't tell, or is none.
func (c *Console) size() (width, height int) {
	if c.tty != nil {
		_ = c.control(func(fd int) (err error) {
			width, height, err = term.GetSize(fd)
			return err
		})
	}
	if width < 1 {
		width = defaultWidth
	}
	return width, height
}

// rowsOf is how many rows a line of ours takes, its colors aside.
func rowsOf(line string, width int) int {
	used := 0
	for len(line) > 0 {
		before, after, colored := strings.Cut(line, "\x1b[")
		used += columnsOf(before)
		if line = ""; colored {
			_, line, _ = strings.Cut(after, "m")
		}
	}
	return max(1, (used+width-1)/width)
}
