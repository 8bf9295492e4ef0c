package egress

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"bottle/bottle"
)

// A Config says what an egress serves. Paths are absolute.
type Config struct {
	Routes    string // required: the live, verified routes.yaml
	SpentPath string // required: status/spent.json
	CACert    string // required, with CAKey: see [EnsureCA]
	CAKey     string
	// Report, required, is told the status whenever it has changed; an error is logged.
	Report func(bottle.DaemonStatus) error
	// Listener, required, is the proxy's socket, a [net.TCPListener].
	Listener net.Listener
	// UnixListener is a second socket of the proxy's, a [net.UnixListener], for a sandbox that has
	// no network; what it carries is framed, see [proxysock]. Nil means none. Its socket file
	// is left where it is.
	UnixListener net.Listener
	// KeyListener, required, is the socket by which the keeper hands tokens over, a
	// [net.UnixListener]. Its socket file is left where it is.
	KeyListener net.Listener
	// Name is the bottle's, for those who come to a proxy that is not theirs.
	Name string
	// Secret is what a client of the proxy must know; see [bottle.ProxyUserinfo]. Empty
	// means that whoever reaches the port is served, for where the network is private.
	Secret string
	// HopFile, required, is the path of hop.json, a [bottle.Hop], which names the pipelock that
	// is the next hop; it is read at the start and at each reload. GateSecret is what pipelock
	// asks of its client, as a proxy does; empty means nothing.
	HopFile    string
	GateSecret string
	// Passed is the end of a SOCK_SEQPACKET pair by which pipelock passes the connections that it
	// makes, so that what flows takes no second hop; see [fdpass.Header]. Run closes it. Nil: all
	// flows through pipelock.
	Passed *net.UnixConn
	// UpstreamCA is PEM text of roots beside the system's; empty means none.
	UpstreamCA []byte
	// Credentials are those of the manifest, by name; nil means none.
	Credentials map[string]bottle.Credential
	// AccessLog gets the access log, whole lines of JSON, each a [bottle.AccessLine]. Nil: there is none.
	// If it has SetWriteDeadline, as a pipe has, a stop does not wait for who reads it.
	AccessLog io.Writer
	// Reload asks for the hop and the routes to be read anew; each message is a reload.
	// It is never closed.
	Reload <-chan struct{}
	// Settled is called once, a second after the start, when what the start needs was loaded. Nil: nobody.
	Settled func()
	Logger  *slog.Logger     // required; no secret is logged
	Now     func() time.Time // nil means time.Now

	limits limits
}

// check returns what the config lacks.
func (c *Config) check() error {
	for _, f := range []struct {
		name string
		have bool
	}{
		{"Routes", c.Routes != ""},
		{"SpentPath", c.SpentPath != ""},
		{"CACert", c.CACert != ""},
		{"CAKey", c.CAKey != ""},
		{"Report", c.Report != nil},
		{"Listener", c.Listener != nil},
		{"KeyListener", c.KeyListener != nil},
		{"HopFile", c.HopFile != ""},
		{"Logger", c.Logger != nil},
	} {
		if !f.have {
			return fmt.Errorf("egress: Config.%s is required: %w", f.name, bottle.ErrInvalid)
		}
	}
	return nil
}

// sockets returns the sockets as what they must be; inside may be nil.
func (c *Config) sockets() (proxy *net.TCPListener, inside, keys *net.UnixListener, err error) {
	proxy, ok := c.Listener.(*net.TCPListener)
	if !ok {
		return nil, nil, nil, fmt.Errorf("egress: Config.Listener is a %T; give a TCP one: %w", c.Listener, bottle.ErrInvalid)
	}
	keys, ok = c.KeyListener.(*net.UnixListener)
	if !ok {
		return nil, nil, nil, fmt.Errorf("egress: Config.KeyListener is a %T; give one of a unix socket: %w", c.KeyListener, bottle.ErrInvalid)
	}
	if c.UnixListener == nil {
		return proxy, nil, keys, nil
	}
	if inside, ok = c.UnixListener.(*net.UnixListener); !ok {
		return nil, nil, nil, fmt.Errorf("egress: Config.UnixListener is a %T; give one of a unix socket: %w", c.UnixListener, bottle.ErrInvalid)
	}
	inside.SetUnlinkOnClose(false)
	return proxy, inside, keys, nil
}
