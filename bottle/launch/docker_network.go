package launch

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/volume"

	"bottle/bottle"
)

// The networks of a bottle: internal is the agent's only one and joins it to the sidecars;
// outgoing is a bridge to the internet, for the sidecars alone.
func (d *Docker) internalNetwork() string { return d.project() + "-internal" }
func (d *Docker) outgoingNetwork() string { return d.project() + "-outgoing" }

// socketVolume holds mcp.sock, in memory.
func (d *Docker) socketVolume() string { return d.project() + "-socket" }

// Addresses on the internal network. They are fixed, since the agent's environment names the
// proxy's and outlives a restart of the bundle; .1 is the gateway's, which is given to nobody.
const (
	subnetBits   = 28
	hostSidecars = 2
	hostAgent    = 3
	proxyPort    = 3128
)

// subnetPool is where the subnets of bottles are taken from. The engine's own choice is a /16 for
// each network, of which it has some thirty. A subnet that the engine or a route of
// this machine uses is passed over.
var subnetPool = netip.MustParsePrefix("10.213.0.0/16")

// host is the n-th address of a subnet.
func host(p netip.Prefix, n uint32) netip.Addr {
	b := p.Masked().Addr().As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+n)
	return netip.AddrFrom4(b)
}

// internalOptions keep the host out of the internal network. Without inhibit_ipv4 the bridge
// has an address, by which old engines let the agent reach what the host listens on, its resolver included.
func internalOptions(subnet netip.Prefix) network.CreateOptions {
	return network.CreateOptions{
		Internal: true,
		Options:  map[string]string{"com.docker.network.bridge.inhibit_ipv4": "true"},
		IPAM:     ipam(subnet),
	}
}

func ipam(subnet netip.Prefix) *network.IPAM {
	return &network.IPAM{Config: []network.IPAMConfig{{Subnet: subnet.String(), Gateway: host(subnet, 1).String()}}}
}

// ensureInternal makes the internal network with that subnet, unless it is there.
func (d *Docker) ensureInternal(ctx context.Context, subnet netip.Prefix) (string, error) {
	have, err := d.findNetwork(ctx, d.internalNetwork())
	if err != nil {
		return "", err
	}
	if have == nil {
		return d.createNetwork(ctx, d.internalNetwork(), internalOptions(subnet))
	}
	if len(have.IPAM.Config) != 1 || have.IPAM.Config[0].Subnet != subnet.String() || !have.Internal || have.Options["com.docker.network.bridge.inhibit_ipv4"] != "true" {
		return "", fmt.Errorf("network %s is not as it was made; bottle stop %s removes it: %w", d.internalNetwork(), d.dir.Name(), bottle.ErrCorrupt)
	}
	return have.ID, nil
}

// pickInternal makes the internal network on a free subnet.
func (d *Docker) pickInternal(ctx context.Context) (subnet netip.Prefix, err error) {
	err = d.onFreeSubnet(ctx, func(p netip.Prefix) error {
		subnet = p
		_, err := d.createNetwork(ctx, d.internalNetwork(), internalOptions(p))
		return err
	})
	return subnet, err
}

// ensureOutgoing makes the bridge, unless it is there.
func (d *Docker) ensureOutgoing(ctx context.Context) (id string, err error) {
	have, err := d.findNetwork(ctx, d.outgoingNetwork())
	if err != nil {
		return "", err
	}
	if have != nil {
		return have.ID, nil
	}
	err = d.onFreeSubnet(ctx, func(p netip.Prefix) (err error) {
		id, err = d.createNetwork(ctx, d.outgoingNetwork(), network.CreateOptions{IPAM: ipam(p)})
		return err
	})
	return id, err
}

func (d *Docker) createNetwork(ctx context.Context, name string, o network.CreateOptions) (string, error) {
	off := false
	o.Driver, o.EnableIPv6, o.Labels = "bridge", &off, d.labels()
	whole, cancel := uninterrupted(ctx)
	defer cancel()
	r, err := d.cli.NetworkCreate(whole, name, o)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return "", d.explain("create network "+name, err)
	}
	return r.ID, nil
}

