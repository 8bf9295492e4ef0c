package main

import (
	"context"
	"fmt"
	"net/netip"

	"bottle/bottle"
	"bottle/bottle/bundle"
	"bottle/bottle/egress"
	"bottle/bottle/pipelock"
)

func runEgress(ctx context.Context, d *bundle.Daemon) error {
	s, err := egress.New(egress.Config{
		Routes:      d.Dir.Live(bottle.RoutesFile),
		StatusPath:  d.Dir.DaemonStatus(d.Name),
		SpentPath:   d.Dir.SpentFile(),
		CACert:      d.Dir.CACert(),
		CAKey:       d.Dir.CAKey(),
		KeySocket:   d.Dir.KeySocket(),
		Name:        d.Config.Name,
		Listen:      d.Config.Egress,
		Secret:      d.Config.ProxySecret,
		Pipelock:    d.Config.Pipelock,
		GateSecret:  d.Config.GateSecret,
		UpstreamCA:  []byte(d.Config.UpstreamCA),
		Credentials: d.Config.Credentials,
		Reload:      d.Reload,
		Logger:      d.Logger,
	})
	if err != nil {
		return err
	}
	return s.Run(ctx)
}

func runPipelock(ctx context.Context, d *bundle.Daemon) error {
	var allow []netip.Prefix
	for _, c := range d.Config.AllowCIDRs {
		p, err := netip.ParsePrefix(c)
		if err != nil {
			return fmt.Errorf("bundle.json: allow_cidrs %q: %w", c, err)
		}
		allow = append(allow, p)
	}
	g, err := pipelock.NewGate(pipelock.GateConfig{
		Config:     d.Dir.Live(bottle.PipelockFile),
		Listen:     d.Config.Pipelock,
		Secret:     d.Config.GateSecret,
		StatusPath: d.Dir.DaemonStatus(d.Name),
		Resolve:    d.Config.Resolve,
		AllowCIDRs: allow,
		Reload:     d.Reload,
		Logger:     d.Logger,
	})
	if err != nil {
		return err
	}
	return g.Run(ctx)
}
