package bench

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

type kind string

const (
	kept    kind = "kept"
	fresh   kind = "new"
	resumed kind = "resumed"
)

// stuck bounds each connection, so that a proxy that hangs fails the benchmark.
const stuck = time.Minute

// A path is a way to an upstream.
type path struct {
	proxy string // host:port; empty for straight there
	auth  string // Proxy-Authorization; empty for none
	dial  string // host:port to connect to without a proxy
	host  string // of the upstream, as the client says it
	port  int
	roots *x509.CertPool
	pids  []int // of the proxy's processes
}

func (p *path) target() string { return p.host + ":" + strconv.Itoa(p.port) }

// cpu is what the proxy's processes have used so far.
func (p *path) cpu(b *testing.B) time.Duration {
	var sum time.Duration
	for _, pid := range p.pids {
		d, err := cpuTime(pid)
		if err != nil {
			b.Fatal(err)
		}
		sum += d
	}
	return sum
}

// A client has one connection at a time.
type client struct {
	path    *path
	tls     *tls.Config
	request []byte
	conn    *tls.Conn
	buf     []byte
}

func newClient(p *path, sessions bool) *client {
	c := &client{
		path: p, buf: make([]byte, 16<<10), tls: &tls.Config{RootCAs: p.roots, ServerName: p.host, MinVersion: tls.VersionTLS12},
		request: []byte("GET /v1/items?page=2 HTTP/1.1\r\nHost: " + p.target() + "\r\nUser-Agent: bench/1.0\r\nAccept: */*\r\n\r\n"),
	}
	if sessions {
		c.tls.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	}
	return c
}

func (c *client) open() error {
	to := c.path.dial
	if c.path.proxy != "" {
		to = c.path.proxy
	}
	raw, err := new(net.Dialer).DialContext(context.Background(), "tcp", to)
	if err != nil {
		return err
	}
	err = raw.SetDeadline(time.Now().Add(stuck))
	if err == nil && c.path.proxy != "" {
		err = c.connect(raw)
	}
	if err == nil {
		c.conn = tls.Client(raw, c.tls)
		err = c.conn.HandshakeContext(context.Background())
	}
	if err != nil {
		_ = raw.Close()
		c.conn = nil
	}
	return err
}

func (c *client) connect(raw net.Conn) error {
	head := "CONNECT " + c.path.target() + " HTTP/1.1\r\nHost: " + c.path.target() + "\r\n"
	if c.path.auth != "" {
		head += "Proxy-Authorization: " + c.path.auth + "\r\n"
	}
	if _, err := raw.Write([]byte(head + "\r\n")); err != nil {
		return err
	}
	have := 0
	for !bytes.Contains(c.buf[:have], []byte("\r\n\r\n")) { // and no more: the server waits for us
		n, err := raw.Read(c.buf[have:])
		if err != nil {
			return err
		}
		have += n
	}
	if !bytes.Contains(c.buf[:have], []byte(" 200 ")) {
		return fmt.Errorf("CONNECT %s: %q", c.path.target(), c.buf[:have])
	}
	return nil
}

func (c *client) close() {
	if c.conn != nil {
		_ = c.conn.Close()
		c.conn = nil
	}
}

// fetch sends the request and reads the response, which has a Content-Length.
func (c *client) fetch() error {
	if _, err := c.conn.Write(c.request); err != nil {
		return err
	}
	have, want := 0, -1
	for have != want {
		n, err := c.conn.Read(c.buf[have:])
		if err != nil {
			return err
		}
		if have += n; want < 0 {
			if want, err = length(c.buf[:have]); err != nil {
				return err
			}
		}
	}
	return nil
}

// length of the whole response, or -1 if it can't be known yet.
func length(b []byte) (int, error) {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		return -1, nil
	}
	head := b[:end+2]
	if !bytes.HasPrefix(head, []byte("HTTP/1.1 200 ")) {
		return 0, fmt.Errorf("response: %q", b)
	}
	for _, name := range []string{"\r\nContent-Length: ", "\r\ncontent-length: "} {
		if _, rest, ok := bytes.Cut(head, []byte(name)); ok {
			digits, _, _ := bytes.Cut(rest, []byte("\r\n"))
			n, err := strconv.Atoi(string(digits))
			return end + 4 + n, err
		}
	}
	return 0, errors.New("response without Content-Length")
}

// A load is some clients that do the same over and over.
type load struct {
	kind    kind
	clients []*client
	times   []time.Duration // of each request
	took    time.Duration
}

func newLoad(p *path, k kind, clients int) *load {
	l := &load{kind: k}
	for range clients {
		l.clients = append(l.clients, newClient(p, k == resumed))
	}
	return l
}

func (l *load) run(d time.Duration) error {
	var group errgroup.Group
	begin := time.Now()
	times := make([][]time.Duration, len(l.clients))
	for i, c := range l.clients {
		group.Go(func() error {
			for last := time.Now(); last.Sub(begin) < d; {
				if err := l.once(c); err != nil {
					return err
				}
				now := time.Now()
				times[i] = append(times[i], now.Sub(last))
				last = now
			}
			return nil
		})
	}
	err := group.Wait()
	l.took += time.Since(begin)
	for _, t := range times {
		l.times = append(l.times, t...)
	}
	return err
}

func (l *load) once(c *client) error {
	if c.conn == nil {
		if err := c.open(); err != nil {
			return err
		}
	}
	if err := c.fetch(); err != nil {
		return err
	}
	if l.kind != kept {
		c.close()
	}
	return nil
}

func (l *load) reset() { l.times, l.took = nil, 0 }

func (l *load) rate() float64 { return float64(len(l.times)) / l.took.Seconds() }

func (l *load) close() {
	for _, c := range l.clients {
		c.close()
	}
}
