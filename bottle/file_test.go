package bottle_test

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"bottle/bottle"
)

func TestReadFile(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	write := func(t *testing.T, name, content string) {
		t.Helper()
		if err := os.WriteFile(path(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name string
		make func(*testing.T)
		want error
		text string
	}{
		{"file", func(t *testing.T) { write(t, "file", "12345678") }, nil, ""},
		{"empty", func(t *testing.T) { write(t, "empty", "") }, nil, ""},
		{"absent", func(*testing.T) {}, fs.ErrNotExist, ""},
		{"oversized", func(t *testing.T) { write(t, "oversized", "123456789") }, bottle.ErrCorrupt, "over its bound of 8 bytes"},
		{"link", func(t *testing.T) {
			write(t, "target", "1")
			if err := os.Symlink("target", path("link")); err != nil {
				t.Fatal(err)
			}
		}, bottle.ErrCorrupt, "a symbolic link"},
		{"dangling", func(t *testing.T) {
			if err := os.Symlink("nowhere", path("dangling")); err != nil {
				t.Fatal(err)
			}
		}, bottle.ErrCorrupt, "a symbolic link"},
		{"hard", func(t *testing.T) {
			write(t, "other", "1")
			if err := os.Link(path("other"), path("hard")); err != nil {
				t.Fatal(err)
			}
		}, bottle.ErrCorrupt, "it has 2 names (hard links)"},
		{"fifo", func(t *testing.T) { // without a writer, a plain open would block for ever
			if err := unix.Mkfifo(path("fifo"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, bottle.ErrCorrupt, "not a regular file"},
		{"socket", func(t *testing.T) {
			l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", path("socket"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = l.Close() })
		}, bottle.ErrCorrupt, "a socket"},
		{"directory", func(t *testing.T) {
			if err := os.Mkdir(path("directory"), 0o700); err != nil {
				t.Fatal(err)
			}
		}, bottle.ErrCorrupt, "not a regular file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.make(t)
			_, err := bottle.ReadFile(path(tt.name), 8)
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if err != nil && !strings.Contains(err.Error(), tt.text) {
				t.Errorf("%q does not say %q", err, tt.text)
			}
		})
	}
}

// A file that grows while it is read never makes the reader hold more than its bound.
func TestReadFileThatGrows(t *testing.T) {
	path := filepath.Join(t.TempDir(), "grows")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		defer f.Close()
		for size := 0; size < 64<<20; size += 4096 {
			select {
			case <-stop:
				return
			default:
				_, _ = f.Write(make([]byte, 4096))
			}
		}
	}()
	defer func() { close(stop); <-done }()
	for {
		b, err := bottle.ReadFile(path, 1<<16)
		if len(b) > 1<<16 {
			t.Fatalf("read %d bytes", len(b))
		}
		if errors.Is(err, bottle.ErrCorrupt) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestReadJSON(t *testing.T) {
	type state struct {
		Schema int `json:"schema"`
		N      int `json:"n"`
	}
	for _, tt := range []struct {
		name, in string
		want     error
		text     string
	}{
		{"good", `{"schema":1,"n":7,"later":true}`, nil, ""},
		{"newer", `{"schema":2,"n":"another type"}`, bottle.ErrNewer, "schema 2, but this bottle knows 1 at most; use the newer bottle"},
		{"no schema", `{"n":7}`, bottle.ErrCorrupt, "no schema"},
		{"negative schema", `{"schema":-1}`, bottle.ErrCorrupt, "no schema"},
		{"schema in words", `{"schema":"1"}`, bottle.ErrCorrupt, "truncated or not JSON"},
		{"truncated", `{"schema":1,"n":`, bottle.ErrCorrupt, "truncated or not JSON"},
		{"empty", ``, bottle.ErrCorrupt, "truncated or not JSON"},
		{"two values", `{"schema":1}{"schema":1}`, bottle.ErrCorrupt, "truncated or not JSON"},
		{"wrong type", `{"schema":1,"n":"x"}`, bottle.ErrCorrupt, "cannot unmarshal"},
		{"deep", `{"schema":1,"n":` + strings.Repeat("[", 20000) + `}`, bottle.ErrCorrupt, "truncated or not JSON"},
		{"over its bound", `{"schema":1}` + strings.Repeat(" ", 100_000), bottle.ErrCorrupt, "over its bound"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s.json")
			if err := os.WriteFile(path, []byte(tt.in), 0o600); err != nil {
				t.Fatal(err)
			}
			var v state
			err := bottle.ReadJSON(path, 100_000, &v)
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if err != nil && (!strings.Contains(err.Error(), tt.text) || !strings.Contains(err.Error(), path)) {
				t.Errorf("%q does not say %q of %s", err, tt.text, path)
			}
			if err == nil && v.N != 7 {
				t.Errorf("read %+v", v)
			}
		})
	}
}

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.json")
	for _, content := range []string{"old", "new and longer", ""} {
		if err := bottle.WriteFile(path, []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != content {
			t.Errorf("read %q, %v; want %q", b, err, content)
		}
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	// A link in the file's place is replaced, not followed.
	if err := os.WriteFile(filepath.Join(dir, "victim"), []byte("victim"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink("victim", link); err != nil {
		t.Fatal(err)
	}
	if err := bottle.WriteStatus(link, map[string]int{"schema": 1}); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "victim")); err != nil || string(b) != "victim" {
		t.Errorf("the link's target is now %q, %v", b, err)
	}
	if err := bottle.WriteJSON(path, func() {}); err == nil {
		t.Error("wrote a func as JSON")
	}
}

// What was there stands after a failed write, and no temporary file is left.
func TestWriteFileFails(t *testing.T) {
	dir := t.TempDir()
	if err := bottle.WriteFile(filepath.Join(dir, "absent", "a"), []byte("x"), 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("into a directory that does not exist: %v", err)
	}
	full := filepath.Join(dir, "full")
	if err := bottle.WriteFile(filepath.Join(full, "a"), nil, 0o600); err == nil {
		t.Error("wrote below nothing")
	}
	if err := os.MkdirAll(filepath.Join(full, "kept"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := bottle.WriteFile(full, []byte("x"), 0o600); err == nil { // rename over a directory
		t.Error("replaced a directory")
	}
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 1 || names[0].Name() != "full" {
		t.Errorf("left behind: %v, %v", names, err)
	}
}

// A reader beside a writer sees one content or the other, whole.
func TestWriteFileIsAtomic(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	a, b := strings.Repeat("a", 100_000), strings.Repeat("b", 50_000)
	if err := bottle.WriteFile(path, []byte(a), 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		var err error
		for i := 0; i < 200 && err == nil; i++ {
			err = bottle.WriteStatus(path, []string{a, b}[i%2])
		}
		done <- err
	}()
	for {
		got, err := bottle.ReadFile(path, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if s := strings.Trim(string(got), "\"\n"); s != a && s != b {
			t.Fatalf("a mixture of %d bytes", len(got))
		}
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			return
		default:
		}
	}
}
