package launch_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"

	"bottle/bottle"
)

// agentMemory is the limit of an agent's container on this engine, in bytes.
func agentMemory(t *testing.T, d *dock) int64 {
	t.Helper()
	info, err := d.cli.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return min(8<<30, info.MemTotal/4*3)
}

// An agent that takes all it can get, of processes and of memory, gets what its container may have. The bundle, whose
// limits are its own, goes on, and so does the host.
func TestDockerAgentsLimits(t *testing.T) {
	d := engine(t)
	if d == nil {
		return
	}
	p := newPot(t, d)
	p.up(t)
	// What an agent may have is more than a machine should give to a test, so there is less here of what is bounded.
	h := inspect(t, d, p.ids(t).Agent).HostConfig
	few, little := int64(200), int64(64<<20)
	var less container.Resources
	if h.PidsLimit != nil && *h.PidsLimit > 0 {
		less.PidsLimit = &few
	}
	if h.Memory > 0 && h.MemorySwap == h.Memory {
		less.Memory, less.MemorySwap = little, little
	}
	if _, err := d.cli.ContainerUpdate(t.Context(), p.ids(t).Agent, container.UpdateConfig{Resources: less}); err != nil {
		t.Fatal(err)
	}
	goesOn := func(t *testing.T) {
		t.Helper()
		code, out := p.run(t, "wget", "-q", "-O", "-", "http://other.test/")
		if code == 0 || !strings.Contains(out, "403") {
			t.Errorf("egress: %d, %q", code, out)
		}
		if st := p.status(t); !st.Ready {
			t.Errorf("the bundle: %+v", st)
		}
	}
	t.Run("processes", func(t *testing.T) {
		// As many as the limit has, of which the shell and the container's own are some already.
		_, out := p.run(t, "sh", "-c", fmt.Sprintf(`i=0; while [ $i -lt %d ]; do sleep 1000 & i=$((i+1)); done; echo all of them; kill $(jobs -p)`, few))
		if !strings.Contains(out, "can't fork") || strings.Contains(out, "all of them") {
			t.Errorf("%.200q", out)
		}
		if n := pids(t, d, p.ids(t).Agent); n > few {
			t.Errorf("%d processes", n)
		}
		if st := p.status(t); !st.Ready {
			t.Errorf("the bundle: %+v", st)
		}
		// No more can be started in it; killed, it comes back.
		if err := d.cli.ContainerKill(t.Context(), p.ids(t).Agent, "KILL"); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() string {
			_, err := p.Ensure(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			c, err := d.cli.ContainerInspect(t.Context(), p.ids(t).Agent)
			if err != nil || !c.State.Running {
				return "it is not back"
			}
			return ""
		})
		goesOn(t)
	})
	t.Run("memory", func(t *testing.T) {
		if code, out := p.run(t, "sh", "-c", "head -c 200000000 /dev/zero | tail -c 200000000 | wc -c"); strings.Contains(out, "200000000") {
			t.Errorf("%d, %q", code, out)
		}
		goesOn(t)
	})
}

func inspect(t *testing.T, d *dock, id string) container.InspectResponse {
	t.Helper()
	c, err := d.cli.ContainerInspect(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func pids(t *testing.T, d *dock, id string) int64 {
	t.Helper()
	top, err := d.cli.ContainerTop(t.Context(), id, []string{"-eo", "pid"})
	if err != nil {
		t.Fatal(err)
	}
	return int64(len(top.Processes))
}

// The metadata address of clouds, which gives credentials to whoever asks, is nobody's for an agent: not by TCP, UDP or
// ICMP, and not through egress, even where a route would have it.
func TestDockerAgentsMetadataAddress(t *testing.T) {
	t.Parallel()
	d := engine(t)
	if d == nil {
		return
	}
	const metadata = "169.254.169.254"
	p := newPot(t, d, func(m *bottle.Manifest) {
		m.Egress.Routes = []bottle.Route{{Host: "meta.test", Ports: []int{80}}}
		m.Egress.Resolve = map[bottle.Host]netip.Addr{"meta.test": netip.MustParseAddr(metadata)}
	})
	p.up(t)
	for name, c := range map[string]struct{ script, says string }{
		"TCP":                {"nc -w 2 " + metadata + " 80 -e true", ""},
		"UDP":                {"timeout 2 tftp -g -r x -l /tmp/x " + metadata + " 69", ""},
		"ICMP":               {"ping -c 1 -W 1 " + metadata, ""},
		"raw":                {"traceroute -I -m 1 -q 1 -w 1 " + metadata + " | grep -F ' ms'", ""},
		"an ARP of its own":  {"arping -c 1 -w 1 -I eth0 " + metadata, ""},
		"egress":             {"wget -q -O - http://meta.test/", "403"},
		"egress, by address": {"wget -q -O - http://" + metadata + "/latest/meta-data/", "403"},
	} {
		t.Run(name, func(t *testing.T) {
			code, out := p.run(t, "sh", "-c", c.script+" && echo reached")
			if code == 0 || strings.Contains(out, "reached") || !strings.Contains(out, c.says) {
				t.Errorf("%d, %q", code, out)
			}
		})
	}
}
