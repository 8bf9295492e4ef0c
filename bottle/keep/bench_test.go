package keep_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"bottle/bottle"
	"bottle/bottle/queue"
)

// From the agent's request to its short ID: what the operator waits for, beside typing.
func BenchmarkFirstSight(b *testing.B) {
	h := newHouse(b)
	h.cfg.Every = 0
	var err error
	h.cfg.Desk, err = queue.NewDesk(queue.DeskConfig{Dir: h.dir, Trail: h.trail, MaxPending: 1 << 20})
	must(b, err)
	h.keep()
	wait(b, "the keeper", h.ensured)
	s, err := queue.NewSpool(queue.SpoolConfig{
		Requests: h.dir.Requests(), Cancels: h.dir.Cancels(), Decisions: h.dir.Decisions(), PerMinute: 1 << 20, MaxPending: 1 << 20,
	})
	must(b, err)
	defer s.Close()
	for i := 0; b.Loop(); i++ {
		tk, err := s.Submit(b.Context(), bottle.Ask{Add: []bottle.Entry{{Host: bottle.Host(fmt.Sprintf("h%d.example.com", i))}}, Reason: "r"}, "")
		must(b, err)
		path := filepath.Join(h.dir.Decisions(), tk.Request.ID+".json")
		until(b, "first sight", func() bool {
			var a bottle.Answer
			return bottle.ReadJSON(path, 0, &a) == nil
		})
	}
}
