package bridge_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"bottle/mcp/bridge"
)

var update = flag.Bool("update", false, "write what came into the transcripts")

// TestTranscripts plays each testdata/*.txtar between a client and a bundle. Time is synthetic.
//
//	-- client --   lines that the client sends
//	-- out --      lines that must have come to the client since, and no others
//	-- say --      lines that the bundle sends; PROBE is the id of the last probe
//	-- bundle --   lines that must have come to the bundle since; keys and probes are random, so KEY and PROBE stand for them
//	-- up --       the bundle can be reached
//	-- drop --     the connection is lost, and can be made again
//	-- down --     the connection is lost, and can't be made again
//	-- wait D --   so much time passes
//	-- eof --      the client closes its end
//	-- ended --    the bridge must have ended without an error
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
	bundle := &fakeBundle{}
	var out lineLog
	in, client := io.Pipe()
	b, err := bridge.New(bridge.Config{In: in, Out: &out, Dial: bundle.dial})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- b.Run(t.Context()) }()
	for i, f := range ar.Files {
		switch verb, arg, _ := strings.Cut(f.Name, " "); verb {
		case "client":
			if _, err := client.Write(f.Data); err != nil {
				t.Fatal(err)
			}
		case "say":
			synctest.Wait()
			bundle.say(t, f.Data)
		case "out":
			synctest.Wait()
			compare(t, ar, i, out.take())
		case "bundle":
			synctest.Wait()
			compare(t, ar, i, bundle.got.take())
		case "up":
			bundle.set(true)
			time.Sleep(time.Second) // a dial at least
		case "drop":
			synctest.Wait()
			bundle.drop()
			time.Sleep(time.Second)
		case "down":
			synctest.Wait()
			bundle.set(false)
			bundle.drop()
		case "wait":
			d, err := time.ParseDuration(arg)
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(d)
		case "eof":
			_ = client.Close()
		case "ended":
			synctest.Wait()
			select {
			case err := <-ended:
				if err != nil {
					t.Errorf("section %d: Run: %v", i, err)
				}
				ended <- nil
			default:
				t.Errorf("section %d: the bridge still runs", i)
			}
		default:
			t.Fatalf("section %d: %q is no verb", i, verb)
		}
	}
	_ = client.Close()
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
	bundle.drop()
	bundle.readers.Wait()
}

func compare(t *testing.T, ar *txtar.Archive, i int, lines []string) {
	t.Helper()
	got := canonical(t, lines)
	if *update {
		ar.Files[i].Data = []byte(got)
	} else if want := canonical(t, strings.Split(string(ar.Files[i].Data), "\n")); got != want {
		t.Errorf("section %d, %s: got\n%s\nwant\n%s", i, ar.Files[i].Name, got, want)
	}
}

var (
	probeID = regexp.MustCompile(`bottle-mcp-[A-Z2-7]{26}`)
	callKey = regexp.MustCompile(`"bottle/key":"[A-Z2-7]{26}"`)
)

// canonical sorts keys, and replaces what is random.
func canonical(t *testing.T, lines []string) string {
	t.Helper()
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
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(v); err != nil {
			t.Error(err)
		}
	}
	s := probeID.ReplaceAllString(b.String(), "PROBE")
	return callKey.ReplaceAllString(s, `"bottle/key":"KEY"`)
}

// A lineLog collects lines.
type lineLog struct {
	mu    sync.Mutex
	lines []string
}

func (l *lineLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, string(bytes.TrimRight(b, "\n")))
	return len(b), nil
}

func (l *lineLog) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := l.lines
	l.lines = nil
	return lines
}

// A fakeBundle is the bundle's end of the socket.
type fakeBundle struct {
	got     lineLog
	readers sync.WaitGroup

	mu    sync.Mutex
	up    bool
	conn  net.Conn
	probe string
}

var errRefused = &net.OpError{Op: "dial", Net: "unix", Err: syscall.ECONNREFUSED}

func (f *fakeBundle) dial(context.Context) (net.Conn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.up {
		return nil, errRefused
	}
	ours, theirs := net.Pipe()
	f.conn = theirs
	f.readers.Go(func() {
		lines := bufio.NewScanner(theirs)
		lines.Buffer(nil, bridge.MaxLine)
		for lines.Scan() {
			if id := probeID.Find(lines.Bytes()); id != nil {
				f.mu.Lock()
				f.probe = string(id)
				f.mu.Unlock()
			}
			if _, err := f.got.Write(lines.Bytes()); err != nil {
				return
			}
		}
	})
	return ours, nil
}

func (f *fakeBundle) set(up bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.up = up
}

func (f *fakeBundle) drop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.conn != nil {
		_ = f.conn.Close()
	}
}

func (f *fakeBundle) say(t *testing.T, b []byte) {
	f.mu.Lock()
	conn, probe := f.conn, f.probe
	f.mu.Unlock()
	if conn == nil {
		t.Fatal("say: nobody is connected")
	}
	if _, err := conn.Write(bytes.ReplaceAll(b, []byte("PROBE"), []byte(probe))); err != nil {
		t.Error(err)
	}
}

func TestNewRefusesAnIncompleteConfig(t *testing.T) {
	full := bridge.Config{In: io.NopCloser(strings.NewReader("")), Out: io.Discard, Dial: (&fakeBundle{}).dial}
	for name, spoil := range map[string]func(*bridge.Config){
		"no input":      func(c *bridge.Config) { c.In = nil },
		"no output":     func(c *bridge.Config) { c.Out = nil },
		"no dial":       func(c *bridge.Config) { c.Dial = nil },
		"negative wait": func(c *bridge.Config) { c.Wait = -1 },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := full
			spoil(&cfg)
			if _, err := bridge.New(cfg); err == nil {
				t.Error("it was taken")
			}
		})
	}
}

func TestRunEnds(t *testing.T) {
	t.Run("with its context", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			in, client := io.Pipe()
			defer client.Close()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			b, err := bridge.New(bridge.Config{In: in, Out: io.Discard, Dial: (&fakeBundle{}).dial})
			if err != nil {
				t.Fatal(err)
			}
			if err := b.Run(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Run: %v", err)
			}
		})
	})
	t.Run("when the client takes no more", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			in, client := io.Pipe()
			defer client.Close()
			b, err := bridge.New(bridge.Config{In: in, Out: fullWriter{}, Dial: (&fakeBundle{}).dial})
			if err != nil {
				t.Fatal(err)
			}
			go func() { _, _ = client.Write([]byte("this is not JSON\n")) }()
			if err := b.Run(t.Context()); !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("Run: %v", err)
			}
		})
	})
}

type fullWriter struct{}

func (fullWriter) Write([]byte) (int, error) { return 0, syscall.ENOSPC }
