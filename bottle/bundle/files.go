package bundle

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"bottle/bottle"
)

const (
	maxConfig    = 4 << 20              // bytes of a mounted config file
	verifyFor    = time.Second          // how long a torn file may be one that is being written
	verifyEvery  = 5 * time.Millisecond // meanwhile
	verifySlowly = time.Second          // while a daemon waits for its first valid file
	keepSums     = 8
)

// A file is a mounted config and its verified copy. A pass begins with a signal, or at
// the start, and ends when the file verifies or verifyFor after the newest signal.
type file struct {
	name    string
	mounted string
	live    string

	published bottle.Hash
	bytes     []byte // what live holds; nil before the first verification
	loaded    []sum  // the newest that were published, for who knows a file by its hash
	refused   *bottle.Refusal
	dev, ino  uint64

	pending bool      // a pass is under way
	began   time.Time // the pass
	until   time.Time // it ends then, unverified
	next    time.Time // the next look at the file; zero: none without a signal
}

// begin asks for a pass. Any look after it is at what the signal was about, so a
// pass that is under way serves, for longer.
func (f *file) begin(now time.Time) {
	if !f.pending {
		f.pending, f.began = true, now
	}
	f.until, f.next = now.Add(verifyFor), now
}

// look verifies and publishes if a look is due, and reports whether the file was good.
// keep: go on looking, slowly, after the pass.
func (f *file) look(now time.Time, keep bool) (good bool) {
	if f.next.IsZero() || now.Before(f.next) {
		return false
	}
	err := f.verify()
	if err == nil {
		f.pending, f.next, f.refused = false, time.Time{}, nil
		return true
	}
	if f.pending && now.Sub(f.began) < verifyFor {
		f.next = now.Add(verifyEvery)
		return false
	}
	if f.refused == nil || f.refused.Error != err.Error() {
		f.refused = &bottle.Refusal{Revision: claimed(err), Error: err.Error(), At: now}
	}
	switch {
	case f.pending && now.Before(f.until):
		f.next = now.Add(verifyEvery)
	case keep:
		f.pending, f.next = false, now.Add(verifySlowly)
	default:
		f.pending, f.next = false, time.Time{}
	}
	return false
}

// verify reads the mounted file once and publishes it if its revision line is right.
func (f *file) verify() error {
	b, err := bottle.ReadFile(f.mounted, maxConfig)
	if st, serr := os.Lstat(f.mounted); serr == nil {
		if sys, ok := st.Sys().(*syscall.Stat_t); ok {
			f.dev, f.ino = uint64(sys.Dev), sys.Ino //nolint:unconvert // the width of Dev differs between architectures
		}
	}
	if err != nil {
		return err
	}
	rev, err := bottle.CheckSeal(b)
	if err != nil {
		return &sealError{claims: claimedRevision(b), err: fmt.Errorf("%s: %w", f.mounted, err)}
	}
	if rev == f.published && bytes.Equal(b, f.bytes) {
		return nil
	}
	if err := publish(f.live, b); err != nil {
		return err
	}
	f.published, f.bytes = rev, b
	raw := sha256.Sum256(b)
	f.loaded = append(f.loaded[max(0, len(f.loaded)-keepSums+1):], sum{hex.EncodeToString(raw[:]), rev})
	return nil
}

// A sum is how pipelock names a file, and what we call it.
type sum struct {
	hash     string
	revision bottle.Hash
}

// revisionOf is the revision of the published file that has the hash, or empty.
func (f *file) revisionOf(hash string) bottle.Hash {
	for _, s := range slices.Backward(f.loaded) {
		if s.hash == hash {
			return s.revision
		}
	}
	return ""
}

// restore puts the verified bytes back if the live copy is not they: no daemon may start on
// anything else.
func (f *file) restore() error {
	if b, err := bottle.ReadFile(f.live, maxConfig); err == nil && bytes.Equal(b, f.bytes) {
		return nil
	}
	return publish(f.live, f.bytes)
}

func (f *file) status() bottle.MountedFile {
	return bottle.MountedFile{Dev: f.dev, Ino: f.ino, Published: f.published, Refused: f.refused}
}

// publish replaces path whole. It does not sync: after a crash of the machine the next
// init publishes anew, and never trusts what it finds.
func publish(path string, b []byte) (err error) {
	t, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.tmp")
	if err != nil {
		return fmt.Errorf("publish %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			_ = t.Close()
			_ = os.Remove(t.Name())
			err = fmt.Errorf("publish %s: %w", path, err)
		}
	}()
	if _, err = t.Write(b); err != nil {
		return err
	}
	if err = t.Close(); err != nil {
		return err
	}
	return os.Rename(t.Name(), path)
}

// A sealError keeps what the revision line claims, for the host that waits for it.
type sealError struct {
	claims bottle.Hash
	err    error
}

func (e *sealError) Error() string { return e.err.Error() }
func (e *sealError) Unwrap() error { return e.err }

func claimed(err error) bottle.Hash {
	if e, ok := errors.AsType[*sealError](err); ok {
		return e.claims
	}
	return ""
}

// claimedRevision is what the last line says the revision is, true or not; empty if
// there is no such line.
func claimedRevision(b []byte) bottle.Hash {
	_, line, _ := bytes.Cut(b[len(bottle.Body(b)):], []byte("sha256:"))
	if len(line) < 64 {
		return ""
	}
	return bottle.Hash("sha256:" + string(line[:64]))
}
