package pipelock

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"

	"bottle/bottle"
	"bottle/bottle/fdpass"
)

// A gate that another took over from hands its tunnels to it, so that nothing holds it in
// place. All gates of a bundle share one socket pair, whose ends are Handover and Adopt. A
// message on it is one tunnel: a [passed] as JSON, with the two descriptors of its connections
// (SCM_RIGHTS, unix(7)), that from egress first. The kernel keeps what nobody has read yet,
// open connections included, so a tunnel on its way outlives both gates.
//
// A tunnel that can't be sent goes on here, and the gate lives as long as it does.

const (
	sendFor = 250 * time.Millisecond // to wait for room in the socket; the tunnel stands still
	// A tunnel that was not sent is tried again after retryMin, then after twice that and so on.
	retryMin = 100 * time.Millisecond
	retryMax = 30 * time.Second
)

// A passed is what a message says of its tunnel.
type passed struct {
	Host          bottle.Host `json:"host"`
	Port          int         `json:"port"`
	Since         time.Time   `json:"since"`
	Leash         bool        `json:"leash,omitempty"`        // see tunnel
	ClientEnded   bool        `json:"client_ended,omitempty"` // the upstream was told so
	UpstreamEnded bool        `json:"upstream_ended,omitempty"`
}

// carry runs a tunnel until it is over, cut (ctx), or in the hands of the gate that took
// over from this one.
func (g *Gate) carry(ctx context.Context, t *tunnel) {
	stop := context.AfterFunc(ctx, func() { t.cut(context.Cause(ctx)) })
	defer stop()
	defer t.client.Close()
	defer t.up.Close()
	pause := g.handing
	for wait := retryMin; !t.run(pause); wait = min(2*wait, retryMax) {
		err := g.send(t)
		if err == nil {
			g.counters.handedOver.Add(1)
			g.chatter.Debug("tunnel handed over", "host", t.host, "port", t.port)
			return
		}
		g.chatter.Warn("a tunnel could not be handed over and goes on here", "host", t.host, "port", t.port, "error", err.Error(), "again_in", wait.String())
		var cancel context.CancelFunc
		pause, cancel = context.WithTimeout(context.Background(), wait)
		defer cancel()
	}
	if t.leash {
		t.letGo(ctx)
	}
}

// send hands over a tunnel that stands still. After an error it is still here.
func (g *Gate) send(t *tunnel) error {
	b, err := json.Marshal(passed{t.host, t.port, t.since, t.leash, t.there, t.back})
	if err != nil {
		return err
	}
	// One at a time, so that none prolongs the wait of those before it.
	timeout := time.NewTimer(sendFor)
	defer timeout.Stop()
	select {
	case g.sending <- struct{}{}:
	case <-timeout.C:
		return fdpass.ErrNoRoom
	}
	defer func() { <-g.sending }()
	if err := g.cfg.Handover.SetWriteDeadline(time.Now().Add(sendFor)); err != nil {
		return err
	}
	return fdpass.Send(g.cfg.Handover, b, t.client, t.up)
}

// checkPairs refuses a pair that would not keep messages apart.
func checkPairs(cfg GateConfig) error {
	if (cfg.Handover == nil) != (cfg.Adopt == nil) {
		return errors.New("pipelock gate: Handover and Adopt are the two ends of one socket pair: give both or neither")
	}
	for name, c := range map[string]*net.UnixConn{"Handover": cfg.Handover, "Adopt": cfg.Adopt, "Pass": cfg.Pass} {
		if c == nil {
			continue
		}
		if err := fdpass.CheckEnd(c); err != nil {
			return fmt.Errorf("pipelock gate: %s: %w", name, err)
		}
	}
	return nil
}

// hold and release count what clients have open here. To one that drains it matters whether
// that is nothing, which only the gate itself can tell: a connection keeps its local port,
// wherever it is handed.
func (g *Gate) hold() {
	g.held.Add(1)
	g.stir()
}

func (g *Gate) release() {
	g.held.Add(-1)
	g.ended.Add(1)
	g.stir()
}

func (g *Gate) stir() {
	select {
	case g.stirred <- struct{}{}:
	default:
	}
}
