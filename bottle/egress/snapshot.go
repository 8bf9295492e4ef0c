package egress

import (
	"fmt"
	"slices"
	"time"

	"bottle/bottle"
	"bottle/bottle/allow"
)

// maxRoutesFile is the bound of [bottle.ParseRoutes], and room for the revision line.
const maxRoutesFile = 4<<20 + 128

// A snapshot is one revision of the routes. It never changes.
type snapshot struct {
	table    *allow.Table
	routes   []bottle.Route // those of the table
	revision bottle.Hash
	loadedAt time.Time
	timed    bool // some grant ends with time
}

// loadSnapshot reads and verifies the live routes. The revision that the file claims comes
// back with an error too, if it has one.
func loadSnapshot(path string, credentials map[string]bottle.Credential, now time.Time) (*snapshot, bottle.Hash, error) {
	b, err := bottle.ReadFile(path, maxRoutesFile)
	if err != nil {
		return nil, "", fmt.Errorf("routes: %w", err)
	}
	revision, err := bottle.CheckSeal(b)
	if err != nil {
		return nil, "", fmt.Errorf("routes: %s: %w", path, err)
	}
	doc, err := bottle.ParseRoutes(b)
	if err != nil {
		return nil, revision, fmt.Errorf("routes: %w", err)
	}
	routes := doc.Routes()
	s := &snapshot{revision: revision, loadedAt: now.UTC()}
	for _, r := range routes {
		if r.Grant != nil && r.Grant.Duration.Kind == bottle.TTL {
			s.timed = true
		}
		if err := bottle.CheckCredential(r, credentials); err != nil {
			return nil, revision, fmt.Errorf("routes: %w", err)
		}
	}
	if s.table, err = allow.Compile(routes); err != nil {
		return nil, revision, fmt.Errorf("routes: %w", err)
	}
	s.routes = s.table.Routes()
	return s, revision, nil
}

// carries reports whether some live route still sends the credential to this place.
func (s *snapshot) carries(credential string, to authority, live allow.Live) bool {
	for _, r := range s.routes {
		if r.Credential == credential && r.Host.Covers(to.host) && slices.Contains(r.AllPorts(), to.port) && (r.Grant == nil || live(r.Grant)) {
			return true
		}
	}
	return false
}

// reaches reports whether s has every host and port that old has: no reload that is so can
// have made a connection's host a forbidden one.
func (s *snapshot) reaches(old *snapshot) bool {
	have := map[authority]struct{}{}
	var wild []authority
	for _, r := range s.routes {
		for _, port := range r.AllPorts() {
			a := authority{r.Host, port}
			if _, ok := have[a]; ok {
				continue
			}
			have[a] = struct{}{}
			if r.Host.Wildcard() {
				wild = append(wild, a)
			}
		}
	}
	for _, r := range old.routes {
		for _, port := range r.AllPorts() {
			if _, ok := have[authority{r.Host, port}]; ok {
				continue
			}
			if !slices.ContainsFunc(wild, func(a authority) bool { return a.port == port && a.host.Covers(r.Host) }) {
				return false
			}
		}
	}
	return true
}

// A clock is read once for each judgement.
type clock struct {
	wall   time.Time
	bootID string
	boot   float64
}

// live returns the predicate by which routes are judged: a grant that has ended by the
// clock is dead, and so is a once grant that is spent, but to the one flow that spent it.
func (s *Server) live(claimed string) allow.Live {
	var now clock
	return func(g *bottle.Grant) bool {
		if g.Duration.Kind == bottle.Once {
			return g.Request == claimed || !s.spent.has(g.Request)
		}
		if now.wall.IsZero() { // most tables never ask
			now = s.clock()
		}
		return !g.Ended(now.wall, now.bootID, now.boot)
	}
}

// clock reads the wall and boot clocks. Without a boot clock the wall decides alone.
func (s *Server) clock() clock {
	c := clock{wall: s.now()}
	if id, boot, err := bottle.BootClock(); err == nil {
		c.bootID, c.boot = id, boot
	}
	return c
}

// ended returns how many of the snapshot's timed grants are over. It only ever grows
// within a snapshot but for a clock that is set back.
func (s *Server) ended(snap *snapshot) int {
	live, n := s.live(""), 0
	for _, r := range snap.routes {
		if r.Grant != nil && r.Grant.Duration.Kind == bottle.TTL && !live(r.Grant) {
			n++
		}
	}
	return n
}
