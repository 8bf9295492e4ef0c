package main_test

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// A soakUpstream is what the soak's clients reach: an HTTPS server, and a TLS port that
// echoes every byte. Any path that ends with /stream is a stream of numbered events, and one
// that ends with /upload answers with the digest of what came.
type soakUpstream struct {
	port, echoPort int
	caPEM          []byte
	roots          *x509.CertPool
}

func newSoakUpstream(t *testing.T) *soakUpstream {
	t.Helper()
	cert, ca := certificate(t, "*.corp.example")
	u := &soakUpstream{caPEM: ca, roots: x509.NewCertPool()}
	u.roots.AppendCertsFromPEM(ca)
	conf := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}

	srv := httptest.NewUnstartedServer(http.HandlerFunc(soakAnswer))
	srv.TLS = conf
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // killed daemons cut handshakes
	srv.StartTLS()
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	u.port = portOf(t, srv.Listener)

	ln, err := tls.Listen("tcp", "127.0.0.1:0", conf)
	if err != nil {
		t.Fatal(err)
	}
	u.echoPort = portOf(t, ln)
	var running sync.WaitGroup
	running.Go(func() { echo(ln) })
	t.Cleanup(func() { _ = ln.Close(); running.Wait() })
	return u
}

func portOf(t *testing.T, ln net.Listener) int {
	t.Helper()
	addr, ok := ln.Addr().(*net.TCPAddr)
	if !ok {
		t.Fatalf("listening on a %T", ln.Addr())
	}
	return addr.Port
}

// echo serves until the listener is closed, and then closes what it serves.
func echo(ln net.Listener) {
	var mu sync.Mutex
	open := map[net.Conn]struct{}{}
	var running sync.WaitGroup
	for {
		c, err := ln.Accept()
		if err != nil {
			break
		}
		mu.Lock()
		open[c] = struct{}{}
		mu.Unlock()
		running.Go(func() {
			_, _ = io.Copy(c, c)
			_ = c.Close()
			mu.Lock()
			delete(open, c)
			mu.Unlock()
		})
	}
	mu.Lock()
	for c := range open {
		_ = c.Close()
	}
	mu.Unlock()
	running.Wait()
}

func soakAnswer(w http.ResponseWriter, r *http.Request) {
	switch {
	case strings.HasSuffix(r.URL.Path, "/stream"):
		soakEvents(w, r)
	case strings.HasSuffix(r.URL.Path, "/upload"):
		sum := sha256.New()
		n, err := io.Copy(sum, r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprintf(w, "%d %x", n, sum.Sum(nil))
	default:
		fmt.Fprintln(w, "ok")
	}
}

// soakEvents sends event after event, from the one after Last-Event-ID on.
func soakEvents(w http.ResponseWriter, r *http.Request) {
	next := 0
	if last := r.Header.Get("Last-Event-ID"); last != "" {
		n, err := strconv.Atoi(last)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		next = n + 1
	}
	w.Header().Set("Content-Type", "text/event-stream")
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for ; ; next++ {
		if _, err := fmt.Fprintf(w, "id: %d\ndata: x\n\n", next); err != nil {
			return
		}
		_ = http.NewResponseController(w).Flush()
		select {
		case <-r.Context().Done():
			return
		case <-tick.C:
		}
	}
}
