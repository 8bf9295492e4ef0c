package bundle

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"bottle/bottle"
	"bottle/bottle/logfile"
)

// Bounds of the access log. Egress writes some 600 lines a second at most, of some 300 bytes; one
// that was taken over waits in the pipe for the rest, and takes a while to push out
// what it did before.
const (
	maxAccessFile  = 8 << 20  // bytes of each of the four files
	maxAccessLine  = 16 << 10 // bytes
	accessRate     = 1 << 20  // bytes a second
	accessBurst    = 4 << 20  // bytes at once
	accessBuffered = 64 << 10 // bytes, what a pipe holds
)

// accessFiles are where the access log goes. Egress has a pipe and no right on them, so it
// can add to what it said and not unsay it.
type accessFiles struct {
	dir *bottle.Dir

	mu    sync.Mutex
	files map[bool]*logfile.Rotating // by whether the lines are of refusals
}

func (a *accessFiles) write(refusals bool, lines []byte) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	f := a.files[refusals]
	if f == nil {
		var err error
		if f, err = logfile.OpenRotating(a.dir.AccessLog(refusals), maxAccessFile); err != nil {
			return err
		}
		if a.files == nil {
			a.files = map[bool]*logfile.Rotating{}
		}
		a.files[refusals] = f
	}
	_, err := f.Write(lines)
	return err
}

func (a *accessFiles) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, f := range a.files {
		_ = f.Close() // nothing of it is in a buffer of ours
	}
}

// readAccess passes egress' access log on to its files, until egress ends. Lines that come
// together are written together. What can't be written (a full disk) is lost, and said once.
func (s *Supervisor) readAccess(i *instance, r *os.File) {
	defer r.Close()
	log := s.log.With("daemon", i.d.name, "pid", i.proc.pid)
	br := bufio.NewReaderSize(r, accessBuffered)
	pace := newPace(time.Now())
	batch, failing := map[bool][]byte{}, map[bool]bool{}
	flush := func() {
		for refusals, lines := range batch {
			if len(lines) == 0 {
				continue
			}
			err := s.access.write(refusals, lines)
			if err != nil && !failing[refusals] {
				log.Error("lines of the access log are lost", "error", err)
			}
			failing[refusals], batch[refusals] = err != nil, lines[:0]
		}
	}
	defer flush()
	for {
		line, err := br.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) || len(line) > maxAccessLine {
			log.Warn("the access log is not read on: a line is too long", "bound", maxAccessLine)
			return
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				log.Warn("the access log is not read on", "error", err)
			}
			return
		}
		var l bottle.AccessLine
		if err := json.Unmarshal(line, &l); err != nil {
			log.Warn("the access log is not read on: a line is not of it", "error", err)
			return
		}
		batch[l.Refusal()] = append(batch[l.Refusal()], line...)
		pace.take(len(line))
		if more, err := br.Peek(br.Buffered()); err == nil && bytes.IndexByte(more, '\n') >= 0 {
			continue
		}
		flush()
		if wait := pace.wait(time.Now()); wait > 0 {
			select {
			case <-time.After(wait):
			case <-s.over:
			}
		}
	}
}

// A pace is how fast bytes are taken.
type pace struct {
	left float64
	at   time.Time // of left
}

func newPace(now time.Time) *pace { return &pace{left: accessBurst, at: now} }

func (p *pace) take(n int) { p.left -= float64(n) }

// wait is how long to wait before the next are taken.
func (p *pace) wait(now time.Time) time.Duration {
	p.left = min(accessBurst, p.left+accessRate*now.Sub(p.at).Seconds())
	p.at = now
	if p.left >= 0 {
		return 0
	}
	return time.Duration(-p.left / accessRate * float64(time.Second))
}
