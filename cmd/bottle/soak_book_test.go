package main_test

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"bottle/bottle"
)

// What a client of the soak may lose.
const (
	kindConn   = "new connection"
	kindAgain  = "reopening" // of a held one that was cut or renewed
	kindTunnel = "held tunnel"
	kindStream = "event stream"
	kindUpload = "upload"
	kindMCP    = "MCP connection"
	kindApply  = "apply"
)

// diesWith is what each kind goes through, and so what can take it along when it is killed.
var diesWith = map[string][]string{
	kindConn:   {bottle.DaemonEgress, bottle.DaemonPipelock},
	kindAgain:  {bottle.DaemonEgress, bottle.DaemonPipelock},
	kindTunnel: {bottle.DaemonEgress, bottle.DaemonPipelock},
	kindStream: {bottle.DaemonEgress, bottle.DaemonPipelock},
	kindUpload: {bottle.DaemonEgress, bottle.DaemonPipelock},
	kindMCP:    {bottle.DaemonSupervise},
	kindApply:  {bottle.DaemonEgress, bottle.DaemonPipelock, bottle.DaemonSupervise}, // nothing is applied while one is down
}

const (
	// deathRattle is how long after a daemon's death a new connection may still have been
	// given to it: what is begun later has to wait in the backlog, and to succeed.
	deathRattle = 50 * time.Millisecond
	// deathNotice is how long after it a client may take to notice, on a busy machine. For
	// what is held it is short after pipelock's: it may go through one that drains, and live on.
	deathNotice     = 10 * time.Second
	deathNoticeHeld = 4 * time.Second
)

// A soakKill is one kill -9.
type soakKill struct {
	daemon         string
	at, dead, back time.Time // signalled, gone, its successor ready
}

// A soakLoss is something that a client lost, whoever was the cause.
type soakLoss struct {
	kind     string
	from, at time.Time // begun, lost
	err      error
}

// hides reports whether the loss is one that no supervisor could have hidden: it was under
// way through a daemon when that was killed. A refused connection never is.
func (k soakKill) hides(l soakLoss) bool {
	if classOf(l.err) == classRefused || !slices.Contains(diesWith[l.kind], k.daemon) {
		return false
	}
	dead := k.dead
	if dead.IsZero() {
		dead = k.at
	}
	if l.kind == kindApply {
		return !l.from.After(k.back) && !l.at.Before(k.at)
	}
	notice := deathNotice
	if k.daemon == bottle.DaemonPipelock && l.kind != kindConn && l.kind != kindAgain {
		notice = deathNoticeHeld
	}
	return !l.from.After(dead.Add(deathRattle)) && !l.at.Before(k.at) && l.at.Before(dead.Add(notice))
}

// A soakBook is where everyone writes down what went wrong, and when what was done. Who is
// to blame is settled at the end, when all is in it.
type soakBook struct {
	start time.Time

	mu       sync.Mutex
	losses   []soakLoss
	kills    []soakKill
	faults   []soakFault
	replaced []span // replacements of pipelock
	counts   map[string]int
	most     map[string]time.Duration
}

type span struct{ from, to time.Time }

// A soakFault is what no kill excuses.
type soakFault struct {
	at   time.Time
	of   string // what it has in common with others
	text string
}

func newSoakBook() *soakBook {
	return &soakBook{start: time.Now(), counts: map[string]int{}, most: map[string]time.Duration{}}
}

func (b *soakBook) lost(kind string, from time.Time, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.losses = append(b.losses, soakLoss{kind, from, time.Now(), err})
}

func (b *soakBook) fault(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.faults = append(b.faults, soakFault{time.Now(), format, fmt.Sprintf(format, args...)})
}

func (b *soakBook) count(what string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.counts[what]++
}

// longest keeps the largest duration of its name.
func (b *soakBook) longest(what string, d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.most[what] = max(b.most[what], d)
}

func (b *soakBook) replacement(from, to time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.replaced = append(b.replaced, span{from, to})
}

// killed adds a kill, and returns what completes it.
func (b *soakBook) killed(daemon string) (done func(dead, back time.Time)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := len(b.kills)
	b.kills = append(b.kills, soakKill{daemon: daemon, at: time.Now()})
	return func(dead, back time.Time) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.kills[i].dead, b.kills[i].back = dead, back
	}
}

// A soakVerdict is the book, settled. It is made when nobody writes any more.
type soakVerdict struct {
	byKill  map[string]int            // kind -> cut by a kill
	other   map[string]map[string]int // kind -> class -> lost otherwise
	faults  []soakFault               // those losses, and the other faults, in their order
	refused int
}

func (b *soakBook) settle() soakVerdict {
	v := soakVerdict{byKill: map[string]int{}, other: map[string]map[string]int{}, faults: slices.Clone(b.faults)}
	for _, l := range b.losses {
		if slices.ContainsFunc(b.kills, func(k soakKill) bool { return k.hides(l) }) {
			v.byKill[l.kind]++
			continue
		}
		class := classOf(l.err)
		if v.other[l.kind] == nil {
			v.other[l.kind] = map[string]int{}
		}
		v.other[l.kind][class]++
		if class == classRefused {
			v.refused++
		}
		v.faults = append(v.faults, soakFault{l.at, l.kind + " " + class, fmt.Sprintf("%s, begun %s before: %s: %v", l.kind, l.at.Sub(l.from).Round(time.Millisecond), class, l.err)})
	}
	slices.SortStableFunc(v.faults, func(a, b soakFault) int { return a.at.Compare(b.at) })
	return v
}

// lostOtherwise is how many of a kind were lost in a class, or in any for "".
func (v soakVerdict) lostOtherwise(kind, class string) int {
	n := 0
	for c, k := range v.other[kind] {
		if class == "" || c == class {
			n += k
		}
	}
	return n
}

// near names the kill or the replacement that was under way or just over, for a report.
func (b *soakBook) near(at time.Time) string {
	for _, k := range slices.Backward(b.kills) {
		if d := at.Sub(k.at); d >= 0 && d < 3*time.Second {
			return fmt.Sprintf("%s after the kill of %s", d.Round(time.Millisecond), k.daemon)
		}
	}
	for _, r := range b.replaced {
		if !at.Before(r.from) && at.Before(r.to.Add(time.Second)) {
			return fmt.Sprintf("%s after the start of a replacement", at.Sub(r.from).Round(time.Millisecond))
		}
	}
	return "near no kill and no replacement"
}
