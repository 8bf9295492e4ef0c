package egress

import (
	"fmt"
	"net/netip"

	"bottle/bottle"
)

// maxHopFile bounds hop.json, in bytes.
const maxHopFile = 4 << 10

// readHop returns the address in hop.json, host:port. The host is an IP address of loopback:
// pipelock is beside egress, and a name would have to be resolved first.
func readHop(path string) (string, error) {
	var h bottle.Hop
	if err := bottle.ReadJSON(path, maxHopFile, &h); err != nil {
		return "", fmt.Errorf("hop: %w", err)
	}
	addr, err := netip.ParseAddrPort(h.Pipelock)
	if err != nil || !addr.Addr().IsLoopback() || addr.Port() == 0 {
		return "", fmt.Errorf("hop: %s: pipelock is %q; give a loopback IP address and a port: %w", path, clip(h.Pipelock, 80), bottle.ErrInvalid)
	}
	return addr.String(), nil
}

// follow goes over to the pipelock that hop.json names. If it can't be read, the one in use
// stays.
func (s *Server) follow() error {
	addr, err := readHop(s.cfg.HopFile)
	if err != nil {
		s.log.Error("the pipelock in use stays", "hop", s.hop.address(), "error", err)
		return err
	}
	if addr != s.hop.address() {
		s.up.use(addr)
		s.log.Info("another pipelock is in use", "hop", addr)
	}
	return nil
}
