package bundle

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"bottle/bottle"
)

// startCurrent starts a daemon that is down.
func (s *Supervisor) startCurrent(d *daemon) {
	i, err := s.launch(d, s.freeSlot(s.hop))
	if err != nil {
		// Not even a process: no exit will come.
		s.log.Error("daemon could not be started", "daemon", d.name, "error", err)
		d.lastExit = err.Error()
		if d.crashed(time.Now(), time.Time{}) {
			s.fail(&StartError{Daemon: d.name, Code: 1, Reason: err.Error()})
		}
		return
	}
	d.cur = i
	if i.slot != nil && i.slot.addr != s.hop {
		s.point(i.slot)
	}
}

// launch starts a process of the daemon on the bytes that were verified; at is its slot, which
// pipelock needs and no other has.
func (s *Supervisor) launch(d *daemon, at *slot) (*instance, error) {
	d.starts++
	i := &instance{d: d, foreign: d.name == bottle.DaemonPipelock && s.bundle.Binary != ""}
	listen := ""
	if d.name == bottle.DaemonPipelock {
		if at == nil {
			return nil, fmt.Errorf("all %d addresses are in use by pipelocks that end", len(s.slots))
		}
		i.slot, listen = at, at.addr
	}
	if d.file != nil {
		if err := d.file.restore(); err != nil {
			return nil, err
		}
	}
	argv, err := s.cfg.Command(d.name, listen)
	if err != nil {
		return nil, err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	var heard chan saying
	end := make(chan struct{})
	if i.foreign {
		heard = make(chan saying)
	}
	out, w, err := capture(d.name, s.sink, &s.procs, s.hear(heard, end))
	if err != nil {
		return nil, err
	}
	defer w.Close()
	files := []uintptr{null.Fd(), w.Fd(), w.Fd()}
	env := s.env
	if i.foreign {
		env = foreignEnv(s.env)
	}
	var reports, access *os.File
	if !i.foreign {
		r, report, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		defer report.Close()
		reports = r
		more, err := s.inherited(context.Background(), i)
		if err != nil {
			_ = r.Close()
			return nil, err
		}
		more = append(more, named{fdReport, report.Fd()})
		if d.name == bottle.DaemonEgress {
			var lines *os.File
			if access, lines, err = os.Pipe(); err != nil {
				_ = r.Close()
				return nil, err
			}
			defer lines.Close()
			more = append(more, named{FDAccess, lines.Fd()})
		}
		names := make([]string, len(more))
		for n, m := range more {
			files, names[n] = append(files, m.fd), m.name
		}
		env = append(env[:len(env):len(env)], envListenFDs+"="+strconv.Itoa(len(more)), envListenNames+"="+strings.Join(names, ":"))
	}
	i.proc, err = s.reaper.start(argv, env, files)
	if err != nil {
		close(end)
		if reports != nil {
			_ = reports.Close()
		}
		if access != nil {
			_ = access.Close()
		}
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	i.out, i.startedAt = out, time.Now().UTC()
	if d.file != nil {
		i.loads = d.file.published
	}
	if i.slot != nil {
		i.slot.user, i.slot.flushUntil = i, time.Time{}
	}
	if i.foreign {
		s.procs.Go(func() { s.watchForeign(i, heard, end) })
	} else {
		s.procs.Go(func() { s.readReports(i, reports) })
	}
	if access != nil {
		s.procs.Go(func() { s.readAccess(i, access) })
	}
	s.procs.Go(func() {
		ws := <-i.proc.done
		// The reason for its end may still be in the pipe.
		select {
		case <-out.done:
		case <-time.After(drainFor):
			out.close()
		}
		close(end)
		s.exits <- exit{i, ws}
	})
	s.log.Info("daemon started", "daemon", d.name, "pid", i.proc.pid, "restarts", d.starts-1)
	return i, nil
}

type named struct {
	name string
	fd   uintptr
}

// inherited are the sockets that an instance is started with. One that a hijacked predecessor
// shut down is made anew.
func (s *Supervisor) inherited(ctx context.Context, i *instance) ([]named, error) {
	type held struct {
		name string
		sock *socket
	}
	var sockets []held
	var more []named
	switch i.d.name {
	case bottle.DaemonEgress:
		sockets = []held{{FDProxy, s.proxy}, {FDProxyUnix, s.inside}, {FDKeys, s.keys}}
		if s.passing != nil {
			more = []named{{FDPassed, uintptr(s.passing[1])}}
		}
	case bottle.DaemonSupervise:
		sockets = []held{{FDMCP, s.mcp}}
	case bottle.DaemonPipelock:
		sockets = []held{{FDGate, i.slot.socket}}
		more = []named{{FDHandover, uintptr(s.handover[0])}, {FDAdopt, uintptr(s.handover[1])}, {FDPass, uintptr(s.passing[0])}}
	}
	var out []named
	for _, h := range sockets {
		if err := h.sock.revive(ctx); err != nil {
			return nil, err
		}
		out = append(out, named{h.name, uintptr(h.sock.fd)})
	}
	return append(out, more...), nil
}

// signalPending sends what is due to an instance that has handlers; before, a signal would kill
// it. One that is not ours may drop a signal, so it gets it again until it loads the file or
// says why not.
func (s *Supervisor) signalPending(now time.Time, i *instance) {
	switch {
	case i.ended || !i.reported:
	case i.pending != 0:
		s.reaper.signal(i.proc, i.pending, false)
		i.pending = 0
		if i.foreign {
			i.againAt, i.againTill = now.Add(againEvery), now.Add(replaceFor)
		}
	case i.againAt.IsZero() || now.Before(i.againAt):
	case i.status.Revision == i.d.file.published || i.status.Refused != nil || now.After(i.againTill):
		i.againAt = time.Time{}
	default:
		s.reaper.signal(i.proc, reloadSignal(i), false)
		i.againAt = now.Add(againEvery)
	}
}

// end sends TERM to the instance's group; KILL follows after the grace, also if the group is
// stopped (TERM waits for CONT then, KILL doesn't).
func (s *Supervisor) end(i *instance) {
	i.expected = true
	if i.ended || !i.killAt.IsZero() {
		return
	}
	s.reaper.signal(i.proc, unix.SIGTERM, true)
	i.killAt = time.Now().Add(s.cfg.Grace)
}

func (s *Supervisor) kill(i *instance) {
	if !i.ended {
		s.reaper.signal(i.proc, unix.SIGKILL, true)
	}
}

// killDue ends what TERM did not.
func (s *Supervisor) killDue(now time.Time) {
	for _, i := range s.all() {
		if !i.killAt.IsZero() && !now.Before(i.killAt) {
			s.log.Warn("daemon ignores TERM, killing it", "daemon", i.d.name, "pid", i.proc.pid)
			s.kill(i)
			i.killAt = time.Time{}
		}
	}
}

func (s *Supervisor) onExit(e exit) {
	i, d, now := e.i, e.i.d, time.Now()
	last := i.out.lastLine()
	if i.fatal != "" {
		last = i.fatal
	}
	i.ended = true
	s.release(now, i)
	log := s.log.With("daemon", d.name, "pid", i.proc.pid, "exit", describe(e.ws))
	switch i {
	case d.cur:
		d.cur, d.lastExit = nil, describe(e.ws)
		if i.expected || s.stopping {
			d.startAt = now
			log.Info("daemon stopped")
			return
		}
		failed := d.crashed(now, i.serving)
		log.Warn("daemon ended", "last_line", last, "start_again_at", d.startAt)
		if failed {
			s.fail(startError(d.name, e.ws, last))
		}
	case d.next:
		d.next = nil
		log.Warn("a new pipelock did not come up", "last_line", last)
		s.refuse(d, "a new one did not come up: "+reason(e.ws, last))
	default:
		d.old = slices.DeleteFunc(d.old, func(o *instance) bool { return o == i })
		s.ending = slices.DeleteFunc(s.ending, func(o *instance) bool { return o == i })
		if i.expected {
			log.Info("a pipelock that was not in use has ended")
		} else {
			log.Warn("a pipelock that drained ended by itself", "last_line", last)
		}
	}
}

// all are the processes of all daemons.
func (s *Supervisor) all() []*instance {
	var all []*instance
	for _, d := range s.daemons {
		all = append(all, d.instances()...)
	}
	return append(all, s.ending...)
}
