package pipelock

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"bottle/bottle"
	"bottle/bottle/fdpass"
)

// pauseFor is how long one direction of a tunnel stands still for the other to come to a
// stop. A client that reads nothing until it has said all that it has to say would wait
// for ever if its words waited for it to read.
const pauseFor = 250 * time.Millisecond

// A tunnel is a connection from egress, one to an upstream, and what flows between them, if
// egress did not ask for the second one itself.
type tunnel struct {
	host        bottle.Host
	port        int
	since       time.Time // when it was established
	client, up  *net.TCPConn
	leash       bool // egress was passed up, and client only ties the two: see [fdpass.Header]
	there, back bool // that direction, seen from the client, is at its end and was passed on as such
	gone        bool // an error ended it
}

// How a direction came to its end.
type outcome int

const (
	outcomeEOF    outcome = iota // of its source, and its destination was told
	outcomePaused                // by a read deadline; what had been read is written
	outcomeBroken                // both connections are closed
)

// run copies both ways until both are at their end, and returns true. From pause on it
// tries to bring both to a stop, and returns false when it has: no byte of the tunnel is
// in this process then, and each that is to come is still in a socket.
//
// A direction whose destination takes nothing can't stop, since it holds what it read. It
// stops when that is written; the other flows meanwhile, but for pauseFor now and then.
func (t *tunnel) run(pause context.Context) (over bool) {
	if t.leash {
		return t.watch(pause)
	}
	type direction struct {
		dst, src      *net.TCPConn
		ended         *bool
		flows, paused bool
	}
	type result struct {
		d *direction
		outcome
	}
	directions := []*direction{
		{dst: t.up, src: t.client, ended: &t.there},
		{dst: t.client, src: t.up, ended: &t.back},
	}
	results := make(chan result)
	running := 0
	begin := func(d *direction) {
		_ = d.src.SetReadDeadline(time.Time{})
		d.flows, d.paused = true, false
		running++
		go func() { results <- result{d, pump(d.dst, d.src)} }()
	}
	for _, d := range directions {
		if !*d.ended {
			begin(d)
		}
	}
	patience := time.NewTimer(time.Hour)
	patience.Stop()
	defer patience.Stop()
	due, pausing := pause.Done(), false
	for running > 0 {
		select {
		case <-due:
			due, pausing = nil, true
		case r := <-results:
			running--
			r.d.flows = false
			switch r.outcome {
			case outcomeEOF:
				*r.d.ended = true
			case outcomePaused:
				r.d.paused = true
			case outcomeBroken:
				t.gone = true
			}
		case <-patience.C:
			for _, d := range directions {
				if d.paused {
					begin(d)
				}
			}
			continue
		}
		if !pausing {
			continue
		}
		for _, d := range directions {
			if d.flows {
				_ = d.src.SetReadDeadline(time.Unix(1, 0)) // and it stays, until begin
			}
		}
		patience.Reset(pauseFor)
	}
	return t.gone || t.there && t.back
}

// watch is run for a tunnel on a leash. Not a byte of it comes here.
func (t *tunnel) watch(pause context.Context) (over bool) {
	_ = t.client.SetReadDeadline(time.Time{})
	stop := context.AfterFunc(pause, func() { _ = t.client.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	n, err := t.client.Read(make([]byte, 1))
	t.there = n > 0
	return t.there || !errors.Is(err, os.ErrDeadlineExceeded)
}

// cut ends the tunnel, from any goroutine. Where it became forbidden, that binds each copy of
// its descriptors: egress', or one that is under way to another gate.
func (t *tunnel) cut(cause error) {
	forbidden := errors.Is(cause, errForbidden)
	if forbidden {
		_ = fdpass.Cut(t.up) // the errors are those of a connection that is over
		_ = fdpass.Cut(t.client)
	}
	reset(t.client)            // an end would pass for that of the stream
	if forbidden || !t.leash { // else it is carry's to let go, unless it was just handed over
		_ = t.up.Close()
	}
}

// letGo ends a tunnel whose leash egress has closed, and returns when it is over. If egress was
// through with it, what it has written is still sent, until ctx ends, and the upstream has a moment to end its side
// too. Then the connection is cut, whoever kept a copy of it.
func (t *tunnel) letGo(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lingerFor)
	defer cancel()
	cut := func() { _ = fdpass.Cut(t.up) } // the errors are those of a connection that is over
	defer cut()
	if ctx.Err() != nil || !t.there {
		return
	}
	stop := context.AfterFunc(ctx, cut)
	defer stop()
	_ = t.up.CloseWrite()
	for ctx.Err() == nil {
		look := time.After(partingFor)
		_ = t.up.SetReadDeadline(time.Now().Add(partingFor))
		fdpass.Drain(t.up) // until the upstream's end, or that of the moment
		if left, err := fdpass.Unsent(t.up); err != nil || left == 0 {
			return
		}
		select {
		case <-look:
		case <-ctx.Done():
		}
	}
}

// pump copies from src to dst until the end of src, which it passes on as such (half-close),
// since protocols such as git's rely on it.
//
// A read deadline of src pauses it without loss. (*net.TCPConn).ReadFrom is splice(2)
// through a pipe (internal/poll.Splice): it looks at the deadline only before it reads,
// with the pipe empty, and writes all that it has read before it does so again. Without a
// pipe (no descriptors left) it is [io.Copy], which does the same with its buffer. That
// holds as long as dst has no write deadline.
func pump(dst, src net.Conn) outcome {
	var err error
	if d, ok := dst.(*net.TCPConn); ok {
		_, err = d.ReadFrom(src)
	} else {
		_, err = io.Copy(dst, src)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return outcomePaused
	}
	if c, ok := dst.(interface{ CloseWrite() error }); ok && err == nil {
		_ = c.CloseWrite()
		return outcomeEOF
	}
	// An error on one side means that what the other would send is of no use. What broke off must
	// not look as if it had ended; but where dst takes no more, src may still get what was sent.
	if !errors.Is(err, unix.EPIPE) {
		reset(src)
		reset(dst)
	}
	_ = dst.Close()
	_ = src.Close()
	return outcomeBroken
}

// reset closes c so that its peer learns of no end.
func reset(c net.Conn) {
	if l, ok := c.(interface{ SetLinger(sec int) error }); ok {
		_ = l.SetLinger(0)
	}
	_ = c.Close()
}

// splice copies both ways until both are at their end or ctx ends, for a client that is no
// TCP connection. It can't be handed over.
func splice(ctx context.Context, client net.Conn, up *net.TCPConn) {
	stop := context.AfterFunc(ctx, func() {
		_ = client.Close()
		_ = up.Close()
	})
	defer stop()
	var both sync.WaitGroup
	both.Go(func() { pump(up, client) })
	both.Go(func() { pump(client, up) })
	both.Wait()
}