// findNetwork is ours of that name, nil if there is none. The engine allows a name twice, so
// one that is not ours is refused: compose could take it.
func (d *Docker) findNetwork(ctx context.Context, name string) (*network.Summary, error) {
	list, err := d.cli.NetworkList(ctx, network.ListOptions{Filters: filters.NewArgs(filters.Arg("name", "^"+name+"$"))})
	if err != nil {
		return nil, d.explain("list networks", err)
	}
	var have *network.Summary
	for _, n := range list {
		switch {
		case n.Name != name: // the filter matches parts of names
		case n.Labels[labelName] != d.dir.Name() || n.Labels[labelState] != d.dir.Path():
			return nil, d.taken("network", name, n.Labels)
		default:
			have = &n
		}
	}
	return have, nil
}

// taken is the error for a name that something which is not this bottle's has.
func (d *Docker) taken(kind, name string, labels map[string]string) error {
	whose := "it is not of a bottle"
	if labels[labelState] != "" {
		whose = "it is of the bottle in " + labels[labelState]
	}
	return fmt.Errorf("the %s name %s is taken: %s; remove it, or give this bottle another name", kind, name, whose)
}

// onFreeSubnet calls create with free subnets until one is not taken meanwhile.
func (d *Docker) onFreeSubnet(ctx context.Context, create func(netip.Prefix) error) error {
	list, err := d.cli.NetworkList(ctx, network.ListOptions{})
	if err != nil {
		return d.explain("list networks", err)
	}
	used := routes()
	for _, n := range list {
		for _, c := range n.IPAM.Config {
			if p, err := netip.ParsePrefix(c.Subnet); err == nil {
				used = append(used, p)
			}
		}
	}
	total := 1 << (subnetBits - subnetPool.Bits())
	first := rand.IntN(total) //nolint:gosec // G404: any will do; at random, so that bottles that start at once differ
	for i := range total {
		p := netip.PrefixFrom(host(subnetPool, uint32((first+i)%total)<<(32-subnetBits)), subnetBits) //nolint:gosec // G115: below 2^16
		if slices.ContainsFunc(used, p.Overlaps) {
			continue
		}
		if err = create(p); err == nil || !strings.Contains(err.Error(), "overlap") {
			return err
		}
	}
	return errors.Join(fmt.Errorf("no subnet is free in %v; bottle cleanup removes the networks of dead bottles", subnetPool), err)
}

// routes are the networks that this machine routes to, but for the default.
func routes() []netip.Prefix {
	f, err := os.Open("/proc/net/route")
	if err != nil {
		return nil // the engine will refuse what overlaps its own
	}
	defer f.Close()
	var out []netip.Prefix
	for s := bufio.NewScanner(f); s.Scan(); {
		field := strings.Fields(s.Text())
		if len(field) < 8 {
			continue
		}
		dest, err1 := strconv.ParseUint(field[1], 16, 32)
		mask, err2 := strconv.ParseUint(field[7], 16, 32)
		if err1 != nil || err2 != nil || mask == 0 {
			continue // the heading, the default route
		}
		var b [4]byte
		binary.NativeEndian.PutUint32(b[:], uint32(dest))
		out = append(out, netip.PrefixFrom(netip.AddrFrom4(b), bits.OnesCount32(uint32(mask))))
	}
	return out
}

// ensureVolume makes the volume of the MCP socket. It belongs to the operator from its
// start: a process without capabilities could not chown an ordinary one.
func (d *Docker) ensureVolume(ctx context.Context, u owner) error {
	name := d.socketVolume()
	if v, err := d.cli.VolumeInspect(ctx, name); err == nil {
		if v.Labels[labelName] != d.dir.Name() || v.Labels[labelState] != d.dir.Path() {
			return d.taken("volume", name, v.Labels)
		}
		return nil
	} else if gone(err) != nil {
		return d.explain("inspect volume "+name, err)
	}
	whole, cancel := uninterrupted(ctx)
	defer cancel()
	_, err := d.cli.VolumeCreate(whole, volume.CreateOptions{
		Name: name, Driver: "local", Labels: d.labels(),
		DriverOpts: map[string]string{
			"type": "tmpfs", "device": "tmpfs",
			"o": fmt.Sprintf("uid=%d,gid=%d,mode=0750,size=1m,noexec,nosuid,nodev", u.uid, u.gid),
		},
	})
	return d.explain("create volume "+name, err)
}
