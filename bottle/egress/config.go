package egress

import (
	"fmt"
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
	// Report is told the status whenever it has changed; an error is logged. Without it the
	// status is written to StatusPath, status/egress.json.
	Report     func(bottle.DaemonStatus) error
	StatusPath string
	// Listen is the proxy's TCP address. Listener, if not nil, is a [net.TCPListener] that is
	// used in its place.
	Listen   string
	Listener net.Listener
	// KeySocket is the path at which the keeper hands tokens over. KeyListener, if not nil, is
	// a [net.UnixListener] that is used in its place; its socket file is left where it is.
	KeySocket   string
	KeyListener net.Listener
	// Name is the bottle's, for those who come to a proxy that is not theirs.
	Name string
	// Secret is what a client of the proxy must know; see [bottle.ProxyUserinfo]. Empty
	// means that whoever reaches the port is served, for where the network is private.
	Secret string
	// HopFile is the path of hop.json, a [bottle.Hop], which names the pipelock that is the
	// next hop; it is read at the start and at each reload. Without it that is Pipelock, a
	// host:port, for good. GateSecret is what pipelock asks of its client, as a proxy does;
	// empty means nothing.
	HopFile    string
	Pipelock   string
	GateSecret string
	// UpstreamCA is PEM text of roots beside the system's; empty means none.
	UpstreamCA []byte
	// Credentials are those of the manifest, by name; nil means none.
	Credentials map[string]bottle.Credential
	// Reload asks for the hop and the routes to be read anew; each message is a reload.
	// It is never closed.
	Reload <-chan struct{}
	Logger *slog.Logger     // required; no secret is logged
	Now    func() time.Time // nil means time.Now
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
		{"Report or Config.StatusPath", c.Report != nil || c.StatusPath != ""},
		{"Listener or Config.Listen", c.Listener != nil || c.Listen != ""},
		{"KeyListener or Config.KeySocket", c.KeyListener != nil || c.KeySocket != ""},
		{"HopFile or Config.Pipelock", c.HopFile != "" || c.Pipelock != ""},
		{"Logger", c.Logger != nil},
	} {
		if !f.have {
			return fmt.Errorf("egress: Config.%s is required: %w", f.name, bottle.ErrInvalid)
		}
	}
	if _, ok := c.Listener.(*net.TCPListener); c.Listener != nil && !ok {
		return fmt.Errorf("egress: Config.Listener is a %T; give a TCP one: %w", c.Listener, bottle.ErrInvalid)
	}
	if _, ok := c.KeyListener.(*net.UnixListener); c.KeyListener != nil && !ok {
		return fmt.Errorf("egress: Config.KeyListener is a %T; give one of a unix socket: %w", c.KeyListener, bottle.ErrInvalid)
	}
	if c.HopFile == "" {
		if _, _, err := net.SplitHostPort(c.Pipelock); err != nil {
			return fmt.Errorf("egress: Config.Pipelock: %w", err)
		}
	}
	return nil
}
