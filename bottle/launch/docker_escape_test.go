package launch_test

import (
	"crypto/rand"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/network"

	"bottle/bottle"
	"bottle/bottle/egress"
)

// From inside the agent's container there is one way out: egress.
func TestDockerAgentsNetwork(t *testing.T) {
	t.Parallel()
	d := engine(t)
	if d == nil {
		return
	}
	// A server of this machine on all its addresses, which an agent must not reach but through egress.
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "reached\n") })} //nolint:gosec // G112: a test's
	go func() { _ = srv.Serve(ln) }()
	t.Cleanup(func() { _ = srv.Close() })
	tcp := ln.Addr().(*net.TCPAddr).Port //nolint:errcheck // it is one
	udp, err := lc.ListenPacket(t.Context(), "udp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = udp.Close() })

	upstream := d.hostAddr(t)
	p := newPot(t, d, func(m *bottle.Manifest) {
		m.Egress.Routes = []bottle.Route{{Host: "upstream.test", Ports: []int{tcp}}}
		m.Egress.Resolve = map[bottle.Host]netip.Addr{"upstream.test": upstream}
		m.Egress.AllowCIDRs = []netip.Prefix{netip.PrefixFrom(upstream, 32)}
	})
	p.up(t)
	other := newPot(t, d)
	other.up(t)

	t.Run("egress is a way", func(t *testing.T) {
		code, out := p.run(t, "wget", "-q", "-O", "-", fmt.Sprintf("http://upstream.test:%d/", tcp))
		if code != 0 || out != "reached\n" {
			t.Fatalf("%d, %q\n%s", code, out, p.logs())
		}
		if code, out = p.run(t, "wget", "-q", "-O", "-", "http://other.test/"); code == 0 || !strings.Contains(out, "403") {
			t.Errorf("a host without a route: %d, %q", code, out)
		}
	})

	internal := inspectNetwork(t, d, p.ids(t).Networks[0])
	subnet := netip.MustParsePrefix(internal.IPAM.Config[0].Subnet)
	outgoing := inspectNetwork(t, d, p.ids(t).Networks[1])
	targets := map[string]string{
		"the bridge of the engine": upstream.String(), "the internal gateway": subnet.Addr().Next().String(),
		"the outgoing gateway": outgoing.IPAM.Config[0].Gateway, "the metadata address": "169.254.169.254",
		"the address of the resolver": "192.0.2.1", "the egress of another bottle": addrOf(t, d, other.ids(t).Sidecars, other.ids(t).Networks[0]),
		"the other side of the sidecars": addrOf(t, d, p.ids(t).Sidecars, p.ids(t).Networks[1]),
	}
	for _, a := range hostAddrs(t) {
		targets["an address of the host, "+a.String()] = a.String()
	}
	t.Run("nothing else answers", func(t *testing.T) {
		// All at once, since each waits for an answer that does not come.
		var script strings.Builder
		try := func(what, target string, port int) {
			fmt.Fprintf(&script, "(nc -w 2 %s %d -e true && echo 'open: %s, %[1]s:%[2]d') 2>/dev/null &\n", target, port, what)
		}
		try("control", "sidecars", 3128)
		for name, target := range targets {
			for _, port := range []int{tcp, 53, 80, 2375, 3128} {
				try(name, target, port)
			}
			fmt.Fprintf(&script, "timeout 2 tftp -g -r out -l /tmp/out %s %d 2>/dev/null &\n", target, udp.LocalAddr().(*net.UDPAddr).Port) //nolint:errcheck // it is one
		}
		for _, port := range []int{53, 80, 3129, 3130, 3131, 3132, 3133} {
			try("the sidecars", "sidecars", port)
		}
		for _, name := range []string{"example.com", "localhost.localdomain", "host.docker.internal", "gateway.docker.internal", "exfiltrated.test"} {
			fmt.Fprintf(&script, "(timeout 4 nslookup %s >/dev/null 2>&1 && echo 'open: %[1]s is looked up') &\n", name)
		}
		script.WriteString("wait\n")
		_, out := p.run(t, "sh", "-c", script.String())
		if out != "open: control, sidecars:3128\n" {
			t.Error(out)
		}
	})
	t.Run("no datagram reached the host", func(t *testing.T) {
		// This one comes after all that have arrived.
		var dialer net.Dialer
		c, err := dialer.DialContext(t.Context(), "udp4", fmt.Sprintf("127.0.0.1:%d", udp.LocalAddr().(*net.UDPAddr).Port)) //nolint:errcheck // it is one
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, "last"); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 16)
		if n, from, err := udp.ReadFrom(b); err != nil || string(b[:n]) != "last" {
			t.Errorf("the host got %q from %v, %v", b[:n], from, err)
		}
	})
	t.Run("no route but into the internal network, and no IPv6", func(t *testing.T) {
		// Old engines give a default route to the gateway, an address that nobody has.
		_, out := p.run(t, "ip", "route")
		for line := range strings.Lines(out) {
			if !strings.HasPrefix(line, subnet.String()+" dev eth0 ") && !strings.HasPrefix(line, "default via "+subnet.Addr().Next().String()+" dev eth0 ") {
				t.Errorf("route %q", line)
			}
		}
		if _, out := p.run(t, "ip", "addr"); strings.Contains(out, "inet6") || strings.Contains(out, "eth1") {
			t.Errorf("addresses: %q", out)
		}
	})
}

