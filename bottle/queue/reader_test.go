package queue_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"bottle/bottle"
	"bottle/bottle/queue"
)

func TestFind(t *testing.T) {
	h := newHost(t)
	_, err := h.desk.Find(t.Context(), "r1")
	if !errors.Is(err, bottle.ErrNotFound) || !strings.Contains(err.Error(), "has had no requests") {
		t.Errorf("in an empty bottle: %v", err)
	}
	one := h.file("a.example.com")
	if _, err := h.desk.Find(t.Context(), "r9"); !errors.Is(err, bottle.ErrNotFound) || !strings.Contains(err.Error(), "only r1") {
		t.Errorf("of one: %v", err)
	}
	h.file("b.example.com")
	id := one.Request.ID
	for _, ok := range []string{"r1", "R1", " r1 ", id, strings.ToUpper(id), id[:len(id)-1]} {
		if rec, err := h.desk.Find(t.Context(), ok); err != nil || rec.Short != "r1" {
			t.Errorf("%q: %v, %v", ok, rec, err)
		}
	}
	// Both were made within a minute, so their UUIDs begin alike.
	_, err = h.desk.Find(t.Context(), id[:6])
	if !errors.Is(err, bottle.ErrAmbiguous) || !strings.Contains(err.Error(), "r1 ("+id+") or r2 (") {
		t.Errorf("ambiguous: %v", err)
	}
	for _, bad := range []string{"", "r", "r0", "r01", "r3", "r1.", id[:3], "*", "../r1", strings.Repeat("r1", 500)} {
		_, err := h.desk.Find(t.Context(), bad)
		if !errors.Is(err, bottle.ErrNotFound) || !strings.Contains(err.Error(), "r1 to r2") || len(err.Error()) > 300 {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestList(t *testing.T) {
	h := newHost(t)
	h.file("a.example.com")
	h.file("b.example.com")
	must(t, h.desk.Deny(t.Context(), h.find("r1"), operator, "no"))
	for _, tt := range []struct {
		all  bool
		want string
	}{{false, "r2 pending"}, {true, "r1 denied, r2 pending"}} {
		got, problems, err := queue.NewReader(h.dir).List(t.Context(), tt.all)
		var text []string
		for _, l := range got {
			text = append(text, l.Short+" "+string(l.Status))
		}
		if err != nil || len(problems) != 0 || strings.Join(text, ", ") != tt.want {
			t.Errorf("all %v: %q, %v, %v", tt.all, text, problems, err)
		}
	}
	got, _, err := h.desk.List(t.Context(), false)
	must(t, err)
	b, err := json.Marshal(got[0])
	must(t, err)
	want := fmt.Sprintf(`{"id":%q,"short":"r2","bottle":"b","kind":"access","status":"pending","entries":[{"host":"b.example.com"}],"reason":"to build","attempts":1,"created_at":"2026-01-02T03:04:05Z","expires_at":"2026-01-03T03:04:05Z"}`, got[0].ID)
	if string(b) != want {
		t.Errorf("JSON\n%s, want\n%s", b, want)
	}
}

// The index must not show: listings with it, without it and with a damaged one are equal,
// and what was decided since it was written is seen.
func TestListByTheIndex(t *testing.T) {
	dir := newDir(t)
	const n = 2000 // so many that most were written longer ago than a tick of the clock
	plant(t, dir, n, bottle.Pending)
	list := func() []queue.Listing {
		t.Helper()
		got, problems, err := queue.NewReader(dir).List(t.Context(), true)
		if err != nil || len(problems) != 0 {
			t.Fatal(problems, err)
		}
		return got
	}
	want := list()
	index := dir.Path("records.index")
	good, err := os.ReadFile(index)
	must(t, err)
	for name, b := range map[string][]byte{
		"as written": good,
		"empty":      {},
		"cut":        good[:len(good)/2],
		"a bit":      append(good[:len(good)-1:len(good)-1], good[len(good)-1]^1),
		"magic only": good[:19],
	} {
		must(t, os.WriteFile(index, b, 0o600))
		if diff := cmp.Diff(want, list()); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	must(t, os.WriteFile(index, good, 0o600))
	path := glob(t, dir.Path("records", "r7.*"))[0]
	var rec bottle.Record
	must(t, bottle.ReadJSON(path, 0, &rec))
	must(t, rec.Transition(bottle.Denied, time.Now()))
	must(t, bottle.WriteJSON(path, rec))
	if got := list(); len(got) != n || got[6].Status != bottle.Denied {
		t.Errorf("r7 is %s", got[6].Status)
	}
	must(t, os.Remove(path))
	if got := list(); len(got) != n-1 {
		t.Errorf("%d left", len(got))
	}
}

func TestListAll(t *testing.T) {
	root := t.TempDir()
	for _, name := range []string{"b", "a", "damaged"} {
		dir, err := bottle.NewDir(filepath.Join(root, name))
		must(t, err)
		must(t, dir.Create())
		must(t, bottle.WriteJSON(dir.Metadata(), bottle.Metadata{Schema: 1}))
		plant(t, dir, 2, bottle.Pending)
	}
	must(t, os.RemoveAll(filepath.Join(root, "damaged", "records")))
	must(t, os.Mkdir(filepath.Join(root, "never-started"), 0o700))
	must(t, os.Mkdir(filepath.Join(root, "Not A Name"), 0o700))
	must(t, os.WriteFile(filepath.Join(root, "file"), nil, 0o600))
	names, err := queue.Bottles(root)
	if err != nil || strings.Join(names, " ") != "a b damaged" {
		t.Errorf("bottles %q, %v", names, err)
	}
	got, problems, err := queue.ListAll(t.Context(), root, false)
	if err != nil || len(got) != 4 || got[0].Bottle != "a" || got[3].Bottle != "b" {
		t.Errorf("%+v, %v", got, err)
	}
	if len(problems) != 1 || problems[0].File != "damaged" {
		t.Errorf("problems %v", problems)
	}
	if names, err := queue.Bottles(filepath.Join(root, "nowhere")); err != nil || len(names) != 0 {
		t.Errorf("nowhere: %q, %v", names, err)
	}
}
