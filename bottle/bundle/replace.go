package bundle

import (
	"slices"
	"time"

	"bottle/bottle"
)

// CounterOpen is the counter by which our pipelock reports how many connections it has.
const CounterOpen = "open"

const (
	// replaceFor bounds a replacement; it is less than the host waits for the confirmation, so that
	// the host hears why.
	replaceFor = 4 * time.Second
	// An old pipelock ends once nobody has been connected to it for idleFor: egress may be about to
	// connect when it is pointed elsewhere.
	idleFor   = 500 * time.Millisecond
	lookAtOld = 250 * time.Millisecond
)

// advance takes the replacement of pipelock one step on. Its steps: a new instance comes up on a
// spare slot; once it serves the revision that is published, egress is pointed at it; once egress
// says that it is (or is down, and will read it), the new one is the current one and the old
// one drains. Until then the old one serves, and whatever goes wrong leaves it serving.
func (s *Supervisor) advance(now time.Time) {
	d := s.daemon(bottle.DaemonPipelock)
	if d == nil {
		return
	}
	if d.replace && d.next == nil {
		s.startNext(now, d)
	}
	n := d.next
	switch {
	case n == nil:
	case !now.Before(n.giveUpAt):
		s.giveUp(d)
	case n.serving.IsZero() || n.status.Revision != d.file.published:
	default:
		s.point(n.slot)
		if s.hop == n.slot.addr && s.egressUses(n.slot) {
			s.promote(now, d)
		}
	}
	s.drain(now, d)
}

// startNext begins a replacement, unless every slot is still in use: then the oldest that
// drains makes room, and the next turn tries again.
func (s *Supervisor) startNext(now time.Time, d *daemon) {
	if d.cur == nil {
		d.replace, d.startAt = false, now // there is nothing to replace: it just starts
		return
	}
	at := s.freeSlot("")
	if at == nil {
		if len(s.ending) == 0 && len(d.old) > 0 {
			s.retire(d, d.old[0])
		}
		return
	}
	d.replace = false
	next, err := s.launch(d, at)
	if err != nil {
		s.log.Error("a new pipelock could not be started", "error", err)
		s.refuse(d, "a new one could not be started: "+err.Error())
		return
	}
	next.giveUpAt = now.Add(replaceFor)
	d.next, d.refused = next, nil
}

// giveUp leaves the current one serving.
func (s *Supervisor) giveUp(d *daemon) {
	n := d.next
	why := "a new one was not healthy in time"
	switch {
	case n.status.Refused != nil:
		why += ": " + n.status.Refused.Error
	case s.hop == n.slot.addr:
		why = "egress did not turn to the new one in time"
	default:
		if last := n.out.lastLine(); last != "" {
			why += "; its last words: " + last
		}
	}
	s.dropNext(d)
	s.refuse(d, why)
}

// dropNext ends the instance that was to take over. Once it served it may have connections: egress was
// pointed at it, or it took over a tunnel of one that drains. Then it drains in turn.
func (s *Supervisor) dropNext(d *daemon) {
	n := d.next
	d.next = nil
	n.giveUpAt = time.Time{}
	if !n.pointed && n.serving.IsZero() {
		n.expected = true
		s.kill(n)
		s.ending = append(s.ending, n)
		return
	}
	if d.cur != nil {
		s.point(d.cur.slot)
	}
	s.toOld(time.Now(), d, n)
}

// refuse says that the published file did not come into force by a replacement.
func (s *Supervisor) refuse(d *daemon, why string) {
	d.refused = &bottle.Refusal{Revision: d.file.published, Error: why, At: time.Now()}
	if d.cur != nil {
		s.point(d.cur.slot)
	}
}

// point has egress make its new connections to a slot. The file is what counts: an egress that
// is down reads it at its start.
func (s *Supervisor) point(at *slot) {
	if s.hop == at.addr {
		return
	}
	if err := bottle.WriteStatus(s.cfg.Dir.HopFile(), bottle.Hop{Schema: bottle.Schema, Pipelock: at.addr}); err != nil {
		s.log.Error("egress can't be told which pipelock to use", "error", err)
		return
	}
	until := time.Now().Add(flushFor)
	for _, sl := range s.slots {
		if sl.addr == s.hop {
			sl.flushUntil = until
		}
	}
	s.hop = at.addr
	if at.user != nil {
		at.user.pointed = true
	}
	if e := s.daemon(bottle.DaemonEgress); e != nil {
		s.wake(e)
	}
}

// egressUses reports whether egress will make no new connection elsewhere.
func (s *Supervisor) egressUses(at *slot) bool {
	e := s.daemon(bottle.DaemonEgress)
	return e == nil || e.cur == nil || e.cur.status.Hop == at.addr
}

func (s *Supervisor) promote(now time.Time, d *daemon) {
	old := d.cur
	d.cur, d.next, d.came = d.next, nil, true
	d.cur.giveUpAt = time.Time{}
	d.refused, d.crashes = nil, 0
	attrs := []any{"pid", d.cur.proc.pid, "listen", d.cur.slot.addr, "took", now.Sub(d.cur.startedAt).Round(time.Millisecond)}
	if old == nil {
		s.log.Info("a new pipelock took over from one that had ended", attrs...)
		return
	}
	s.log.Info("a new pipelock took over", append(attrs, "old_pid", old.proc.pid)...)
	s.toOld(now, d, old)
}

// toOld has an instance drain. What was narrowed binds it too, and ours hands its tunnels over.
func (s *Supervisor) toOld(now time.Time, d *daemon, i *instance) {
	i.pending, i.unused = drainSignal(i), now
	d.old = append(d.old, i)
	if len(d.old) > maxOld {
		s.log.Warn("a pipelock that still has connections makes room", "pid", d.old[0].proc.pid)
		s.retire(d, d.old[0])
	}
}

// retire ends an old instance.
func (s *Supervisor) retire(d *daemon, i *instance) {
	d.old = slices.DeleteFunc(slices.Clone(d.old), func(o *instance) bool { return o == i })
	s.ending = append(s.ending, i)
	s.end(i)
}

// drain ends the old ones that nobody is connected to any more.
func (s *Supervisor) drain(now time.Time, d *daemon) {
	if len(d.old) == 0 || now.Before(s.lookAt) {
		return
	}
	s.lookAt = now.Add(lookAtOld)
	for _, o := range slices.Clone(d.old) {
		switch {
		case s.inUse(o):
			o.unused = time.Time{}
		case o.unused.IsZero():
			o.unused = now
		case now.Sub(o.unused) >= idleFor:
			s.retire(d, o)
		}
	}
}

// inUse reports whether anybody is connected to an instance that drains. Ours says so: the
// tunnels that it handed over keep its port's number. Of another the kernel knows.
func (s *Supervisor) inUse(i *instance) bool {
	if !i.foreign {
		return i.status.Counters[CounterOpen] > 0
	}
	seen, err := tcpPorts(i.slot.port)
	if err != nil {
		s.log.Error("can't tell who is connected to a pipelock that drains", "error", err)
		return true
	}
	return seen[i.slot.port].conns > 0
}
