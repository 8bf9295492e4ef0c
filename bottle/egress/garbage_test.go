package egress_test

import (
	"sync/atomic"
	"testing"
	"time"

	"bottle/bottle"
	"bottle/bottle/egress"
)

func TestSettledIsCalledOnce(t *testing.T) {
	var calls atomic.Int32
	called := make(chan struct{}, 10)
	w := newWorld(t, []bottle.Route{whole("a.example.com")}, func(c *egress.Config) {
		c.Settled = func() { calls.Add(1); called <- struct{}{} }
	})
	select {
	case <-called:
	case <-time.After(20 * time.Second):
		t.Fatal("not called")
	}
	w.stop()
	if n := calls.Load(); n != 1 {
		t.Errorf("called %d times", n)
	}
}
