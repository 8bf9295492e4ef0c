package launch

import (
	"cmp"
	"fmt"
	"net/netip"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"bottle/bottle"
)

// Where things are in the containers. The agent's paths are the same on the local backend.
const (
	rootInside      = "/bottle" // above the bundle's part of the state directory
	workspaceInside = "/workspace"
	homeInside      = "/home/agent"
	socketsInside   = "/run/bottle"
	caInside        = "/etc/bottle/ca.pem"
	caBundleInside  = "/etc/bottle/ca-bundle.pem"
	bridgeInside    = sandboxBin + "/bottle-mcp"
	pipelockInside  = "/usr/local/bin/pipelock"
)

// Limits of the containers. Swap is none beyond the memory.
const (
	sidecarsMemory = "512m"
	sidecarsPids   = 512
	agentMemory    = 8 << 30 // bytes, and at most three quarters of what the engine's machine has
	agentPids      = 2048
	// What a container prints lies on the host's disk until it is stopped.
	logSize, logFiles = "8m", "2"
	stopGrace         = "3s" // init is down in 2 s
)

// An owner is who the containers run as: the operator, whose the state directory and the
// workspace are.
type owner struct {
	uid, gid int
	// hostUsers: the engine maps users, which the containers must be excepted from to be the operator.
	hostUsers bool
	// memory is the engine's machine's, in bytes.
	memory int64
}

// agentMemory is the limit of the agent's container: one that the machine has not got would bound nothing.
func (u owner) agentMemory() int64 {
	if u.memory <= 0 {
		return agentMemory
	}
	return min(agentMemory, u.memory/4*3)
}

// The part of the compose file format that is used here; see the Compose Specification.
type (
	composeFile struct {
		Name     string                    `yaml:"name"`
		Services map[string]composeService `yaml:"services"`
		Networks map[string]composeOutside `yaml:"networks"`
		Volumes  map[string]composeOutside `yaml:"volumes"`
	}
	composeOutside struct {
		Name     string `yaml:"name"`
		External bool   `yaml:"external"`
	}
	composeService struct {
		Image       string                    `yaml:"image"`
		Build       *composeBuild             `yaml:"build,omitempty"`
		PullPolicy  string                    `yaml:"pull_policy"`
		Labels      map[string]string         `yaml:"labels"`
		Hostname    string                    `yaml:"hostname"`
		Entrypoint  []string                  `yaml:"entrypoint"`
		Command     []string                  `yaml:"command"`
		User        string                    `yaml:"user"`
		GroupAdd    []string                  `yaml:"group_add"`
		WorkingDir  string                    `yaml:"working_dir,omitempty"`
		UsernsMode  string                    `yaml:"userns_mode,omitempty"`
		Init        bool                      `yaml:"init"`
		ReadOnly    bool                      `yaml:"read_only"`
		CapDrop     []string                  `yaml:"cap_drop"`
		SecurityOpt []string                  `yaml:"security_opt"`
		PidsLimit   int                       `yaml:"pids_limit"`
		MemLimit    string                    `yaml:"mem_limit"`
		MemswapLim  string                    `yaml:"memswap_limit"`
		Ulimits     map[string]int            `yaml:"ulimits"`
		Restart     string                    `yaml:"restart"`
		StopGrace   string                    `yaml:"stop_grace_period"`
		Logging     composeLogging            `yaml:"logging"`
		DNS         []string                  `yaml:"dns,omitempty"`
		DNSSearch   []string                  `yaml:"dns_search,omitempty"`
		ExtraHosts  []string                  `yaml:"extra_hosts,omitempty"`
		Networks    map[string]composeNetwork `yaml:"networks"`
		Tmpfs       []string                  `yaml:"tmpfs"`
		Volumes     []composeMount            `yaml:"volumes"`
	}
	composeBuild struct {
		Context    string            `yaml:"context"`
		Dockerfile string            `yaml:"dockerfile,omitempty"`
		Args       map[string]string `yaml:"args,omitempty"`
	}
	composeLogging struct {
		Driver  string            `yaml:"driver"`
		Options map[string]string `yaml:"options"`
	}
	composeNetwork struct {
		IPv4 string `yaml:"ipv4_address,omitempty"`
	}
	composeMount struct {
		Type     string `yaml:"type"`
		Source   string `yaml:"source"`
		Target   string `yaml:"target"`
		ReadOnly bool   `yaml:"read_only,omitempty"`
		Bind     struct {
			Create bool `yaml:"create_host_path"`
		} `yaml:"bind,omitempty"`
	}
)

// compose renders docker-compose.yml. It holds no secret: tokens go over the key socket, and
// the proxy's is in bundle.json and in the environment of each executed agent.
func (d *Docker) compose(subnet netip.Prefix, u owner, workspace string) ([]byte, error) {
	f := composeFile{
		Name: d.project(),
		Services: map[string]composeService{
			serviceSidecars: d.sidecars(subnet, u),
			serviceAgent:    d.agent(subnet, u, workspace),
		},
		Networks: map[string]composeOutside{
			"internal": {Name: d.internalNetwork(), External: true},
			"outgoing": {Name: d.outgoingNetwork(), External: true},
		},
		Volumes: map[string]composeOutside{"socket": {Name: d.socketVolume(), External: true}},
	}
	var doc yaml.Node
	if err := doc.Encode(f); err != nil {
		return nil, fmt.Errorf("render docker-compose.yml: %w", err)
	}
	literal(&doc)
	b, err := yaml.Marshal(&doc)
	if err != nil {
		return nil, fmt.Errorf("render docker-compose.yml: %w", err)
	}
	return append([]byte("# Written by bottle at each start of "+d.dir.Name()+"; changes are lost.\n"), b...), nil
}

