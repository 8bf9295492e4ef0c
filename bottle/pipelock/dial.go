package pipelock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"bottle/bottle"
	"bottle/bottle/allow"
)

// A forbiddenError is a name that leads where nobody permitted.
type forbiddenError struct{ text string }

func (e *forbiddenError) Error() string { return e.text }

// dial resolves the host once and connects to one of the addresses that it classified, in
// the resolver's order. A name of which any address is forbidden is refused outright: a
// mixed answer is how rebinding begins, and no honest name has one.
func (g *Gate) dial(ctx context.Context, host bottle.Host, port int) (*net.TCPConn, error) {
	addrs, err := g.lookup(ctx, host)
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		if class, ok := allow.Classify(a, g.cfg.AllowCIDRs); !ok {
			return nil, &forbiddenError{fmt.Sprintf("%s resolves to %s, which is %s; the operator can permit its network in allow_cidrs", host, a, class)}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	deadline, _ := ctx.Deadline()
	var errs []error
	for i, a := range addrs {
		// One dead address must not use up the time of the others.
		d := net.Dialer{Timeout: max(time.Until(deadline)/time.Duration(len(addrs)-i), time.Second)}
		c, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(a, uint16(port)).String()) //nolint:gosec // G115: 1 to 65535
		if err == nil {
			tcp, ok := c.(*net.TCPConn)
			if !ok {
				_ = c.Close()
				return nil, fmt.Errorf("connect to %s: not a TCP connection", host)
			}
			return tcp, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, fmt.Errorf("connect to %s: %w", host, errors.Join(errs...))
}

// lookup returns the addresses of a name as they will be dialled: IPv4 ones unmapped, each
// once, at least one.
func (g *Gate) lookup(ctx context.Context, host bottle.Host) ([]netip.Addr, error) {
	if a, ok := g.resolve[host]; ok {
		return []netip.Addr{a.Unmap()}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	// The dot at the end keeps the system's search domains out of it.
	found, err := g.cfg.Resolver.LookupNetIP(ctx, "ip", string(host)+".")
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", host, err)
	}
	var addrs []netip.Addr
	for _, a := range found {
		if a = a.Unmap(); !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	if len(addrs) == 0 {
		return nil, fmt.Errorf("resolve %s: it has no address", host)
	}
	return addrs, nil
}
