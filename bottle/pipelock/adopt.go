package pipelock

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"bottle/bottle"
	"bottle/bottle/allow"
	"bottle/bottle/fdpass"
)

// adopt takes over tunnels until the function that it returns is called, which returns once
// it reads no more. What comes later stays in the socket, for another gate.
//
// Who sends is another gate, behind the same walls. One that was hijacked could reach no
// more through this one than by itself, but it gets nothing for free: what is not a tunnel
// to a host that this gate allows is closed.
func (g *Gate) adopt() (stop func()) {
	if g.cfg.Adopt == nil {
		return func() {}
	}
	var reading sync.WaitGroup
	reading.Go(func() {
		for {
			m, err := fdpass.Receive(g.cfg.Adopt)
			if err != nil {
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					g.log.Error("no more tunnels can be adopted", "error", err.Error())
				}
				return
			}
			t, err := read(m, g.cfg.AllowCIDRs)
			if err != nil {
				g.chatter.Warn("what was handed over is no tunnel, and was closed", "error", err.Error())
				g.counters.failed.Add(1)
				continue
			}
			g.takeOver(t)
		}
	})
	return func() {
		_ = g.cfg.Adopt.SetReadDeadline(time.Unix(1, 0))
		reading.Wait()
	}
}

// takeOver carries on with a tunnel from another gate, if the table in force here allows it.
func (g *Gate) takeOver(t *tunnel) {
	ctx, end, why := g.admit(context.Background(), t.host, t.port)
	if why != nil {
		t.cut(errForbidden)
		g.counters.cut.Add(1)
		g.chatter.Warn("a tunnel that was handed over is cut", "host", t.host, "port", t.port, "reason", why.Reason)
		return
	}
	g.counters.adopted.Add(1)
	g.hold()
	g.chatter.Debug("tunnel adopted", "host", t.host, "port", t.port, "since", t.since)
	go func() { // Run waits for its end
		defer end()
		defer g.release()
		g.carry(ctx, t)
	}()
}

// read returns the tunnel that a message hands over. After an error nothing of it is left open.
func read(m fdpass.Message, permitted []netip.Prefix) (_ *tunnel, err error) {
	conns, err := m.Take("client", "upstream")
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, c := range conns {
			if err != nil {
				_ = fdpass.Cut(c) // egress may have a copy
				_ = c.Close()
			}
		}
	}()
	var p passed
	d := json.NewDecoder(bytes.NewReader(m.Body))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more follows the JSON")
	}
	switch h, err := bottle.ParseHost(string(p.Host)); {
	case err != nil:
		return nil, err
	case h != p.Host:
		return nil, fmt.Errorf("host %q is not canonical", clip(string(p.Host)))
	case p.Port < 1 || p.Port > 65535:
		return nil, fmt.Errorf("port %d", p.Port)
	case p.ClientEnded && p.UpstreamEnded:
		return nil, errors.New("both directions are at their end")
	}
	t := &tunnel{host: p.Host, port: p.Port, since: p.Since, client: conns[0], up: conns[1], leash: p.Leash, there: p.ClientEnded, back: p.UpstreamEnded}
	_ = t.client.SetLinger(-1) // a cut that came too late for the other gate may have changed it
	return t, t.checkEnds(permitted)
}

// checkEnds holds a tunnel to what the gate that made it saw to. An end that is over has no
// peer, and may have bytes to read for all that.
func (t *tunnel) checkEnds(permitted []netip.Prefix) error {
	if a, ok := t.client.LocalAddr().(*net.TCPAddr); !ok || !a.IP.IsLoopback() {
		return fmt.Errorf("client: came to %s, which is not of loopback", t.client.LocalAddr())
	}
	a, ok := t.up.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return nil
	}
	to := a.AddrPort()
	if int(to.Port()) != t.port {
		return fmt.Errorf("upstream: %s, not port %d", to, t.port)
	}
	if class, ok := allow.Classify(to.Addr().Unmap(), permitted); !ok {
		return fmt.Errorf("upstream: %s is %s", to, class)
	}
	return nil
}