// What the kernel gives to the agent's processes, and to the bundle's.
func TestDockerAgentsRights(t *testing.T) {
	t.Parallel()
	d := engine(t)
	if d == nil {
		return
	}
	p := newPot(t, d)
	p.up(t)
	for name, script := range map[string]string{
		"capabilities":          `[ "$(grep -E 'Cap(Eff|Prm|Bnd|Amb|Inh)' /proc/self/status | grep -vc 0000000000000000)" = 0 ]`,
		"no new privileges":     `grep -q 'NoNewPrivs:.1' /proc/self/status`,
		"a system call filter":  `grep -q 'Seccomp:.2' /proc/self/status`,
		"no raw sockets":        `! ping -c 1 -W 1 127.0.0.1 && ! traceroute -I -m 1 -w 1 127.0.0.1 && ! arping -c 1 -w 1 10.213.0.1`,
		"no mounts":             `! mount -t tmpfs tmpfs /mnt`,
		"no namespaces":         `! unshare -U true && ! unshare -n true`,
		"no devices":            `! mknod /tmp/sda b 8 0`,
		"read-only sockets":     `! touch /run/bottle/x && ! rm /run/bottle/mcp.sock && [ -S /run/bottle/mcp.sock ]`,
		"read-only CA":          `! sh -c 'echo >> /etc/bottle/ca.pem' && ! sh -c 'echo >> /etc/bottle/ca-bundle.pem'`,
		"no engine's socket":    `! ls /var/run/docker.sock /run/docker.sock`,
		"no state directory":    `! ls /bottle && [ "$(find / -xdev -name 'bundle.json' -o -xdev -name ca-key.pem | wc -l)" = 0 ]`,
		"no other sockets":      `[ "$(grep -c / /proc/net/unix)" = 0 ]`,
		"processes are bounded": `[ "$(cat /sys/fs/cgroup/pids/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids.max)" = 2048 ]`,
		"memory is bounded":     `[ "$(cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max)" = ` + strconv.FormatInt(agentMemory(t, d), 10) + ` ]`,
		"no core dumps":         `[ "$(ulimit -c)" = 0 ] && [ "$(ulimit -Hc)" = 0 ]`,
		"not the host's pids":   `[ "$(ls -d /proc/[0-9]* | wc -l)" -lt 12 ]`,
	} {
		t.Run(name, func(t *testing.T) {
			if code, out := p.run(t, "sh", "-c", script); code != 0 {
				t.Errorf("exit code %d: %s", code, out)
			}
		})
	}

	c, err := d.cli.ContainerInspect(t.Context(), p.ids(t).Sidecars)
	if err != nil {
		t.Fatal(err)
	}
	if h := c.HostConfig; !h.ReadonlyRootfs || len(h.CapDrop) != 1 || h.CapDrop[0] != "ALL" || h.RestartPolicy.Name != "no" || h.Memory != 512<<20 || h.PidsLimit == nil || *h.PidsLimit != 512 {
		t.Errorf("sidecars: %+v", h)
	}
	writable := map[string]bool{"queue": true, "status": true, "run/agent": true, "run/bundle": true}
	for _, m := range c.Mounts {
		part := strings.TrimPrefix(m.Destination, "/bottle/"+p.m.Name+"/")
		if m.RW != writable[part] && m.Type != "tmpfs" {
			t.Errorf("%s: writable %v", m.Destination, m.RW)
		}
	}
	agent, err := d.cli.ContainerInspect(t.Context(), p.ids(t).Agent)
	if err != nil {
		t.Fatal(err)
	}
	// Where the host's resolver is on its loopback, an old engine asks that one for whoever has no other.
	if dns := agent.HostConfig.DNS; !slices.Equal(dns, []string{"192.0.2.1"}) {
		t.Errorf("the agent's resolver: %q", dns)
	}
	for _, secret := range []string{"records", "journal", "audit.jsonl", "metadata.json", "manifest.yaml"} {
		for _, m := range c.Mounts {
			if m.Source == p.dir.Path() || strings.HasPrefix(m.Source, p.dir.Path(secret)) {
				t.Errorf("%s is mounted at %s", m.Source, m.Destination)
			}
		}
	}
}

