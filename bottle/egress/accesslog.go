package egress

import (
	"encoding/json"
	"io"
	"math"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"bottle/bottle"
)

// What the access log takes. An agent can make any number of requests, so a second's lines are
// bounded, and so are those that wait to be written; what is more is counted, and the log
// says how many are missing. What was refused or failed has a budget of its own, which no
// number of allowed requests uses up.
const (
	accessAllowed  = 500 // lines a second
	accessRefusals = 100 // lines a second
	accessWaiting  = 2048
	accessFlush    = 250 * time.Millisecond // from a line to its write, at most
	accessBatch    = 32 << 10               // bytes that are written at once
	accessLast     = 200 * time.Millisecond // for the last write, at the stop
)

// An accessLog writes lines without ever making a request wait: whoever has one counts it and
// puts it in a queue, or drops it. A goroutine of its own makes the text.
type accessLog struct {
	w       io.Writer // nil: there is no log
	now     func() time.Time
	redact  func(string) string // takes held tokens out
	queue   chan *entry
	missed  chan struct{} // wakes the writer when something was dropped
	budgets [2]budget     // by refusal
	dropped *atomic.Uint64
}

// A budget is what may be logged of one kind in the second that it is.
type budget struct {
	perSecond int64
	second    atomic.Int64
	used      atomic.Int64
	lost      atomic.Uint64 // not yet said
}

func (b *budget) take(now int64) bool {
	if was := b.second.Load(); was != now && b.second.CompareAndSwap(was, now) {
		b.used.Store(0)
	}
	return b.used.Add(1) <= b.perSecond
}

func newAccessLog(w io.Writer, now func() time.Time, redact func(string) string, dropped *atomic.Uint64) *accessLog {
	l := &accessLog{w: w, now: now, redact: redact, dropped: dropped}
	if w == nil {
		return l
	}
	l.queue, l.missed = make(chan *entry, accessWaiting), make(chan struct{}, 1)
	l.budgets[0].perSecond, l.budgets[1].perSecond = accessAllowed, accessRefusals
	return l
}

// put logs an entry that is over, and that nobody changes any more. It never waits.
func (l *accessLog) put(e *entry) {
	if l.w == nil {
		return
	}
	b := &l.budgets[0]
	if e.refusal != nil {
		b = &l.budgets[1]
	}
	e.ended = l.now()
	if b.take(e.ended.Unix()) {
		select {
		case l.queue <- e:
			return
		default:
		}
	}
	b.lost.Add(1)
	l.dropped.Add(1)
	select {
	case l.missed <- struct{}{}:
	default:
	}
}

// start begins to write. What it returns ends that, and waits until all is out that was put before.
func (l *accessLog) start() (stop func()) {
	quit := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { l.run(quit) })
	return func() {
		close(quit)
		wg.Wait()
	}
}

// run writes until stop is closed and what was put before is out. By then nobody puts any more.
func (l *accessLog) run(stop <-chan struct{}) {
	if l.w == nil {
		return
	}
	var (
		buf   []byte
		lines int // in buf
		due   <-chan time.Time
	)
	flush := func() {
		due = nil
		for i := range l.budgets {
			buf = l.confess(buf, i)
		}
		if len(buf) == 0 {
			return
		}
		if _, err := l.w.Write(buf); err != nil { // init is gone, or does not take it any more
			l.dropped.Add(uint64(lines)) //nolint:gosec // G115: a number of lines
		}
		buf, lines = buf[:0], 0
	}
	take := func(e *entry) {
		buf, lines = l.line(buf, e), lines+1
		if len(buf) >= accessBatch {
			flush()
		}
	}
	for {
		if due == nil && len(buf) > 0 {
			due = time.After(accessFlush)
		}
		select {
		case e := <-l.queue:
			take(e)
		case <-l.missed:
			if due == nil {
				due = time.After(accessFlush)
			}
		case <-due:
			flush()
		case <-stop:
			if d, ok := l.w.(interface{ SetWriteDeadline(time.Time) error }); ok {
				_ = d.SetWriteDeadline(time.Now().Add(accessLast))
			}
			for {
				select {
				case e := <-l.queue:
					take(e)
					continue
				default:
				}
				break
			}
			flush()
			return
		}
	}
}

// confess appends what a budget has lost.
func (l *accessLog) confess(buf []byte, i int) []byte {
	n := l.budgets[i].lost.Swap(0)
	if n == 0 {
		return buf
	}
	verdict := bottle.AccessAllowed
	if i == 1 {
		verdict = bottle.AccessRefused
	}
	return appendJSON(buf, bottle.AccessLine{Time: l.now().UTC().Truncate(time.Millisecond), Verdict: verdict, LeftOut: n})
}

// line appends an entry's.
func (l *accessLog) line(buf []byte, e *entry) []byte {
	out := bottle.AccessLine{
		Time: e.ended.UTC().Truncate(time.Millisecond), Verdict: bottle.AccessAllowed,
		Host: e.host, Port: e.port, Method: e.method, Path: e.path, Query: e.params, Protocol: e.protocol, Status: int(e.status.Load()),
		BytesUp: e.up.Load(), BytesDown: e.down.Load(), End: e.end, RequestID: e.requestID,
	}
	if !e.began.IsZero() {
		out.Millis = math.Round(float64(e.ended.Sub(e.began))/1e5) / 10
	}
	if r := e.route; r != nil {
		out.Route, out.Credential = clip(ruleText(*r), maxShownReason), r.Credential
		if r.Grant != nil {
			out.Grant = r.Grant.Request
		}
	}
	if n := e.refusal; n != nil {
		out.Verdict, out.Layer, out.Reason, out.Status = bottle.AccessRefused, n.layer, n.reason, n.status
		if n.failure {
			out.Verdict = bottle.AccessFailed
		}
		out.Credential = ""
		if out.Host == "" {
			out.Host, out.Port, out.Method, out.Path = n.host, n.port, n.method, n.path
		}
		if out.Protocol == "" && n.method == http.MethodConnect {
			out.Protocol = protocolTunnel
		} else if out.Protocol == "" {
			out.Protocol = protocolH1
		}
	}
	out.Host, out.Method = printable(out.Host, maxShownHost), printable(out.Method, maxShownMethod)
	out.Path = printable(l.redact(out.Path), maxShownPath)
	out.Reason = clip(l.redact(out.Reason), maxShownReason)
	return appendJSON(buf, out)
}

func appendJSON(buf []byte, l bottle.AccessLine) []byte {
	b, err := json.Marshal(l)
	if err != nil { // a time out of range: nothing that is worth a line
		return buf
	}
	return append(append(buf, b...), '\n')
}
