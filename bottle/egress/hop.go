package egress

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"bottle/bottle"
)

const (
	hopRetry    = 2 * time.Second  // how long a pipelock that is being replaced is waited for
	hopTimeout  = 30 * time.Second // until it answers a CONNECT; it resolves and dials meanwhile
	maxHopHead  = 64 << 10         // bytes of its answer's head
	maxHopBody  = 16 << 10         // bytes of a refusal's text that are read
	layerHeader = "X-Bottle-Layer" // names who refused
)

// The layers that a refusal can come from.
const (
	layerEgress   = "egress"
	layerPipelock = "pipelock"
	layerUpstream = "upstream"
)

// A hop is pipelock, by which everything goes that goes out.
type hop struct {
	addr   string // host:port
	secret string // of which pipelock knows egress; "" if it asks for none
	dialer net.Dialer
}

// A hopError is pipelock's answer to a CONNECT that it did not open.
type hopError struct {
	status int
	reason string
}

func (e *hopError) Error() string {
	return "pipelock: " + strconv.Itoa(e.status) + ": " + e.reason
}

// errHopDown wraps what went wrong between egress and pipelock.
var errHopDown = errors.New("pipelock can't be reached")

// dial connects to pipelock. While it is being replaced its port refuses connections for a
// moment; that is waited out.
func (h *hop) dial(ctx context.Context) (net.Conn, error) {
	var c net.Conn
	err := h.retry(ctx, func() (err error) {
		c, err = h.dialer.DialContext(ctx, "tcp", h.addr)
		return err
	})
	return c, err
}

// connect opens a tunnel to a by way of pipelock. It tries again as [hop.dial] does, also
// where pipelock closes before it answered: nothing was relayed by then. It never goes
// around pipelock.
func (h *hop) connect(ctx context.Context, a authority) (halfCloser, error) {
	var c halfCloser
	err := h.retry(ctx, func() (err error) {
		c, err = h.connectOnce(ctx, a)
		return err
	})
	return c, err
}

func (h *hop) retry(ctx context.Context, try func() error) error {
	deadline := time.Now().Add(hopRetry)
	pause := 5 * time.Millisecond
	for {
		err := try()
		var refused *hopError
		switch {
		case err == nil || errors.As(err, &refused):
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !passing(err) || time.Now().Add(pause).After(deadline):
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

func (h *hop) connectOnce(ctx context.Context, a authority) (_ halfCloser, err error) {
	ctx, cancel := context.WithTimeout(ctx, hopTimeout)
	defer cancel()
	conn, err := h.dialer.DialContext(ctx, "tcp", h.addr)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() && err == nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			_ = conn.Close()
		}
	}()
	target := a.String()
	head := "CONNECT " + target + " HTTP/1.1\r\nHost: " + target + "\r\n"
	if auth := bottle.ProxyAuthorization(h.secret); auth != "" {
		head += "Proxy-Authorization: " + auth + "\r\n"
	}
	if _, err := io.WriteString(conn, head+"\r\n"); err != nil {
		return nil, err
	}
	br := bufio.NewReader(&io.LimitedReader{R: conn, N: maxHopHead})
	res, err := http.ReadResponse(br, &http.Request{Method: http.MethodConnect})
	if err != nil {
		return nil, err
	}
	defer res.Body.Close() // empty, or on a connection that is closed
	if res.StatusCode != http.StatusOK {
		return nil, &hopError{status: res.StatusCode, reason: hopReason(res)}
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil, fmt.Errorf("%s is not a TCP address", h.addr)
	}
	early, err := buffered(br) // of an upstream that spoke first
	if err != nil {
		return nil, err
	}
	return &prefixed{halfCloser: tcp, early: early}, nil
}

// hopReason reads why pipelock refused: the reason of the built-in gate's JSON, or the
// text of another's answer.
func hopReason(res *http.Response) string {
	b, err := io.ReadAll(io.LimitReader(res.Body, maxHopBody))
	if err != nil && len(b) == 0 {
		return res.Status
	}
	var refusal struct {
		Reason string `json:"reason"`
		Error  string `json:"error"`
	}
	if json.Unmarshal(b, &refusal) == nil {
		if refusal.Reason != "" {
			return printable(refusal.Reason, maxShownReason)
		}
		if refusal.Error != "" {
			return printable(refusal.Error, maxShownReason)
		}
	}
	if text := strings.TrimSpace(string(b)); text != "" && len(b) < maxHopBody {
		return printable(text, maxShownReason)
	}
	return res.Status
}