// The secrets of a start, and a token that the keeper hands over, are where they are needed
// and in nothing that the engine shows, that is written, or that a process has in its environment.
func TestDockerShowsNoSecret(t *testing.T) {
	d := engine(t)
	if d == nil {
		return
	}
	p := newPot(t, d, func(m *bottle.Manifest) {
		m.Egress.Routes = []bottle.Route{{Host: "api.test", Credential: "example"}}
		m.Credentials["example"] = bottle.Credential{Header: "Authorization", Scheme: "Bearer", TokenEnv: "BOTTLE_TEST_TOKEN", Hosts: []bottle.Host{"api.test"}}
	})
	token := rand.Text()
	t.Setenv("BOTTLE_TEST_TOKEN", token) // as it is in the keeper's environment
	p.up(t)
	if err := egress.HandKeys(t.Context(), p.dir.KeySocket(), map[string]string{"example": token}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		var st bottle.DaemonStatus
		if err := bottle.ReadJSON(p.dir.DaemonStatus(bottle.DaemonEgress), 0, &st); err != nil || len(st.Needs) > 0 {
			return "egress needs the token"
		}
		return ""
	})
	var cfg bottle.BundleConfig
	if err := bottle.ReadJSON(p.dir.BundleConfig(), 0, &cfg); err != nil {
		t.Fatal(err)
	}
	if env, err := p.AgentEnv(); err != nil || !strings.Contains(strings.Join(env, "\n"), cfg.ProxySecret) {
		t.Errorf("the agent has not its own secret: %v", err)
	}
	_, agentEnv := p.run(t, "env")
	_, agentSees := p.run(t, "sh", "-c", "cat /proc/[0-9]*/environ; find / -xdev -type f -size -100k -exec grep -l "+token+" {} +")
	shown := map[string]string{"logs": p.logs(), "the agent's environment": agentEnv, "what the agent can read": agentSees}
	for _, id := range []string{p.ids(t).Sidecars, p.ids(t).Agent} {
		_, raw, err := d.cli.ContainerInspectWithRaw(t.Context(), id, true)
		if err != nil {
			t.Fatal(err)
		}
		shown["inspect "+id] = string(raw)
		top, err := d.cli.ContainerTop(t.Context(), id, []string{"-o", "pid"})
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range top.Processes {
			// That of an undumpable process is nobody's to read but root's.
			if b, err := os.ReadFile("/proc/" + row[0] + "/environ"); err == nil {
				shown["environment of process "+row[0]] = string(b) + "-"
			}
		}
	}
	err := filepath.WalkDir(p.dir.Path(), func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path) //nolint:gosec // G122: nobody else writes there
		shown[path] = string(b) + "-"
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for where, text := range shown {
		if text == "" || strings.Contains(text, token) || strings.Contains(text, cfg.GateSecret) && where != p.dir.BundleConfig() {
			t.Errorf("%s: empty, or with a secret", where)
		}
		if strings.Contains(text, cfg.ProxySecret) && where != p.dir.BundleConfig() && where != "the agent's environment" && where != "what the agent can read" {
			t.Errorf("%s has the proxy's secret", where)
		}
	}
	if len(shown) < 20 {
		t.Errorf("too little was looked at: %d", len(shown))
	}
}

func inspectNetwork(t *testing.T, d *dock, id string) network.Inspect {
	t.Helper()
	n, err := d.cli.NetworkInspect(t.Context(), id, network.InspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// addrOf is a container's address on a network.
func addrOf(t *testing.T, d *dock, container, network string) string {
	t.Helper()
	c, err := d.cli.ContainerInspect(t.Context(), container)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range c.NetworkSettings.Networks {
		if n.NetworkID == network {
			return n.IPAddress
		}
	}
	t.Fatalf("container %s is not on network %s", container, network)
	return ""
}

// hostAddrs are this machine's own addresses, but loopback.
func hostAddrs(t *testing.T) []netip.Addr {
	t.Helper()
	as, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	var out []netip.Addr
	for _, a := range as {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() && !p.Addr().IsLoopback() {
			out = append(out, p.Addr())
		}
	}
	return out
}
