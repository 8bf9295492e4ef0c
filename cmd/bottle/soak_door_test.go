package main_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"syscall"
	"time"
)

// soakPatience bounds whatever a client of the soak does: what takes longer is a time-out.
const soakPatience = 20 * time.Second

// A soakDoor is a proxy as its clients see it.
type soakDoor struct {
	addr  string // host:port
	auth  string // Proxy-Authorization; may be empty
	roots *x509.CertPool
}

// A soakStatus is an answer that is not the one that was wanted.
type soakStatus struct {
	at     string // connect or get
	status int
	text   string
}

func (s soakStatus) Error() string { return fmt.Sprintf("%s: status %d: %s", s.at, s.status, s.text) }

// open makes a new connection, a tunnel in it, and TLS in that, and returns with no deadline set.
func (d soakDoor) open(ctx context.Context, host string, port int) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, soakPatience)
	defer cancel()
	nc, err := (&net.Dialer{}).DialContext(ctx, "tcp", d.addr)
	if err != nil {
		return nil, err
	}
	c, err := d.through(ctx, nc, host, port)
	if err != nil {
		return nil, errors.Join(err, nc.Close())
	}
	return c, nil
}

func (d soakDoor) through(ctx context.Context, nc net.Conn, host string, port int) (*tls.Conn, error) {
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	head := "\r\n"
	if d.auth != "" {
		head = "Proxy-Authorization: " + d.auth + "\r\n\r\n"
	}
	to := net.JoinHostPort(host, strconv.Itoa(port))
	if _, err := fmt.Fprintf(nc, "CONNECT %[1]s HTTP/1.1\r\nHost: %[1]s\r\n%[2]s", to, head); err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	// Nothing follows the answer before our TLS hello, so nothing is lost in the buffer.
	resp, err := http.ReadResponse(bufio.NewReader(nc), &http.Request{Method: http.MethodConnect})
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, soakStatus{"connect", resp.StatusCode, bodyOf(resp)}
	}
	c := tls.Client(nc, &tls.Config{ServerName: host, RootCAs: d.roots, MinVersion: tls.VersionTLS12})
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	return c, nil
}

// get sends one request in a connection of its own. first is how long it took from the dial
// to the first byte of the answer.
func (d soakDoor) get(ctx context.Context, host string, port int, path string) (first time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, soakPatience)
	defer cancel()
	began := time.Now()
	c, err := d.open(ctx, host, port)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	r, err := request(c, "GET", host, port, path, "Connection: close\r\n")
	if err != nil {
		return 0, err
	}
	if _, err := r.Peek(1); err != nil {
		return 0, fmt.Errorf("get: %w", err)
	}
	first = time.Since(began)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return 0, fmt.Errorf("get: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, soakStatus{"get", resp.StatusCode, bodyOf(resp)}
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return 0, fmt.Errorf("get: body: %w", err)
	}
	return first, nil
}

// request writes a request's head, and returns the reader of the answer.
func request(c net.Conn, method, host string, port int, path, head string) (*bufio.Reader, error) {
	if _, err := fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: %s:%d\r\n%s\r\n", method, path, host, port, head); err != nil {
		return nil, fmt.Errorf("%s: %w", method, err)
	}
	return bufio.NewReader(c), nil
}

// bodyOf is the start of an answer's text, for a report.
func bodyOf(resp *http.Response) string {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 300))
	_ = resp.Body.Close()
	return string(b)
}

// The classes of failures.
const (
	classRefused = "refused"
	classReset   = "reset"
	classEOF     = "EOF"
	classTimeout = "timed out"
	classStatus  = "5xx or other status"
	classOther   = "other"
)

func classOf(err error) string {
	var status soakStatus
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, os.ErrNotExist): // the latter: no socket there
		return classRefused
	case errors.As(err, &status):
		return classStatus
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return classReset
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return classTimeout
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return classEOF
	}
	return classOther
}
