package egress_test

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"bottle/bottle"
)

// An initStub does for an egress what init does: it holds the sockets, which outlive the
// egress, and takes its reports.
type initStub struct {
	proxy  *net.TCPListener
	keys   *net.UnixListener
	socket string // the path of keys

	mu   sync.Mutex
	last bottle.DaemonStatus // the newest report; zero before the first
}

func newInitStub(t testing.TB, dir string) *initStub {
	t.Helper()
	i := &initStub{socket: filepath.Join(dir, "k.sock")}
	var err error
	if i.proxy, err = net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = i.proxy.Close() })
	if i.keys, err = net.ListenUnix("unix", &net.UnixAddr{Name: i.socket, Net: "unix"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = i.keys.Close() })
	return i
}

// inherited is what a child gets of l: the same socket, by another descriptor.
func inherited(t testing.TB, l interface{ File() (*os.File, error) }) net.Listener {
	t.Helper()
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// report is a Config.Report.
func (i *initStub) report(st bottle.DaemonStatus) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.last = st
	return nil
}

// forget is for a new egress, which has reported nothing.
func (i *initStub) forget() { _ = i.report(bottle.DaemonStatus{}) }

// status is the newest report; false means that there is none.
func (i *initStub) status() (bottle.DaemonStatus, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.last, i.last.Schema != 0
}

// told is the newest report as init is told it.
func (i *initStub) told(t testing.TB) string {
	t.Helper()
	st, _ := i.status()
	b, err := json.Marshal(st)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func writeHop(t testing.TB, path, addr string) {
	t.Helper()
	if err := bottle.WriteStatus(path, bottle.Hop{Schema: bottle.Schema, Pipelock: addr}); err != nil {
		t.Fatal(err)
	}
}
