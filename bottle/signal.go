package bottle

import "syscall"

// A Signal is what the host sends to the bundle's PID 1. Sending one proves nothing: the
// status files say what came of it.
type Signal int

// The signals. Each is safe to repeat; none loses another.
const (
	SignalReload          = Signal(syscall.SIGHUP)  // verify and publish routes.yaml; egress reloads
	SignalReloadPipelock  = Signal(syscall.SIGUSR2) // verify and publish pipelock.yaml; pipelock reloads
	SignalReplacePipelock = Signal(syscall.SIGUSR1) // verify and publish pipelock.yaml; a new pipelock takes over, then the old one drains
	// SignalRestartEgress (SIGRTMIN+1 as glibc and the engine count) kills an egress that
	// did not confirm a narrowing; it comes back on the published config or not at all.
	SignalRestartEgress = Signal(35)
	// SignalRestartPipelock (SIGRTMIN+2) does the same to pipelock, the draining ones included, and
	// to the egress that a built-in one has passed connections to.
	SignalRestartPipelock = Signal(36)
)

// String is the name that kill(1) and the engine know.
func (s Signal) String() string {
	switch s {
	case SignalReload:
		return "HUP"
	case SignalReloadPipelock:
		return "USR2"
	case SignalReplacePipelock:
		return "USR1"
	case SignalRestartEgress:
		return "RTMIN+1"
	case SignalRestartPipelock:
		return "RTMIN+2"
	}
	return syscall.Signal(s).String()
}
