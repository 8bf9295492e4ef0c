package bundle

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// childPIDs are the children of this process, zombies included. Empty where the kernel
// does not say (CONFIG_PROC_CHILDREN): then only what is in a daemon's group is known.
func childPIDs() []int {
	tasks, _ := filepath.Glob("/proc/self/task/*/children") // the pattern is well formed
	var pids []int
	for _, t := range tasks {
		b, err := os.ReadFile(t)
		if err != nil {
			continue // the thread has ended
		}
		for _, s := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(s); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}
