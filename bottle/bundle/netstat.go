package bundle

import (
	"bufio"
	"os"
	"strconv"
	"strings"
)

// The states of a TCP socket in /proc/net/tcp (net/tcp_states.h of Linux).
const (
	tcpEstablished = 0x01
	tcpSynRecv     = 0x03
	tcpFinWait1    = 0x04
	tcpFinWait2    = 0x05
	tcpCloseWait   = 0x08
	tcpListen      = 0x0a
)

// A tcpPort is what the kernel says of one local port.
type tcpPort struct {
	conns    int // that are open, be it one way
	listener int // the uid of who listens; -1: nobody
}

// tcpPorts looks at the TCP sockets (IPv4) of this network namespace whose local port is one of
// those. It is the kernel's word and not a daemon's.
func tcpPorts(ports ...uint16) (map[uint16]tcpPort, error) {
	f, err := os.Open("/proc/self/net/tcp")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out := make(map[uint16]tcpPort, len(ports))
	for _, p := range ports {
		out[p] = tcpPort{listener: -1}
	}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// sl local_address rem_address st tx:rx tr:when retrnsmt uid ...
		fields := strings.Fields(lines.Text())
		if len(fields) < 8 {
			continue
		}
		_, hex, ok := strings.Cut(fields[1], ":")
		n, err := strconv.ParseUint(hex, 16, 16)
		if !ok || err != nil {
			continue // the heading
		}
		p, ok := out[uint16(n)]
		if !ok {
			continue
		}
		switch state, _ := strconv.ParseUint(fields[3], 16, 8); state {
		case tcpEstablished, tcpSynRecv, tcpFinWait1, tcpFinWait2, tcpCloseWait:
			p.conns++
		case tcpListen:
			if uid, err := strconv.Atoi(fields[7]); err == nil {
				p.listener = uid
			}
		}
		out[uint16(n)] = p
	}
	return out, lines.Err()
}
