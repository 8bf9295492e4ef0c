package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"bottle/bottle"
	"bottle/bottle/logfile"
	"bottle/bottle/prompt"
)

// accessLog prints egress' access log: its two files as one, by time.
func (a *app) accessLog(ctx context.Context, dir *bottle.Dir, o logsOptions) error {
	since, err := sinceTime(o.since, time.Now())
	if err != nil {
		return err
	}
	var files []*logTail
	for _, refusals := range []bool{false, true} {
		if refusals || !o.refused {
			path := dir.AccessLog(refusals)
			files = append(files, newLogTail(path, path+logfile.OlderSuffix))
		}
	}
	defer func() {
		for _, f := range files {
			_ = f.Close() // it was read only
		}
	}()
	show := accessPrinter{w: a.out, json: a.json, color: wantColor(a.out)}
	return poll(ctx, o.follow, func() error {
		var lines []accessLine
		for _, f := range files {
			b, err := f.more()
			if err != nil {
				return err
			}
			lines = append(lines, parseAccess(b, since)...)
		}
		slices.SortStableFunc(lines, func(x, y accessLine) int { return x.Time.Compare(y.Time) })
		var out bytes.Buffer
		for i := range lines {
			show.line(&out, &lines[i])
		}
		_, err := out.WriteTo(show.w)
		return err
	})
}

// sinceTime reads --since: a time, or a span before now.
func sinceTime(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	return time.Time{}, usagef("--since %q: use a time span such as 10m or 24h, or a time such as 2026-01-02T15:04:05Z", s)
}

// An accessLine is one line, and its text.
type accessLine struct {
	bottle.AccessLine
	raw []byte
}

// parseAccess reads lines; those that a crash tore are passed over.
func parseAccess(b []byte, since time.Time) (lines []accessLine) {
	for raw := range bytes.Lines(b) {
		raw = bytes.TrimSuffix(raw, []byte("\n"))
		l := accessLine{raw: raw}
		if json.Unmarshal(raw, &l.AccessLine) == nil && !l.Time.Before(since) {
			lines = append(lines, l)
		}
	}
	return lines
}

// An accessPrinter prints lines for people, or for programs.
type accessPrinter struct {
	w           io.Writer
	json, color bool
	day         string // that was printed last
}

func (p *accessPrinter) line(w io.Writer, l *accessLine) {
	if p.json {
		_, _ = prompt.LogWriter{W: w}.Write(slices.Concat(l.raw, []byte("\n"))) // a buffer
		return
	}
	at := l.Time.Local()
	if day := at.Format(time.DateOnly); day != p.day {
		p.day = day
		fmt.Fprintf(w, "-- %s\n", day)
	}
	head := at.Format("15:04:05.000")
	if l.LeftOut > 0 {
		p.print(w, l, fmt.Sprintf("%s ... %d lines of what was %s are missing here: there were too many a second", head, l.LeftOut, prompt.Text(l.Verdict)))
		return
	}
	verdict := prompt.Clip(l.Verdict, 8)
	if l.Refusal() {
		verdict = strings.ToUpper(verdict)
	}
	text := fmt.Sprintf("%s %3d %-7s %-8s %8s %7s %7s  %s", head, l.Status, verdict, prompt.Clip(l.Layer, 8), took(l.Millis), size(l.BytesUp), size(l.BytesDown), request(&l.AccessLine))
	if l.End != "" {
		text += "  [" + prompt.Text(l.End) + "]"
	}
	if !l.Refusal() {
		rule := l.Route
		if l.Grant != "" && !strings.Contains(rule, l.Grant) {
			rule += "  " + l.Grant
		}
		text += "  (" + prompt.Text(rule) + ")"
	}
	if l.RequestID != "" {
		text += "  id " + prompt.Text(l.RequestID)
	}
	p.print(w, l, text)
	if l.Refusal() && l.Reason != "" {
		fmt.Fprintf(w, "%*s%s\n", len(head)+1, "", prompt.Text(l.Reason))
	}
}

// print marks what did not get through.
func (p *accessPrinter) print(w io.Writer, l *accessLine, text string) {
	if p.color && l.Refusal() {
		text = "\x1b[31m" + text + "\x1b[0m"
	}
	fmt.Fprintln(w, text)
}

// request is what was asked for, escaped.
func request(l *bottle.AccessLine) string {
	var b strings.Builder
	b.WriteString(prompt.Text(l.Method) + " " + prompt.Text(l.Host))
	if l.Port != 0 && l.Port != 443 {
		b.WriteString(":" + strconv.Itoa(l.Port))
	}
	b.WriteString(prompt.Text(l.Path))
	if l.Query > 0 {
		b.WriteString("?" + strconv.Itoa(l.Query))
	}
	if l.Protocol != "" && l.Protocol != "h1" && l.Protocol != "tunnel" { // a tunnel is a CONNECT
		b.WriteString(" " + prompt.Text(l.Protocol))
	}
	return b.String()
}

// took is a duration of so many milliseconds, short.
func took(ms float64) string {
	switch {
	case ms < 10:
		return strconv.FormatFloat(ms, 'f', 1, 64) + "ms"
	case ms < 10_000:
		return strconv.FormatFloat(ms, 'f', 0, 64) + "ms"
	case ms < 600_000:
		return strconv.FormatFloat(ms/1000, 'f', 1, 64) + "s"
	default:
		return strconv.FormatFloat(ms/60_000, 'f', 0, 64) + "m"
	}
}

// size is a number of bytes, short.
func size(n int64) string {
	if n == 0 {
		return "-"
	}
	f, unit := float64(n), 0
	for f >= 999.5 && unit < 4 {
		f /= 1000
		unit++
	}
	if unit == 0 {
		return strconv.FormatInt(n, 10)
	}
	return strconv.FormatFloat(f, 'f', 1, 64) + "kMGT"[unit-1:unit]
}
