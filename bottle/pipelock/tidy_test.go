package pipelock

import (
	"os"
	"runtime"
	"testing"
)

// The pipes of a burst of splices are given back by the second tidying.
func TestTidierGivesPipesBack(t *testing.T) {
	type held struct{ r, w *os.File }
	open := func() int {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(fds)
	}
	before := open()
	for range 50 {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		p := &held{r, w}
		runtime.SetFinalizer(p, func(p *held) { _ = p.r.Close(); _ = p.w.Close() }) // as internal/poll has it
	}
	var tidied tidier
	for n := 0; n < 100 && open() > before; n++ { // finalizers run beside us
		tidied.tidy(uint64(n))
	}
	if now := open(); now > before {
		t.Errorf("%d descriptors, %d before", now, before)
	}
	// Without news there is nothing to collect but once more.
	tidied.tidy(7)
	var a, b runtime.MemStats
	tidied.tidy(7)
	runtime.ReadMemStats(&a)
	tidied.tidy(7)
	runtime.ReadMemStats(&b)
	if a.NumForcedGC != b.NumForcedGC {
		t.Error("it collects though nothing has ended")
	}
}
