package bundle

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"bottle/bottle"
)

// lockBundle takes run/bundle/init.lock for the life of this process: two supervisors
// on one directory would publish over each other and remove each other's status. The lock
// goes with the process, and not to its children (O_CLOEXEC), so a kill -9 leaves none.
func lockBundle(dir *bottle.Dir) (unlock func(), err error) {
	path := dir.Path("run", "bundle", "init.lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the bundle: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("another init runs on %s; stop it first: %w", dir.Path(), bottle.ErrLocked)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { _ = f.Close() }, nil
}
