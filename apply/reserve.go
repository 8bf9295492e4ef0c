package apply

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"bottle/bottle"
)

// reserveSize is how many bytes are kept on disk for narrowing on a full one: a journal of a few dozen routes, some
// audit lines, a record and its answer, several times over.
const reserveSize = 256 << 10

// The agent can fill the disk, be it by what it makes the daemons log. That must not keep what it was given in force,
// so space to take it back is set aside before anything is given.
func (a *Applier) reservePath() string { return a.cfg.Dir.Path("reserve") }

// keepReserve sets the space aside if that was not done yet, or it was used up since.
func (a *Applier) keepReserve() (err error) {
	path := a.reservePath()
	if st, err := os.Lstat(path); err == nil && st.Mode().IsRegular() && st.Size() == reserveSize {
		return nil
	}
	a.cfg.Fault("reserve")
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("reserve: %w", err)
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, reserveSize)
	if errors.Is(err, unix.EOPNOTSUPP) {
		_, err = f.Write(make([]byte, reserveSize))
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		a.cfg.Fault("reserve rename")
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return fmt.Errorf("reserve: %w", errors.Join(err, os.Remove(tmp)))
	}
	return bottle.SyncDir(a.cfg.Dir.Path())
}

// spare is for what leaves the reserve alone.
func spare(do func() error) error { return do() }

// withReserve does what may be done twice; if the disk is full the first time, after giving the reserve up for it.
func (a *Applier) withReserve(do func() error) error {
	err := do()
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return err
	}
	a.cfg.Fault("give up the reserve")
	if rerr := os.Remove(a.reservePath()); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) { // one of the change's other writers may have been first
		return err
	}
	// The blocks are free once the removal is committed.
	if serr := bottle.SyncDir(a.cfg.Dir.Path()); serr != nil {
		return errors.Join(err, serr)
	}
	return do()
}
