package egress_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"bottle/bottle"
)

// peak is the most memory that this process ever had resident, in MiB.
func peak(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := bytes.Cut(b, []byte("VmHWM:"))
	kib, err := strconv.Atoi(string(bytes.Fields(rest)[0]))
	if err != nil {
		t.Fatal(err)
	}
	return kib >> 10
}

// Bodies of any size go by in constant memory, and idle websockets cost little. The size is that of
// BOTTLE_LARGE in MiB, 4096 for the numbers in reports; the memory is of the agent, the gate
// and the upstream too, which all are this process.
func TestLargeBodies(t *testing.T) {
	size, err := strconv.ParseInt(os.Getenv("BOTTLE_LARGE"), 10, 64)
	if err != nil {
		size = 64
	}
	size <<= 20
	byBoth(t, []bottle.Route{whole("big.example.com")}, func(t *testing.T, _ *world, serve func(string, http.HandlerFunc), c *http.Client) {
		serve("big.example.com", func(rw http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				n, err := io.Copy(io.Discard, r.Body)
				_, _ = fmt.Fprint(rw, n, err)
				return
			}
			rw.Header().Set("Content-Length", strconv.FormatInt(size, 10))
			_, _ = io.CopyN(rw, zeros{}, size)
		})
		before := peak(t)
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			proto, took := transfer(t, c, method, "https://big.example.com/", size)
			t.Logf("%s %s of %d MiB: %s, %.0f MiB/s; peak %d MiB, %d before", proto, method, size>>20, took, float64(size>>20)/took.Seconds(), peak(t), before)
		}
		if grew := peak(t) - before; grew > 128 {
			t.Errorf("the peak grew by %d MiB", grew)
		}
	})
}

// transfer gets or posts size bytes of an upstream that tells what it got, and returns by which
// protocol and how long it took.
func transfer(t *testing.T, c *http.Client, method, url string, size int64) (proto string, took time.Duration) {
	t.Helper()
	var body io.Reader
	if method == http.MethodPost {
		body = io.LimitReader(zeros{}, size)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var got strings.Builder
	n := int64(0)
	if method == http.MethodPost {
		_, err = io.Copy(&got, res.Body)
	} else {
		n, err = io.Copy(io.Discard, res.Body)
	}
	if err != nil || method == http.MethodGet && n != size || method == http.MethodPost && got.String() != fmt.Sprint(size, nil) {
		t.Fatalf("%s: %d, %q, %v", method, n, got.String(), err)
	}
	return res.Proto, time.Since(start).Round(time.Millisecond)
}

// zeros is a reader without an end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestIdleWebsockets(t *testing.T) {
	count, err := strconv.Atoi(os.Getenv("BOTTLE_WEBSOCKETS"))
	if err != nil {
		count = 50
	}
	w := newWorld(t, []bottle.Route{whole("ws.example.com")})
	w.upstream("ws.example.com", func(rw http.ResponseWriter, r *http.Request) {
		c, brw, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %s\r\n\r\n", websocketAccept(r))
		_, _ = io.Copy(c, brw)
	})
	before := peak(t)
	type socket struct {
		c  *tls.Conn
		br *bufio.Reader
	}
	var open []socket
	for range count {
		c, br, status := ws(t, w, "/", "websocket")
		if status != http.StatusSwitchingProtocols {
			t.Fatal(status)
		}
		if err := c.SetDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		open = append(open, socket{c, br})
	}
	for _, s := range open {
		_, _ = io.WriteString(s.c, "ping")
		b := make([]byte, 4)
		if _, err := io.ReadFull(s.br, b); err != nil || string(b) != "ping" {
			t.Fatalf("%q %v", b, err)
		}
	}
	t.Logf("%d websockets: peak %d MiB, %d before", count, peak(t), before)
}
