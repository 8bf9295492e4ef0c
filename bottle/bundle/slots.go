package bundle

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"bottle/bottle"
)

const (
	// maxOld bounds the pipelocks that drain, beside the one that serves and one that comes up.
	maxOld   = 3
	maxSlots = maxOld + 2
	// flushFor is how long after a slot fell idle somebody may still come who was on the way.
	flushFor   = 2 * time.Second
	flushEvery = 20 * time.Millisecond
)

// A slot is one of the loopback addresses on which pipelocks listen in turn. They are chosen at the start, since
// egress' ruleset names the ports that it may connect to, and held by init, so that nobody
// else gets one. One that is not ours can't be given a socket: its ports are only chosen.
type slot struct {
	addr   string
	port   uint16
	socket *socket // nil for a pipelock that is not ours

	user       *instance
	flushUntil time.Time // nobody accepts: who comes is told so until then
}

// openSlots makes the slots, on the addresses of the config as far as there are any.
func openSlots(ctx context.Context, addrs []string, hold bool) ([]*slot, error) {
	var slots []*slot
	for n := range maxSlots {
		addr := "127.0.0.1:0"
		if n < len(addrs) {
			addr = addrs[n]
		}
		s, err := openSlot(ctx, addr, hold)
		if err != nil {
			closeSlots(slots)
			return nil, err
		}
		slots = append(slots, s)
	}
	return slots, nil
}

func openSlot(ctx context.Context, addr string, hold bool) (*slot, error) {
	// Whoever reaches it is taken for egress, so nobody else may.
	if a, err := netip.ParseAddrPort(addr); err != nil || !a.Addr().IsLoopback() || !a.Addr().Is4() {
		return nil, fmt.Errorf("pipelock: %q is not a loopback address (IPv4) and a port: %w", addr, bottle.ErrInvalid)
	}
	sock, err := listenTCP(ctx, "pipelock", addr)
	if err != nil {
		return nil, err
	}
	p, err := port(sock.addr)
	if err != nil {
		sock.close()
		return nil, err
	}
	s := &slot{addr: sock.addr, port: p, socket: sock}
	if !hold {
		sock.close()
		s.socket = nil
	}
	return s, nil
}

func closeSlots(slots []*slot) {
	for _, s := range slots {
		if s.socket != nil {
			s.socket.close()
		}
	}
}

// freeSlot is the one that has the address if nobody uses it, else any that nobody does, or nil.
func (s *Supervisor) freeSlot(addr string) *slot {
	var free *slot
	for _, sl := range s.slots {
		if sl.user == nil && (free == nil || sl.addr == addr) {
			free = sl
		}
	}
	return free
}

// release takes note that an instance is gone from its slot.
func (s *Supervisor) release(now time.Time, i *instance) {
	if i.slot != nil && i.slot.user == i {
		i.slot.user = nil
		i.slot.flushUntil = now.Add(flushFor)
	}
}

// flushSlots tells those who wait at a pipelock that is gone for good to go to the one that
// serves. At the one that egress is pointed at they wait: it comes back there.
func (s *Supervisor) flushSlots(now time.Time) {
	for _, sl := range s.slots {
		if s.mustFlush(now, sl) {
			sl.socket.flush()
		}
	}
}

// mustFlush holds while somebody may still come: egress says last where it went, and a
// connection may have been on its way.
func (s *Supervisor) mustFlush(now time.Time, sl *slot) bool {
	if sl.user != nil || sl.socket == nil || sl.addr == s.hop {
		return false
	}
	e := s.daemon(bottle.DaemonEgress)
	return now.Before(sl.flushUntil) || e != nil && e.cur != nil && e.cur.status.Hop == sl.addr
}
