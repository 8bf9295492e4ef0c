package mcp_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"bottle/bottle"
	"bottle/mcp"
)

var update = flag.Bool("update", false, "write what the server said into the transcripts")

// TestTranscripts plays each testdata/*.txtar: what the client sends and, line for line, what
// the server answers until it is idle. Time is synthetic, so that nothing in it is volatile.
//
//	-- client --    lines that the client sends
//	-- server --    lines that must have come since; none if the section is empty
//	-- wait D --    so much time passes
//	-- operator --  "approve ID [HOST METHOD PREFIX DURATION]", "deny ID NOTE", "fail ID ERROR", "break"
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			synctest.Test(t, func(t *testing.T) { play(t, ar) })
			if *update {
				if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func play(t *testing.T, ar *txtar.Archive) {
	q, e := newFakeQueue(), &fakeEgress{}
	srv, err := mcp.NewServer(mcp.Config{Queue: q, Enforcer: e, Version: "1.2.3", MaxLine: 4096, MaxCalls: 4})
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := net.Pipe()
	var done sync.WaitGroup
	done.Go(func() { srv.ServeConn(t.Context(), theirs) })

	var mu sync.Mutex
	var got []string
	done.Go(func() {
		lines := bufio.NewScanner(ours)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			mu.Lock()
			got = append(got, lines.Text())
			mu.Unlock()
		}
	})
	for i, f := range ar.Files {
		switch verb, arg, _ := strings.Cut(f.Name, " "); verb {
		case "client":
			for line := range strings.Lines(string(f.Data)) {
				line = strings.ReplaceAll(line, "{{4 KiB}}", strings.Repeat("x", 4096))
				if _, err := ours.Write([]byte(line)); err != nil {
					t.Fatalf("section %d: %v", i, err)
				}
			}
		case "wait":
			d, err := time.ParseDuration(arg)
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(d)
		case "operator":
			for line := range strings.Lines(string(f.Data)) {
				operate(t, q, e, strings.TrimSpace(line))
			}
		case "server":
			synctest.Wait()
			mu.Lock()
			said := canonical(t, got)
			got = nil
			mu.Unlock()
			if *update {
				ar.Files[i].Data = []byte(said)
			} else if want := canonical(t, strings.Split(strings.TrimSpace(string(f.Data)), "\n")); said != want {
				t.Errorf("section %d: the server said\n%s\nwant\n%s", i, said, want)
			}
		default:
			t.Fatalf("section %d: %q is no verb", i, verb)
		}
	}
	_ = ours.Close()
	done.Wait()
}

// canonical sorts keys, so that an expected line may be written in any order.
func canonical(t *testing.T, lines []string) string {
	var b strings.Builder
	for _, l := range lines {
		if l == "" {
			continue
		}
		dec := json.NewDecoder(strings.NewReader(l))
		dec.UseNumber()
		var v any
		if err := dec.Decode(&v); err != nil {
			t.Errorf("not JSON: %v: %s", err, l)
		}
		var line bytes.Buffer
		enc := json.NewEncoder(&line)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(v); err != nil {
			t.Error(err)
		}
		b.Write(line.Bytes())
	}
	return b.String()
}

func operate(t *testing.T, q *fakeQueue, e *fakeEgress, line string) {
	verb, rest, _ := strings.Cut(line, " ")
	id, rest, _ := strings.Cut(rest, " ")
	switch verb {
	case "approve":
		ticket, err := q.Get(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		a := bottle.Answer{Status: bottle.Applied, Add: ticket.Request.Ask.Add, Remove: ticket.Request.Ask.Remove, Duration: "session", Revision: map[string]bottle.Hash{"routes.yaml": "sha256:2222"}}
		if rest != "" {
			var host, method, prefix, duration string
			if _, err := fmt.Sscan(rest, &host, &method, &prefix, &duration); err != nil {
				t.Fatal(err)
			}
			a.Add = []bottle.Entry{{Host: bottle.Host(host), Matches: []bottle.Match{{Method: method, Path: &bottle.PathMatch{Type: bottle.PathPrefix, Value: prefix}}}}}
			a.Duration, a.Edited, a.Note = duration, []string{"add", "duration"}, "reading is enough"
		}
		q.decide(id, a)
	case "deny":
		q.decide(id, bottle.Answer{Status: bottle.Denied, Note: rest})
	case "fail":
		q.decide(id, bottle.Answer{Status: bottle.Failed, Error: rest})
	case "break":
		q.fail, e.fail = errDisk, errDisk
	default:
		t.Fatalf("operator: %q is no verb", verb)
	}
}
