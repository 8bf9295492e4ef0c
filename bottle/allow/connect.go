package allow

import (
	"fmt"
	"slices"

	"bottle/bottle"
)

// A ConnectVerdict is what [Table.Connect] made of a tunnel's target.
type ConnectVerdict struct {
	Known   bool           // some live route is for this host and port
	Mode    bottle.TLSMode // what to do with the tunnel; empty unless known
	Route   int            // index of the route that decided the mode, else -1
	Reason  string
	Nearest string
}

// Connect says what to do with a CONNECT to host:port: splice it, or terminate TLS and
// judge each request inside by [Table.Decide]. A host that is not known gets no tunnel at
// all (its refusal may still be sent inside TLS, since few clients show one otherwise).
//
// Where routes of both modes are live, the named host decides before the wildcard; then a
// route with a credential, which only interception can put in; then passthrough, since the
// operator who opened the whole host unread has left nothing to judge; and one that is not
// for a single request before one that is.
func (t *Table) Connect(host bottle.Host, port int, live Live) ConnectVerdict {
	named, wild := t.candidates(host)
	var worse miss
	for _, list := range [][]int{named, wild} {
		best := -1
		for _, i := range list {
			r := &t.rules[i]
			switch {
			case !slices.Contains(r.ports, port):
				if worse.stage < failedPort {
					worse = miss{route: i, stage: failedPort, why: fmt.Sprintf("port %d is not among %s", port, portList(r.ports))}
				}
			case r.route.Grant != nil && live != nil && !live(r.route.Grant):
				if worse.stage < failedGrant {
					worse = miss{route: i, stage: failedGrant, why: fmt.Sprintf("the grant %s has ended", r.route.Grant.Request)}
				}
			case best < 0 || t.connectRank(i) < t.connectRank(best):
				best = i
			}
		}
		if best >= 0 {
			r := t.rules[best].route
			return ConnectVerdict{Known: true, Mode: r.Mode(), Route: best, Reason: "known by " + t.describe(best, "")}
		}
	}
	v := ConnectVerdict{Route: -1}
	if worse.stage == 0 {
		v.Reason = fmt.Sprintf("no route allows the host %s", host)
		v.Nearest = t.nearestHost(host)
	} else {
		v.Reason = fmt.Sprintf("no route for %s allows this tunnel: %s", host, worse.why)
		v.Nearest = t.nearestRule(worse)
	}
	return v
}

func (t *Table) connectRank(i int) int {
	r := t.rules[i].route
	rank := 4
	switch {
	case r.Credential != "":
		rank = 0
	case r.Mode() == bottle.Passthrough:
		rank = 2
	}
	if r.Grant != nil && r.Grant.Duration.Kind == bottle.Once {
		rank++
	}
	return rank
}
