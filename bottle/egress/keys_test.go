package egress

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"bottle/bottle"
)

// A request that comes right after the start waits for its credential; a later one does not.
func TestCredentialOnItsWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeyring(map[string]bottle.Credential{"a": {Header: "X-Key"}, "b": {Header: "X-Key"}})
		go func() {
			time.Sleep(keysGrace / 4)
			if err := k.add(map[string]string{"b": "other"}); err != nil {
				t.Error(err)
			}
			time.Sleep(keysGrace / 4)
			if err := k.add(map[string]string{"a": "secret"}); err != nil {
				t.Error(err)
			}
		}()
		start := time.Now()
		if h := k.await(t.Context(), "a"); h == nil || h.token != "secret" || time.Since(start) != keysGrace/2 {
			t.Errorf("after %s: %v", time.Since(start), h)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		k := newKeyring(map[string]bottle.Credential{"a": {Header: "X-Key"}})
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), keysGrace/4)
		defer cancel()
		if h := k.await(ctx, "a"); h != nil || time.Since(start) != keysGrace/4 {
			t.Errorf("its agent has gone: after %s: %v", time.Since(start), h)
		}
		for range 2 {
			if h := k.await(t.Context(), "a"); h != nil || time.Since(start) != keysGrace {
				t.Errorf("after %s: %v", time.Since(start), h)
			}
		}
	})
}
