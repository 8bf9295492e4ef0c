package main_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// The hosts of the soak's manifest.
const (
	soakOpen   = "open.corp.example"   // intercepted, below /open
	soakTunnel = "tunnel.corp.example" // passthrough
)

// tunnel sends a byte every second, and hears each again.
func (h *soakHeld) tunnel(ctx context.Context) {
	h.keep(ctx, kindTunnel, time.Second, func(ctx context.Context) (soakSession, error) {
		c, err := h.door.open(ctx, soakTunnel, h.up.echoPort)
		if err != nil {
			return soakSession{}, err
		}
		var said, heard byte
		return soakSession{
			conn: c,
			beat: func() error {
				said++
				_ = c.SetWriteDeadline(time.Now().Add(soakPatience))
				_, err := c.Write([]byte{said})
				return err
			},
			next: func() error {
				var b [1]byte
				if _, err := io.ReadFull(c, b[:]); err != nil {
					return cut(err)
				}
				if heard++; b[0] != heard {
					return fmt.Errorf("byte %d came as %d", heard, b[0])
				}
				return nil
			},
		}, nil
	})
}

// cut tells an end that came too early from the one that a session reports.
func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// stream reads numbered events; after a cut it goes on after the last that it has seen.
func (h *soakHeld) stream(ctx context.Context) {
	last := -1
	h.keep(ctx, kindStream, time.Second, func(ctx context.Context) (soakSession, error) {
		head := "Accept: text/event-stream\r\n"
		if last >= 0 {
			head += fmt.Sprintf("Last-Event-ID: %d\r\n", last)
		}
		c, r, err := h.door.stream(ctx, soakOpen, h.up.port, "/open/stream", head)
		if err != nil {
			return soakSession{}, err
		}
		return soakSession{conn: c, next: func() error {
			line, err := r.ReadString('\n')
			if err != nil {
				return cut(err)
			}
			if id, ok := strings.CutPrefix(line, "id: "); ok {
				if last++; id != fmt.Sprintf("%d\n", last) {
					return fmt.Errorf("event %d came as %s", last, strings.TrimSpace(id))
				}
			}
			return nil
		}}, nil
	})
}

// stream opens an answer that does not end, and returns the reader of its body.
func (d soakDoor) stream(ctx context.Context, host string, port int, path, head string) (c net.Conn, body *bufio.Reader, err error) {
	tc, err := d.open(ctx, host, port)
	if err != nil {
		return nil, nil, err
	}
	_ = tc.SetDeadline(time.Now().Add(soakPatience))
	r, err := request(tc, "GET", host, port, path, head)
	if err != nil {
		return nil, nil, errors.Join(err, tc.Close())
	}
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("stream: %w", err), tc.Close())
	}
	if resp.StatusCode != http.StatusOK {
		return nil, nil, errors.Join(soakStatus{"stream", resp.StatusCode, bodyOf(resp)}, tc.Close())
	}
	_ = tc.SetDeadline(time.Time{})
	return tc, bufio.NewReader(resp.Body), nil
}

// upload sends a chunk ten times a second; the upstream says in the end what has come.
func (h *soakHeld) upload(ctx context.Context) {
	h.keep(ctx, kindUpload, 100*time.Millisecond, func(ctx context.Context) (soakSession, error) {
		c, err := h.door.open(ctx, soakOpen, h.up.port)
		if err != nil {
			return soakSession{}, err
		}
		r, err := request(c, "PUT", soakOpen, h.up.port, "/open/upload", "Transfer-Encoding: chunked\r\n")
		if err != nil {
			return soakSession{}, errors.Join(err, c.Close())
		}
		sum, sent := sha256.New(), 0
		want := make(chan string, 1)
		write := func(format string, args ...any) error {
			_ = c.SetWriteDeadline(time.Now().Add(soakPatience))
			_, err := fmt.Fprintf(c, format, args...)
			return err
		}
		return soakSession{
			conn: c,
			beat: func() error {
				chunk := strings.Repeat(fmt.Sprintf("%015d\n", sent), 64)
				sum.Write([]byte(chunk))
				sent += len(chunk)
				return write("%x\r\n%s\r\n", len(chunk), chunk)
			},
			finish: func() error {
				want <- fmt.Sprintf("%d %x", sent, sum.Sum(nil))
				return write("0\r\n\r\n")
			},
			next: func() error {
				resp, err := http.ReadResponse(r, nil)
				if err != nil {
					return cut(err)
				}
				got := bodyOf(resp)
				if resp.StatusCode != http.StatusOK {
					return soakStatus{"upload", resp.StatusCode, got}
				}
				select {
				case w := <-want:
					if got != w {
						return fmt.Errorf("what was uploaded came as %s, not %s", got, w)
					}
					return io.EOF
				default:
					return fmt.Errorf("an answer before the end: %s", got)
				}
			},
		}, nil
	})
}
