package egress

import (
	"time"

	"golang.org/x/sys/unix"
)

// How long egress waits, for whom; docs/design.md has the same as a table. Each is counted from
// its beginning, so that who sends a byte now and then gains nothing. What has none, since it may
// last for ever, is the body of a request or a response, an upgraded stream and a spliced tunnel.
const (
	headTimeout  = 10 * time.Second // the agent, to send a request's head
	helloTimeout = 10 * time.Second // the agent, from CONNECT to its ClientHello, and again to the end of the handshake
	keepTimeout  = 5 * time.Minute  // the agent, between two requests of a connection
	pingAfter    = 2 * time.Minute  // either side of HTTP/2, silent, until it gets a PING
	pingTimeout  = time.Minute      // and to answer it. net/http itself waits 10 s for the preface and 2 s for SETTINGS
	partingTime  = time.Second      // the agent, to read the last words on a connection

	hopRetry           = 2 * time.Second  // a pipelock that is gone
	hopTimeout         = 30 * time.Second // pipelock, to answer a CONNECT; it resolves (10 s) and dials (10 s) meanwhile
	upstreamTLSTimeout = 15 * time.Second // the upstream, for its handshake
	// responseTimeout is how long an upstream may take for the head of its response, from the
	// end of the request on. Models do think for minutes.
	responseTimeout = 15 * time.Minute
	idleTimeout     = 90 * time.Second // an upstream's connection, between two requests

	keysTimeout = 5 * time.Second // the keeper, for its whole exchange on the key socket
	// keysGrace is how long after the start a request waits for its credential, which the keeper
	// brings within a second: an egress that was restarted refuses nobody for it.
	keysGrace   = 2 * time.Second
	acceptPause = time.Second // an accept that failed, until the next

	learnTimeout = 5 * time.Second  // an agent's handshake, to learn what the upstream speaks
	firstLife    = 15 * time.Second // a connection that was made to learn it, for the tunnel's first request
)

// maxConns is how many connections of the agent's are open at once, tunnels included, if the
// descriptors are enough. Of 10,000, a silent one costs 8 KiB of memory, one that had a request
// 22 KiB, and a tunnel whose TLS egress ended 27 KiB.
const maxConns = 10 << 10

// limits are those that tests lower.
type limits struct {
	conns                 int
	head, hello, response time.Duration
}

// fill puts in what is not set.
func (l limits) fill() (limits, error) {
	if l.conns == 0 {
		var nofile unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &nofile); err != nil {
			return l, err
		}
		l.conns = connsFor(nofile.Cur)
	}
	for _, d := range []struct {
		set *time.Duration
		to  time.Duration
	}{{&l.head, headTimeout}, {&l.hello, helloTimeout}, {&l.response, responseTimeout}} {
		if *d.set == 0 {
			*d.set = d.to
		}
	}
	return l, nil
}

// connsFor is how many connections of the agent's that many descriptors allow: a third of them, since
// one may need two more, to its upstream and to the pipelock that has passed that one. What needs more
// meanwhile (bulk that is spliced has a pipe each way) is refused as it comes.
func connsFor(descriptors uint64) int {
	return int(max(1, min(maxConns, descriptors/3)))
}
