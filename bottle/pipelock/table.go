package pipelock

import (
	"fmt"
	"slices"
	"strings"

	"bottle/bottle"
)

// refuses returns why the table does not allow host:port, or "".
func (t *table) refuses(host bottle.Host, port int) string {
	named, ok := t.ports[host]
	if ok && slices.Contains(named, port) {
		return ""
	}
	_, parent, _ := strings.Cut(string(host), ".")
	wild, wok := t.ports[bottle.Host("*."+parent)]
	switch {
	case wok && slices.Contains(wild, port):
		return ""
	case ok:
		return fmt.Sprintf("port %d of %s is not in the allowlist, which has %s", port, host, joinPorts(named))
	case wok:
		return fmt.Sprintf("port %d of *.%s is not in the allowlist, which has %s", port, parent, joinPorts(wild))
	}
	return fmt.Sprintf("%s is not in the allowlist", host)
}
