package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"bottle/bottle"
	"bottle/bottle/bundle"
	"bottle/bottle/egress"
	"bottle/bottle/pipelock"
)

func runEgress(ctx context.Context, d *bundle.Daemon) error {
	proxy, err := d.Listener(bundle.FDProxy)
	if err != nil {
		return err
	}
	inside, err := d.Listener(bundle.FDProxyUnix)
	if err != nil {
		return err
	}
	keys, err := d.Listener(bundle.FDKeys)
	if err != nil {
		return err
	}
	access, err := d.Pipe(bundle.FDAccess)
	if err != nil {
		return err
	}
	var passed *net.UnixConn
	if d.Has(bundle.FDPassed) {
		if passed, err = d.UnixConn(bundle.FDPassed); err != nil {
			return err
		}
	}
	s, err := egress.New(egress.Config{
		Routes:       d.Dir.Live(bottle.RoutesFile),
		Report:       d.Report,
		SpentPath:    d.Dir.SpentFile(),
		CACert:       d.Dir.CACert(),
		CAKey:        d.Dir.CAKey(),
		KeyListener:  keys,
		Name:         d.Config.Name,
		Listener:     proxy,
		UnixListener: inside,
		Secret:       d.Config.ProxySecret,
		HopFile:      d.Dir.HopFile(),
		GateSecret:   d.Config.GateSecret,
		Passed:       passed,
		UpstreamCA:   []byte(d.Config.UpstreamCA),
		Credentials:  d.Config.Credentials,
		AccessLog:    access,
		Reload:       d.Reload,
		Settled:      egress.CollectLess,
		Logger:       d.Logger,
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
	l, err := d.Listener(bundle.FDGate)
	if err != nil {
		return err
	}
	handover, err := d.UnixConn(bundle.FDHandover)
	if err != nil {
		return err
	}
	adopt, err := d.UnixConn(bundle.FDAdopt)
	if err != nil {
		return err
	}
	pass, err := d.UnixConn(bundle.FDPass)
	if err != nil {
		return err
	}
	g, err := pipelock.NewGate(pipelock.GateConfig{
		Config:     d.Dir.Live(bottle.PipelockFile),
		Listener:   l,
		Secret:     d.Config.GateSecret,
		Report:     d.Report,
		Resolve:    d.Config.Resolve,
		AllowCIDRs: allow,
		Reload:     d.Reload,
		Drain:      d.Drain,
		Handover:   handover,
		Adopt:      adopt,
		Pass:       pass,
		Logger:     d.Logger,
	})
	if err != nil {
		return err
	}
	return g.Run(ctx)
}
