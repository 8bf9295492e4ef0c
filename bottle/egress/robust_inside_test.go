package egress

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"bottle/bottle/allow"
)

// Limit lowers limits for a test. A zero leaves that one as it is.
func (c *Config) Limit(conns int, head, hello, response time.Duration) {
	c.limits = limits{conns, head, hello, response}
}

func TestConnsForDescriptors(t *testing.T) {
	for descriptors, want := range map[uint64]int{
		0: 1, 1: 1, 256: 85, 1024: 341, 20_000: 6_666, 1 << 20: 10_240, 1<<64 - 1: 10_240, // RLIM_INFINITY
	} {
		if got := connsFor(descriptors); got != want {
			t.Errorf("%d descriptors: %d connections, not %d", descriptors, got, want)
		}
	}
}

// A failure is told in the name of the layer where it happened.
func TestFailuresNameTheirLayer(t *testing.T) {
	noFiles := &net.OpError{Op: "dial", Err: os.NewSyscallError("socket", syscall.EMFILE)}
	for _, tc := range []struct {
		name   string
		err    error
		status int
		layer  string
		text   string
	}{
		{"no descriptors for pipelock", fmt.Errorf("%w: %w", errHopDown, noFiles), 503, layerEgress, "no descriptors left"},
		{"a pipelock that is down", fmt.Errorf("%w: %w", errHopDown, syscall.ECONNREFUSED), 502, layerPipelock, "connection refused"},
		{"a pipelock that does not answer", fmt.Errorf("%w: %w", errHopDown, context.DeadlineExceeded), 504, layerPipelock, "did not answer in time"},
		{"a pipelock that is full", &hopError{503, "16384 connections are open"}, 503, layerPipelock, "16384 connections are open"},
		{"a pipelock that forbids", &hopError{403, "private"}, 403, layerPipelock, "private"},
		{"an upstream that can't be reached", &hopError{502, "no such host"}, 502, layerUpstream, "no such host"},
		{"an upstream that does not accept", &hopError{504, "i/o timeout"}, 504, layerUpstream, "i/o timeout"},
		{"a slow handshake", errSlowTLS, 504, layerUpstream, "did not answer in time"},
		{"a reset", &net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ECONNRESET)}, 502, layerUpstream, "connection reset"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ex := &exchange{query: allow.Query{Host: "a.example.com", Port: 443, Method: "GET", TLS: true}}
			n := ex.failed(tc.err)
			if n.status != tc.status || n.layer != tc.layer || !strings.Contains(n.reason, tc.text) || n.failure == (tc.status == 403) {
				t.Errorf("%d %s %q, failure %t", n.status, n.layer, n.reason, n.failure)
			}
		})
	}
}
