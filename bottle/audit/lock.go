package audit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"
)

// lockWait bounds how long Open and Verify, which take no context, wait for other processes.
const lockWait = 10 * time.Second

func lockPath(path string) string { return path + ".lock" }

// acquire takes flock(2) on the file at path, which it creates when how is exclusive. Closing the result lets go.
//
// It polls, since a blocking flock cannot be given up when ctx ends. Once it has the lock it makes sure that path
// still names the file that it locked: whoever removed it meanwhile would let a second process in.
func acquire(ctx context.Context, path string, how int) (*os.File, error) {
	flags := os.O_RDONLY | syscall.O_NOFOLLOW | syscall.O_NONBLOCK
	if how == syscall.LOCK_EX {
		flags |= os.O_CREATE
	}
	wait := 100 * time.Microsecond
	for {
		f, err := os.OpenFile(path, flags, 0o600)
		if err != nil {
			return nil, fmt.Errorf("open audit lock: %w", err)
		}
		err = syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
		if err == nil && sameFile(f, path) {
			return f, nil
		}
		_ = f.Close()
		if err != nil && !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("lock %s, which another bottle process holds: %w", path, ctx.Err())
		case <-time.After(wait):
			wait = min(2*wait, 5*time.Millisecond)
		}
	}
}

func sameFile(f *os.File, path string) bool {
	held, err := f.Stat()
	if err != nil {
		return false
	}
	named, err := os.Lstat(path)
	return err == nil && os.SameFile(held, named)
}

// openRegular opens path without following a link, and refuses what is not a regular file. O_NONBLOCK is there so
// that a FIFO is refused rather than waited for.
func openRegular(path string, flags int) (*os.File, fs.FileInfo, error) {
	f, err := os.OpenFile(path, flags|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err != nil {
		_ = f.Close()
		return nil, nil, err
	}
	return f, info, nil
}
