package bundle

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bottle/bottle"
)

// accessWorld reads what is written to the pipe that it returns, as of an egress; wait is until that has ended.
func accessWorld(t *testing.T) (dir *bottle.Dir, said *bytes.Buffer, pipe *os.File, wait func()) {
	t.Helper()
	dir, err := bottle.NewDir(filepath.Join(t.TempDir(), "b"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(dir.AccessLog(true)), 0o700); err != nil {
		t.Fatal(err)
	}
	said = &bytes.Buffer{}
	s := &Supervisor{log: slog.New(slog.NewTextHandler(said, nil)), over: make(chan struct{}), access: accessFiles{dir: dir}}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	i := &instance{d: &daemon{name: bottle.DaemonEgress}, proc: &process{}}
	s.procs.Go(func() { s.readAccess(i, r) })
	return dir, said, w, func() {
		t.Helper()
		_ = w.Close()
		s.procs.Wait()
		s.access.close()
	}
}

func readLog(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(b)
}

func TestAccessLogGoesToItsFiles(t *testing.T) {
	dir, said, w, wait := accessWorld(t)
	var allowed, refused strings.Builder
	for n := range 3000 {
		to, verdict := &allowed, "allowed"
		if n%3 == 0 {
			to, verdict = &refused, []string{"refused", "failed"}[n%2]
		}
		line := fmt.Sprintf(`{"time":"2026-01-02T03:04:05Z","verdict":%q,"bytes_up":%d}`+"\n", verdict, n)
		to.WriteString(line)
		if _, err := io.WriteString(w, line); err != nil {
			t.Fatal(err)
		}
	}
	wait()
	if got := readLog(t, dir.AccessLog(false)); got != allowed.String() {
		t.Errorf("allowed: %d bytes of %d", len(got), allowed.Len())
	}
	if got := readLog(t, dir.AccessLog(true)); got != refused.String() {
		t.Errorf("refused: %d bytes of %d", len(got), refused.Len())
	}
	if said.Len() > 0 {
		t.Error(said.String())
	}
}

// An egress that was taken over may write anything. It is not read on, and what it said before stays.
func TestAccessLogOfAHijackedEgress(t *testing.T) {
	const good = `{"time":"2026-01-02T03:04:05Z","verdict":"allowed"}` + "\n"
	for name, bad := range map[string]string{
		"no JSON":      "owned\n",
		"two in one":   `{"verdict":"allowed"}{}` + "\n",
		"another type": `{"verdict":5}` + "\n",
		"too long":     `{"verdict":"allowed","path":"` + strings.Repeat("x", maxAccessLine) + `"}` + "\n",
		"endless":      strings.Repeat("x", 2*accessBuffered),
	} {
		t.Run(name, func(t *testing.T) {
			dir, said, w, wait := accessWorld(t)
			_, _ = io.WriteString(w, good)
			_, _ = io.WriteString(w, bad+good) // it may be closed by then
			wait()
			if got := readLog(t, dir.AccessLog(false)) + readLog(t, dir.AccessLog(true)); got != good {
				t.Errorf("%.200q", got)
			}
			if !strings.Contains(said.String(), "not read on") {
				t.Errorf("the log says nothing of it: %s", said)
			}
		})
	}
}

// A log that can't be written is no reason to hold egress up.
func TestAccessLogThatCannotBeWritten(t *testing.T) {
	dir, said, w, wait := accessWorld(t)
	if err := os.Symlink("elsewhere", dir.AccessLog(true)); err != nil {
		t.Fatal(err)
	}
	for range 10_000 { // more than a pipe holds
		if _, err := io.WriteString(w, `{"time":"2026-01-02T03:04:05Z","verdict":"refused"}`+"\n"); err != nil {
			t.Fatal(err)
		}
	}
	wait()
	if n := strings.Count(said.String(), "lines of the access log are lost"); n != 1 {
		t.Errorf("said %d times: %s", n, said)
	}
}

func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began, p, n := time.Now(), newPace(time.Now()), 0
		for time.Since(began) < time.Minute {
			p.take(64 << 10)
			n += 64 << 10
			time.Sleep(p.wait(time.Now()))
		}
		if want := accessBurst + 60*accessRate; n < want || n > want+2*(64<<10) {
			t.Errorf("%d bytes in a minute, want %d", n, want)
		}
	})
}
