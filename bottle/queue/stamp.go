package queue

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A stamp tells whether a file is the one that was read before. Files of the records are
// only ever replaced whole, so a new content comes with a new inode, size or time.
type stamp struct {
	Ino   uint64 `json:"i"`
	Size  int64  `json:"s"`
	Mtime int64  `json:"m"` // ns
	Ctime int64  `json:"c"` // ns
	Taken int64  `json:"t"` // ns, when this stamp was
}

// tick is the coarsest step of file times on Linux (CONFIG_HZ=100), doubled.
const tick = 20 * time.Millisecond

// stampOf takes the stamp of a path without following a link. It is to be taken before the
// file is read, so that a change in between makes the stamp older than the content.
func stampOf(path string) (stamp, error) { return stampAt(unix.AT_FDCWD, path) }

// stampAt is stampOf of a name in an open directory.
func stampAt(dir int, path string) (stamp, error) {
	taken := time.Now().UnixNano()
	var st unix.Stat_t
	for {
		err := unix.Fstatat(dir, path, &st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return stamp{}, &os.PathError{Op: "lstat", Path: path, Err: err}
		}
		break
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return stamp{}, fmt.Errorf("%s: not a regular file", path)
	}
	return stamp{Ino: st.Ino, Size: st.Size, Mtime: st.Mtim.Nano(), Ctime: st.Ctim.Nano(), Taken: taken}, nil
}

// same reports whether nothing was written since old was taken. A file that was written
// within a tick of it could have been written again without its time showing that (the
// racy index of git): it counts as changed.
func (s stamp) same(old stamp) bool {
	return s.Ino == old.Ino && s.Size == old.Size && s.Mtime == old.Mtime && s.Ctime == old.Ctime &&
		old.Ctime < old.Taken-int64(tick)
}
