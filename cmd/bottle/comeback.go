package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"bottle/apply"
)

// comebackWait is how long a decision waits for daemons that are about to come back: after a restart, or a death.
const comebackWait = 5 * time.Second

// onceUp does what needs daemons that are ready. If there are none, which changes nothing, it waits for those that
// come back by themselves, and tries again.
func (c *cell) onceUp(ctx context.Context, do func() error) error {
	err := do()
	if !errors.Is(err, apply.ErrNotRunning) || !c.comesBack(ctx) {
		return err
	}
	fmt.Fprintf(c.warn, "bottle %s: its daemons are coming back; waiting up to %v for them\n", c.name, comebackWait)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	end := time.NewTimer(comebackWait)
	defer end.Stop()
	for {
		select {
		case <-tick.C:
		case <-end.C:
			return err
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		}
		if err = do(); !errors.Is(err, apply.ErrNotRunning) {
			return err
		}
	}
}

// comesBack reports whether somebody is there to bring the daemons up: the keeper, or an init that runs.
func (c *cell) comesBack(ctx context.Context) bool {
	m, err := c.dir.LoadMetadata()
	if err != nil || !m.StoppedAt.IsZero() {
		return false
	}
	if m.Keeper.Alive() {
		return true
	}
	up, err := c.backend.Running(ctx)
	return up && err == nil
}