// literal keeps compose from putting variables into values: a path may have a dollar sign.
func literal(n *yaml.Node) {
	if n.Kind == yaml.ScalarNode {
		n.Value = strings.ReplaceAll(n.Value, "$", "$$")
	}
	for _, c := range n.Content {
		literal(c)
	}
}

// service is what both have.
func (d *Docker) service(u owner) composeService {
	s := composeService{
		PullPolicy: "never", Labels: d.labels(), Hostname: d.dir.Name(),
		User: fmt.Sprintf("%d:%d", u.uid, u.gid), GroupAdd: []string{strconv.Itoa(u.gid)},
		CapDrop: []string{"ALL"}, SecurityOpt: []string{"no-new-privileges:true"},
		Ulimits: map[string]int{"core": 0}, Restart: "no", StopGrace: stopGrace,
		Logging: composeLogging{Driver: "json-file", Options: map[string]string{"max-size": logSize, "max-file": logFiles}},
	}
	if u.hostUsers {
		s.UsernsMode = "host"
	}
	return s
}

func (d *Docker) sidecars(subnet netip.Prefix, u owner) composeService {
	s := d.service(u)
	root := path.Join(rootInside, d.dir.Name())
	inside := func(elem ...string) string { return path.Join(append([]string{root}, elem...)...) }
	s.Image = d.image
	s.Entrypoint = []string{"/usr/local/bin/bottle-sidecars"}
	s.Command = []string{"init", "--root", root}
	s.ReadOnly = true
	s.PidsLimit, s.MemLimit, s.MemswapLim = sidecarsPids, sidecarsMemory, sidecarsMemory
	s.Networks = map[string]composeNetwork{
		"internal": {IPv4: host(subnet, hostSidecars).String()},
		"outgoing": {},
	}
	private := func(at string, mode, size string) string {
		return fmt.Sprintf("%s:uid=%d,gid=%d,mode=%s,size=%s,noexec,nosuid,nodev", at, u.uid, u.gid, mode, size)
	}
	s.Tmpfs = []string{private("/tmp", "0700", "16m")}
	// run/bundle is a directory of the host, for the key socket by which the keeper reaches
	// egress, and the lock by which no second init runs. What the daemons read lies in memory, on top of it.
	for _, daemon := range bundleDaemons {
		s.Tmpfs = append(s.Tmpfs, private(inside("run", "bundle", daemon), "0700", "64m"))
	}
	s.Volumes = []composeMount{
		{Type: "volume", Source: "socket", Target: inside("run", "agent")},
		rw(d.dir.Path("run", "bundle"), inside("run", "bundle")),
		rw(d.dir.Path("queue"), inside("queue")),
		rw(d.dir.Path("status"), inside("status")),
		ro(d.dir.Decisions(), inside("decisions")),
	}
	for _, f := range []string{"etc/" + bottle.RoutesFile, "etc/" + bottle.PipelockFile, "etc/bundle.json", "ca/ca.pem", "ca/ca-key.pem"} {
		s.Volumes = append(s.Volumes, ro(d.dir.Path(filepath.FromSlash(f)), inside(f)))
	}
	if b := d.manifest.Pipelock.Binary; b != "" {
		s.Volumes = append(s.Volumes, ro(b, pipelockInside))
	}
	return s
}

// bundleDaemons have a private directory each.
var bundleDaemons = []string{bottle.DaemonEgress, bottle.DaemonPipelock, bottle.DaemonSupervise}

func (d *Docker) agent(subnet netip.Prefix, u owner, workspace string) composeService {
	s := d.service(u)
	s.Image = d.agentImage()
	if b := d.manifest.Agent.Build; b != nil {
		s.Build = &composeBuild{Context: b.Context, Dockerfile: b.Dockerfile, Args: b.Args}
	}
	// It only holds the sandbox open; agents are executed in it. init reaps what they leave.
	s.Init = true
	s.Entrypoint, s.Command = []string{"sleep"}, []string{"infinity"}
	s.WorkingDir = workspaceInside
	memory := strconv.FormatInt(u.agentMemory(), 10)
	s.PidsLimit, s.MemLimit, s.MemswapLim = agentPids, memory, memory
	s.Networks = map[string]composeNetwork{"internal": {IPv4: host(subnet, hostAgent).String()}}
	// The engine's resolver answers in each container. It would pass on to the host's what it does not know;
	// 192.0.2.1 (RFC 5737) is nowhere.
	s.DNS, s.DNSSearch = []string{"192.0.2.1"}, []string{"."}
	s.ExtraHosts = []string{serviceSidecars + ":" + host(subnet, hostSidecars).String()}
	s.Tmpfs = []string{fmt.Sprintf("%s:uid=%d,gid=%d,mode=0700,exec,nosuid,nodev", homeInside, u.uid, u.gid)}
	s.Volumes = []composeMount{
		{Type: "volume", Source: "socket", Target: socketsInside, ReadOnly: true},
		rw(workspace, workspaceInside),
		ro(d.dir.CACert(), caInside),
		ro(caBundle(d.dir), caBundleInside),
		ro(mcpConfigFile(d.dir), mcpConfigInside),
	}
	if d.bridge != "" {
		s.Volumes = append(s.Volumes, ro(d.bridge, bridgeInside))
	}
	return s
}

// agentImage is the manifest's, or the one that its build section makes.
func (d *Docker) agentImage() string {
	if d.manifest.Agent.Build != nil {
		return cmp.Or(d.manifest.Agent.Image, d.project()+"-agent")
	}
	return d.manifest.Agent.Image
}

func rw(source, target string) composeMount {
	return composeMount{Type: "bind", Source: source, Target: target}
}

func ro(source, target string) composeMount {
	return composeMount{Type: "bind", Source: source, Target: target, ReadOnly: true}
}
