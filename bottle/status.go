package bottle

import "time"

// The config files that apply writes and init verifies.
const (
	RoutesFile   = "routes.yaml"
	PipelockFile = "pipelock.yaml"
)

// The daemons of a bundle.
const (
	DaemonEgress    = "egress"
	DaemonPipelock  = "pipelock"
	DaemonSupervise = "supervise"
)

// A DaemonStatus is what a daemon says of itself in status/<daemon>.json. The bundle
// writes it; the host reads it with bounds and believes it about revisions alone.
type DaemonStatus struct {
	Schema   int               `json:"schema"`
	Daemon   string            `json:"daemon"`
	PID      int               `json:"pid"`
	Instance string            `json:"instance"`           // new at each start
	Revision Hash              `json:"revision,omitempty"` // in force
	LoadedAt time.Time         `json:"loaded_at,omitzero"`
	Refused  *Refusal          `json:"refused,omitempty"` // the newest config that it would not load
	Listen   string            `json:"listen,omitempty"`  // host:port or a socket path
	Hop      string            `json:"hop,omitempty"`     // of egress: the pipelock that new connections go to, host:port
	Needs    []string          `json:"needs,omitempty"`   // credentials that it has not been handed, by name
	Error    string            `json:"error,omitempty"`
	Counters map[string]uint64 `json:"counters,omitempty"`
}

// A Refusal says which revision a daemon (or init, for a torn file) would not take, and why.
type Refusal struct {
	Revision Hash      `json:"revision"` // as its revision line claims; empty if it has none
	Error    string    `json:"error"`
	At       time.Time `json:"at"`
}

// A Hop is run/bundle/egress/hop.json, in which init tells egress which pipelock new
// connections go to. Egress reads it at its start and on each reload, and says in its status which it uses.
type Hop struct {
	Schema   int    `json:"schema"`
	Pipelock string `json:"pipelock"` // host:port, of loopback
}

// An InitStatus is status/init.json, written by the bundle's supervisor.
type InitStatus struct {
	Schema    int                    `json:"schema"`
	Ready     bool                   `json:"ready"` // every daemon runs and serves
	PID       int                    `json:"pid"`
	StartedAt time.Time              `json:"started_at"`
	Daemons   map[string]ChildStatus `json:"daemons"`
	Files     map[string]MountedFile `json:"files"` // routes.yaml, pipelock.yaml
	Error     string                 `json:"error,omitempty"`
}

// A ChildStatus is one daemon as the supervisor sees it.
type ChildStatus struct {
	PID       int       `json:"pid"` // 0 while it is down
	StartedAt time.Time `json:"started_at,omitzero"`
	Restarts  int       `json:"restarts"`
	LastExit  string    `json:"last_exit,omitempty"`
	Draining  int       `json:"draining,omitempty"` // processes that were taken over from and still have connections
}

// A MountedFile is a config file as the bundle sees it through its mount.
type MountedFile struct {
	Dev       uint64   `json:"dev"`
	Ino       uint64   `json:"ino"`
	Published Hash     `json:"published,omitempty"` // the verified revision that daemons read
	Refused   *Refusal `json:"refused,omitempty"`
}

// Spent is status/spent.json: the once grants that have let their request through.
type Spent struct {
	Schema int                  `json:"schema"`
	Spent  map[string]time.Time `json:"spent"` // grant (short ID) -> when
	// Open are those of them whose one request is still under way: a long download is not
	// cut because its grant is used up. They are tidied away when it is over.
	Open []string `json:"open,omitempty"`
}

// Metadata is metadata.json: what the host knows of a running bottle.
type Metadata struct {
	Schema    int       `json:"schema"`
	Name      string    `json:"name"`
	Backend   string    `json:"backend"`
	StartedAt time.Time `json:"started_at"`
	StoppedAt time.Time `json:"stopped_at,omitzero"`
	Manifest  string    `json:"manifest,omitempty"` // the operator's own file
	// Unconfined: the operator started the agent without a sandbox (local backend).
	Unconfined bool `json:"unconfined,omitempty"`
	// Init is the bundle's PID 1 on the local backend, named by the host that started it
	// and never by the bundle, since the host signals it.
	Init ProcessID `json:"init,omitzero"`
	// Docker is what the docker backend made, named by the engine that made it.
	Docker *DockerIDs `json:"docker,omitempty"`
	// Keeper is the process of bottle keep.
	Keeper ProcessID `json:"keeper,omitzero"`
	// NextShort is the number of the next short ID.
	NextShort int `json:"next_short"`
}

// DockerIDs are the engine's own names of what one start of a bottle made. The host signals
// and inspects these, and never what a label, a name or status/ points to.
type DockerIDs struct {
	Engine   string   `json:"engine,omitempty"` // its address, as in DOCKER_HOST
	Project  string   `json:"project"`          // of docker compose
	Sidecars string   `json:"sidecars"`         // container ID
	Agent    string   `json:"agent"`            // container ID
	Networks []string `json:"networks"`         // IDs
	Volume   string   `json:"volume"`           // name
	// Workspace is the agent's, without links, and WorkspaceAt which directory it was when the start was accepted.
	Workspace   string      `json:"workspace,omitempty"`
	WorkspaceAt MountedFile `json:"workspace_at,omitzero"`
}

// A ProcessID names a process beyond reuse of its pid.
type ProcessID struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // field 22 of /proc/PID/stat, clock ticks since boot
}

// A BundleConfig is etc/bundle.json: what init and the daemons are started with. The host
// writes it before each start, and init a copy for the daemons; both have mode 0600 for the
// two secrets in it, which are made for that start alone. A credential's token is never in it.
type BundleConfig struct {
	Schema  int      `json:"schema"`
	Name    string   `json:"name"`
	Daemons []string `json:"daemons"`
	Egress  string   `json:"egress"` // address that egress listens on, host:port; port 0 picks one
	// Pipelock are loopback addresses: on one of them pipelock serves, the others are for those that
	// take over and those that drain (five in all). Port 0 picks one, and so does an address that is missing.
	Pipelock []string `json:"pipelock,omitempty"`
	// ProxySecret is what egress takes for the mark of this bottle's agent, and GateSecret
	// what pipelock takes for that of egress: on the local backend each user of the machine
	// reaches both ports. Empty means that no secret is asked for, where the network is private.
	ProxySecret string `json:"proxy_secret,omitempty"`
	GateSecret  string `json:"gate_secret,omitempty"`
	// The built-in gate's start flags.
	Resolve    map[string]string `json:"resolve,omitempty"`     // host -> address
	AllowCIDRs []string          `json:"allow_cidrs,omitempty"` // private networks that the operator permits
	UpstreamCA string            `json:"upstream_ca,omitempty"` // PEM text of extra roots
	// Credentials are the names, forms and hosts; never the tokens.
	Credentials map[string]Credential `json:"credentials,omitempty"`
	Binary      string                `json:"binary,omitempty"` // the real pipelock, if configured
	MaxPending  int                   `json:"max_pending"`
	// AcceptNoLandlock: the operator accepted, by name, a kernel without Landlock.
	AcceptNoLandlock bool `json:"accept_no_landlock,omitempty"`
}
