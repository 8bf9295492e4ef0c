package audit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// Config says where a log lies.
type Config struct {
	Path     string           // required: audit.jsonl
	HeadPath string           // required: audit.head
	Bottle   string           // optional: the Entry.Bottle of entries that name none
	Now      func() time.Time // optional: nil means time.Now
}

// Log appends to one audit log. It is safe for concurrent use, and with other processes that append to the same
// files: each call opens them anew under the lock, so that no process goes on writing to a log that was moved away.
type Log struct {
	cfg    Config
	turn   chan struct{} // holds one token: the mutex of this Log, which a context can give up on
	index  index         // guarded by turn
	closed bool          // guarded by turn
}

// Open returns the log, creating what is missing and settling what a crash left (see the package comment). It
// returns ErrTampered when log and head disagree otherwise, and ErrNewer for a newer schema. It waits at most 10 s
// for other processes.
func Open(cfg Config) (*Log, error) {
	switch {
	case cfg.Path == "":
		return nil, errors.New("audit log: Config.Path is required")
	case cfg.HeadPath == "":
		return nil, errors.New("audit log: Config.HeadPath is required")
	case filepath.Clean(cfg.Path) == filepath.Clean(cfg.HeadPath):
		return nil, errors.New("audit log: Config.Path and Config.HeadPath are the same file")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	l := &Log{cfg: cfg, turn: make(chan struct{}, 1)}
	l.turn <- struct{}{}

	ctx, cancel := context.WithTimeout(context.Background(), lockWait)
	defer cancel()
	if err := l.locked(ctx, func(*os.File, head) error { return nil }); err != nil {
		return nil, err
	}
	return l, nil
}

// Close makes later calls fail with fs.ErrClosed. It waits for those under way.
func (l *Log) Close() error {
	<-l.turn
	l.closed = true
	l.index = index{}
	l.turn <- struct{}{}
	return nil
}

// Append writes e as the next line and returns it as written, once it is on disk. After an error nothing was
// recorded, but for one case: when the directory cannot be synced after all else, the line stays. ctx bounds the wait
// for other writers, not the write.
func (l *Log) Append(ctx context.Context, e Entry) (Entry, error) {
	if err := check(e); err != nil {
		return Entry{}, err
	}
	err := l.locked(ctx, func(f *os.File, at head) (err error) {
		e, err = l.append(f, at, e)
		return err
	})
	if err != nil {
		return Entry{}, err
	}
	return e, nil
}

// AppendOnce is Append, unless the log has a line with e's Change and Event, by whichever process: then it returns
// that one, and false. Recovery uses it to fill in what a killed apply did not come to write.
//
// The first call reads the whole log; later ones read only what was added since.
func (l *Log) AppendOnce(ctx context.Context, e Entry) (Entry, bool, error) {
	if e.Change == "" {
		return Entry{}, false, errors.New("audit entry: change is required to append once")
	}
	if err := check(e); err != nil {
		return Entry{}, false, err
	}
	written := false
	err := l.locked(ctx, func(f *os.File, at head) error {
		if err := l.index.catchUp(f, at.Size); err != nil {
			return err
		}
		known, found, err := l.index.find(f, e.Change, e.Event)
		if err != nil {
			return err
		}
		if found {
			e = known
			return nil
		}
		e, err = l.append(f, at, e)
		written = err == nil
		return err
	})
	if err != nil {
		return Entry{}, false, err
	}
	return e, written, nil
}

// locked runs do while no other process writes, with the log open and agreeing with its head.
func (l *Log) locked(ctx context.Context, do func(f *os.File, at head) error) error {
	select {
	case <-l.turn:
		defer func() { l.turn <- struct{}{} }()
	case <-ctx.Done():
		return fmt.Errorf("append to audit log: %w", ctx.Err())
	}
	if l.closed {
		return fmt.Errorf("append to audit log: %w", fs.ErrClosed)
	}
	lock, err := acquire(ctx, lockPath(l.cfg.Path), syscall.LOCK_EX)
	if err != nil {
		return err
	}
	defer lock.Close()
	f, at, err := l.settle()
	if err != nil {
		return err
	}
	defer f.Close()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("append to audit log: %w", err)
	}
	return do(f, at)
}

func (l *Log) append(f *os.File, at head, e Entry) (Entry, error) {
	if e.Bottle == "" {
		e.Bottle = l.cfg.Bottle
	}
	if e.Time.IsZero() {
		e.Time = l.cfg.Now()
	}
	e.Time = e.Time.UTC()
	e.Schema, e.Seq, e.Prev = Schema, at.Seq+1, at.Hash
	line, err := encode(e)
	if err != nil {
		return Entry{}, err
	}
	// What is returned is what a reader will get: shortened, in UTC, without what JSON cannot hold.
	e, err = decode(line[:len(line)-1])
	if err != nil {
		return Entry{}, fmt.Errorf("audit entry does not read back: %w", err)
	}
	next := head{Schema: Schema, Seq: e.Seq, Hash: e.Hash, Size: at.Size + int64(len(line))}
	if err := l.commit(f, at, next, line); err != nil {
		return Entry{}, fmt.Errorf("append to audit log: %w", err)
	}
	return e, nil
}

// commit makes line durable, then the head that acknowledges it: two rounds of fsync, since the line and the head's
// new file are synced side by side. The head's name is switched only after the line is on disk.
func (l *Log) commit(f *os.File, at, next head, line []byte) (err error) {
	staged, err := stageHead(l.cfg.HeadPath, next)
	if err != nil {
		return err
	}
	defer staged.Close()

	// Until the rename the line is in nobody's view but a crash's; take it back.
	renamed := false
	defer func() {
		if err != nil && !renamed {
			if undo := errors.Join(f.Truncate(at.Size), f.Sync()); undo != nil {
				err = fmt.Errorf("%w (and the line stays until the next append: %w)", err, undo)
			}
		}
	}()
	if _, err := f.Write(line); err != nil {
		return err
	}
	synced := make(chan error, 1)
	go func() { synced <- staged.Sync() }()
	if err := errors.Join(f.Sync(), <-synced); err != nil {
		return err
	}
	if err := os.Rename(staged.Name(), l.cfg.HeadPath); err != nil {
		return err
	}
	renamed = true
	return syncDir(filepath.Dir(l.cfg.HeadPath))
}
