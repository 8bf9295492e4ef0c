package bundle

import (
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"bottle/bottle"
)

// Signals are the signals of the bundle's PID 1 as dirty flags. Each has a channel of
// capacity one: os/signal drops a signal whose channel is full, and a full channel
// means that a pass is due that has not begun, which will see what the dropped one
// was about. So none is lost by coalescing and a storm costs a bounded number of passes.
type Signals struct {
	reload, reloadPipelock, replacePipelock, restartEgress, restartPipelock chan os.Signal

	stop  chan os.Signal // TERM and INT
	child chan os.Signal
}

// Notify takes the signals over. It must be the first thing in main: a signal that comes
// before it ends the process, PID 1 too: the Go runtime has handlers from its start. The host therefore
// starts init with these signals blocked, and Notify unblocks them.
func Notify() *Signals {
	s := &Signals{}
	for _, n := range []struct {
		c    *chan os.Signal
		sigs []os.Signal
	}{
		{&s.reload, []os.Signal{syscall.Signal(bottle.SignalReload)}},
		{&s.reloadPipelock, []os.Signal{syscall.Signal(bottle.SignalReloadPipelock)}},
		{&s.replacePipelock, []os.Signal{syscall.Signal(bottle.SignalReplacePipelock)}},
		{&s.restartEgress, []os.Signal{syscall.Signal(bottle.SignalRestartEgress)}},
		{&s.restartPipelock, []os.Signal{syscall.Signal(bottle.SignalRestartPipelock)}},
		{&s.stop, []os.Signal{unix.SIGTERM, unix.SIGINT}},
		{&s.child, []os.Signal{unix.SIGCHLD}},
	} {
		*n.c = make(chan os.Signal, 1)
		signal.Notify(*n.c, n.sigs...)
	}
	return s
}

// Stop gives the signals back.
func (s *Signals) Stop() {
	for _, c := range []chan os.Signal{s.reload, s.reloadPipelock, s.replacePipelock, s.restartEgress, s.restartPipelock, s.stop, s.child} {
		signal.Stop(c)
	}
}
