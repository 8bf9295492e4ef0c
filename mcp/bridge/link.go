package bridge

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

const (
	minBackoff = 20 * time.Millisecond
	maxBackoff = time.Second
	// probeTime is for the answer to the first message. It is long because the bundle's init
	// keeps the socket while it restarts the server, so that a dial succeeds before that serves.
	probeTime = 10 * time.Second
	writeTime = 10 * time.Second // for the bundle to take one line
)

// A link is a connection to the bundle.
type link struct {
	nc      net.Conn
	greeted bool // notifications/initialized was sent; guarded by Bridge.mu
}

// write writes one line. If that fails the connection is of no use any more, and closed, so
// that its reader takes note.
func (l *link) write(line []byte) error {
	_ = l.nc.SetWriteDeadline(time.Now().Add(writeTime))
	_, err := l.nc.Write(append(bytes.Clone(line), '\n'))
	if err != nil {
		_ = l.nc.Close()
	}
	return err
}

// keepLinked connects, again and again, until ctx is done.
func (b *Bridge) keepLinked(ctx context.Context) {
	backoff := minBackoff
	for {
		began := time.Now()
		err := b.linkOnce(ctx)
		if ctx.Err() != nil {
			return
		}
		b.lost(err)
		if time.Since(began) > maxBackoff {
			backoff = minBackoff
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// linkOnce dials and takes the bundle's lines until the connection is lost.
func (b *Bridge) linkOnce(ctx context.Context) error {
	nc, err := b.dial(ctx)
	if err != nil {
		return err
	}
	var flush sync.WaitGroup
	defer flush.Wait()
	defer nc.Close()
	stop := context.AfterFunc(ctx, func() { _ = nc.Close() })
	defer stop()

	b.mu.Lock()
	session := b.session
	b.mu.Unlock()
	to := &link{nc: nc}
	own, probe := newProbe(session)
	if err := to.write(probe); err != nil {
		return err
	}
	_ = nc.SetReadDeadline(time.Now().Add(probeTime))
	lines := newLineReader(nc, 4*MaxLine)
	var said error // by the bundle, of the connection
	for {
		line, err := lines.next()
		if err != nil {
			return cmp.Or(said, err)
		}
		env, fault := parse(line)
		if fault != nil {
			return fmt.Errorf("the bundle sent what is not JSON-RPC: %s", clip(line))
		}
		key, ok := idKey(env.ID)
		switch {
		case !ok && env.Error != nil:
			said = fmt.Errorf("the bundle says: %s", env.Error.Message)
			b.log.Warn("bridge: complaint", "err", said)
			continue
		case env.Method != "" || key != own:
			b.fromBundle(key, env, line)
			continue
		}
		if session != nil && env.Error != nil {
			return fmt.Errorf("the bundle does not take the session up again: %s", env.Error.Message)
		}
		_ = nc.SetReadDeadline(time.Time{})
		flush.Go(func() { b.flush(to) })
	}
}

// newProbe returns the first message on a link, and its id's key. Its answer, even if it is an
// error, shows that somebody serves, and never gets to the client. It is the client's own
// initialize, if it has said that, and else a ping.
func newProbe(session []byte) (key string, line []byte) {
	id := "bottle-mcp-" + rand.Text()
	raw := json.RawMessage(`"` + id + `"`)
	if session != nil {
		return "s:" + id, edit(session, func(m object) { m["id"] = raw })
	}
	return "s:" + id, marshal(object{"jsonrpc": json.RawMessage(`"` + version + `"`), "id": raw, "method": json.RawMessage(`"ping"`)})
}

// flush sends what was held, oldest first; then the link is the one that new calls take. It
// runs beside the reading of answers, without which a bundle might stop to take calls.
func (b *Bridge) flush(to *link) {
	for {
		b.order.Lock()
		line := b.next(to)
		if line == nil {
			b.order.Unlock()
			return
		}
		err := to.write(line)
		b.order.Unlock()
		if err != nil {
			return
		}
	}
}

// next returns what is to be sent next, or nil when the link is up to date, and in use from
// then on.
func (b *Bridge) next(to *link) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.session != nil && b.initialized != nil && !to.greeted {
		to.greeted = true
		return b.initialized
	}
	for _, k := range b.inOrder() {
		if k.link == nil {
			k.sentOn(to)
			return k.line
		}
	}
	b.link = to
	b.log.Info("bridge: connected", "down", time.Since(b.down).Round(time.Millisecond))
	return nil
}

// lost takes note that there is no bundle. What was in flight is held, to be sent again, or
// answered.
func (b *Bridge) lost(err error) {
	var answers [][]byte
	b.mu.Lock()
	if b.link != nil {
		b.link, b.down = nil, time.Now()
		b.log.Info("bridge: connection lost", "err", err)
	}
	switch b.why = err.Error(); {
	case errors.Is(err, io.EOF):
		b.why = "it hung up"
	case errors.Is(err, os.ErrDeadlineExceeded):
		b.why = "it takes connections, but doesn't answer"
	}
	for _, k := range b.inOrder() {
		if k.link == nil {
			continue
		}
		if answer := k.lost(); answer != nil {
			delete(b.calls, k.key)
			answers = append(answers, answer)
			continue
		}
		b.hold(k)
	}
	b.checkEmpty()
	b.mu.Unlock()
	for _, a := range answers {
		b.emit(a)
	}
}
