package bundle_test

import (
	"testing"

	"golang.org/x/sys/unix"

	"bottle/bottle"
)

// A pipelock that was taken over makes the socket that it shares with init a blocking one: init,
// which empties its backlog once it is gone, must not wait there.
func TestHijackedPipelockCannotHoldInitUp(t *testing.T) {
	h := hijack(t)
	h.order(bottle.DaemonPipelock, order{Block: true})
	old := h.pipelock().PID
	rev := h.write(bottle.PipelockFile, "mode: strict # 2\n")
	h.signal(bottle.SignalReplacePipelock)
	h.replaced(old, rev)
	eventually(t, "the old one ends", func() bool { runs, _ := alive(old); return !runs })
	rev = h.write(bottle.RoutesFile, "routes: [] # 2\n")
	h.signal(bottle.SignalReload)
	h.until("init serves a HUP", func(st bottle.InitStatus) bool { return st.Files[bottle.RoutesFile].Published == rev })
}

// It shuts the sockets down that it inherited; its successors get new ones.
func TestHijackedDaemonCannotTakeItsSocketAlong(t *testing.T) {
	for _, tt := range []struct{ daemon, network string }{
		{bottle.DaemonSupervise, "unix"}, {bottle.DaemonEgress, "tcp"}, {bottle.DaemonPipelock, "tcp"},
	} {
		t.Run(tt.daemon, func(t *testing.T) {
			b := newBed(t)
			b.behave(tt.daemon, "shutdown")
			b.start()
			st := b.ready()
			addr := map[string]string{bottle.DaemonSupervise: b.dir.MCPSocket(), bottle.DaemonEgress: b.proxy(), bottle.DaemonPipelock: b.hop()}[tt.daemon]
			eventually(t, "nobody listens", func() bool {
				c, err := dial(tt.network, addr)
				if err == nil {
					_ = c.Close()
				}
				return err != nil
			})
			b.behave(tt.daemon, "")
			if err := unix.Kill(st.Daemons[tt.daemon].PID, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			eventually(t, "its successor serves", func() bool {
				c, err := dial(tt.network, addr)
				if err != nil {
					return false
				}
				defer c.Close()
				_, err = c.say("hello")
				return err == nil
			})
		})
	}
}
