package egress

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"syscall"
	"time"

	"bottle/bottle"
	"bottle/bottle/fdpass"
)

const maxHopHead = 64 << 10 // bytes of pipelock's answer to a CONNECT

// A hop is pipelock, by which everything goes that goes out. Its address changes when
// another pipelock takes over; see [upstreams.use].
type hop struct {
	addr   atomic.Pointer[string] // host:port
	secret string                 // of which pipelock knows egress; "" if it asks for none
	passed *passed                // nil: all that flows, flows through pipelock
	dialer net.Dialer
}

func newHop(addr, secret string, p *passed) *hop {
	// Who is on the same machine can't vanish without a word.
	h := &hop{secret: secret, passed: p, dialer: net.Dialer{KeepAlive: -1}}
	h.addr.Store(&addr)
	return h
}

func (h *hop) address() string { return *h.addr.Load() }

func (h *hop) dialOnce(ctx context.Context) (net.Conn, error) {
	return h.dialer.DialContext(ctx, "tcp", h.address())
}

// errHopDown wraps what went wrong between egress and pipelock.
var errHopDown = errors.New("pipelock can't be reached")

// dial connects to pipelock. Where its port refuses, it tries again, by the address of
// then. Once connected it has done its part: whoever called it sends a request at once, and
// what was sent may have arrived.
func (h *hop) dial(ctx context.Context) (net.Conn, error) {
	var c net.Conn
	err := h.retry(ctx, func() (again bool, err error) {
		c, err = h.dialOnce(ctx)
		return passing(err), err
	})
	return c, err
}

// connect opens a tunnel to a by way of pipelock. It tries again as [hop.dial] does, also
// where pipelock closes before the first byte of its answer: until that has come, the
// caller has no connection to send anything on. It never goes around pipelock; but the
// connection may be one that pipelock has made and passed on.
func (h *hop) connect(ctx context.Context, a authority) (halfCloser, error) {
	var c halfCloser
	err := h.retry(ctx, func() (again bool, err error) {
		c, again, err = h.connectOnce(ctx, a)
		return again, err
	})
	return c, err
}

// retry tries until try succeeds, says that trying again is of no use, or the next try
// would begin later than hopRetry after the first. Its error wraps errHopDown, but for
// pipelock's own refusal and the end of ctx.
func (h *hop) retry(ctx context.Context, try func() (again bool, err error)) error {
	deadline := time.Now().Add(hopRetry)
	pause := 5 * time.Millisecond
	for {
		again, err := try()
		var refused *hopError
		switch {
		case err == nil || errors.As(err, &refused):
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !again || time.Now().Add(pause).After(deadline):
			return fmt.Errorf("%w: %w", errHopDown, err)
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		}
		pause = min(2*pause, 100*time.Millisecond)
	}
}

// passing reports whether err is what the replacement of a process looks like.
func passing(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.EPIPE)
}

// connectOnce tries once; again means that pipelock was gone before it answered anything.
func (h *hop) connectOnce(ctx context.Context, a authority) (c halfCloser, again bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, hopTimeout)
	defer cancel()
	conn, err := h.dialOnce(ctx)
	if err != nil {
		return nil, passing(err), err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() && err == nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			if c != nil {
				_ = c.Close()
				c = nil
			}
			_ = conn.Close()
		}
	}()
	target := a.String()
	head := "CONNECT " + target + " HTTP/1.1\r\nHost: " + target + "\r\n"
	if auth := bottle.ProxyAuthorization(h.secret); auth != "" {
		head += "Proxy-Authorization: " + auth + "\r\n"
	}
	wish := h.passed.ask()
	defer wish.end()
	if wish != nil {
		head += fdpass.Header + ": " + wish.name + "\r\n"
	}
	if _, err := io.WriteString(conn, head+"\r\n"); err != nil {
		return nil, passing(err), err
	}
	answer := &io.LimitedReader{R: conn, N: maxHopHead}
	br := bufio.NewReaderSize(answer, 512) // most answers are a line
	res, err := http.ReadResponse(br, &http.Request{Method: http.MethodConnect})
	if err != nil {
		return nil, passing(err) && answer.N == maxHopHead, err
	}
	defer res.Body.Close() // empty, or on a connection that is closed
	if res.StatusCode != http.StatusOK {
		return nil, false, &hopError{status: res.StatusCode, reason: hopReason(res)}
	}
	if wish != nil && res.Header.Get(fdpass.Header) == wish.name {
		c, err := wish.take(ctx, conn)
		return c, false, err
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil, false, errors.New("the connection to pipelock is not TCP")
	}
	early, err := buffered(br) // of an upstream that spoke first
	if err != nil {
		return nil, false, err
	}
	return &prefixed{halfCloser: tcp, early: early}, false, nil
}
