package egress

import (
	"os"
	"runtime/debug"
)

const (
	// garbagePercent is what GOGC is set to. What a request leaves is garbage at once and what lives is
	// small, so that the default collects every few megabytes, for a tenth of all time.
	garbagePercent = 400
	// garbageLimit, in bytes, is where that thrift ends (GOMEMLIMIT): thousands of connections are no garbage.
	garbageLimit = 256 << 20
)

// CollectLess sets the process's garbage collector for a proxy with much to do, as far as the environment
// (GOGC, GOMEMLIMIT) does not. It is the main program's to call, as [Config.Settled]: what the start
// left behind is collected before, so that an idle egress stays small.
func CollectLess() {
	debug.FreeOSMemory()
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(garbagePercent)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(garbageLimit)
	}
}
