package bundle

import (
	"fmt"
	"path/filepath"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"

	"bottle/bottle"
)

// Rights on files and directories, the narrowest that each use needs. A rule on a
// directory covers all below it; a rule on a file covers that inode alone, so it must be one that is
// never replaced by a rename while the daemon runs.
const (
	readFile = landlock.AccessFSSet(ll.AccessFSReadFile)
	readTree = readFile | ll.AccessFSReadDir
	execFile = readFile | ll.AccessFSExecute
	execTree = readTree | ll.AccessFSExecute
	// writeTree replaces files whole (temp, rename) and syncs the directory.
	writeTree = readTree | ll.AccessFSWriteFile | ll.AccessFSTruncate | ll.AccessFSMakeReg | ll.AccessFSRemoveFile
)

// A ruleset is all that a daemon may do with files and TCP ports.
type ruleset struct {
	rules      []landlock.Rule
	connectAny bool // pipelock alone: its job is to dial
	udp        bool // likewise
	listen     bool // a pipelock that is not ours, on its ports
	// watch: inotify, which needs no right on a file but that of its user, and tells the names
	// in a directory. Supervise waits for decisions by it; a pipelock that is not ours for its file.
	watch bool
}

// rulesFor are the rights of one daemon. What is absent is denied: records, journal,
// kept, the audit log, the manifest, metadata.json, etc/ and status/ for all three, and what
// is a sibling's. None may listen: init does, for all but a pipelock that is not ours.
func rulesFor(daemon string, dir *bottle.Dir, c *bottle.BundleConfig) (*ruleset, error) {
	egress, err := port(c.Egress)
	if err != nil {
		return nil, fmt.Errorf("egress %q: %w", c.Egress, err)
	}
	var pipelocks []uint16
	for _, a := range c.Pipelock {
		p, err := port(a)
		if err != nil {
			return nil, fmt.Errorf("pipelock %q: %w", a, err)
		}
		pipelocks = append(pipelocks, p)
	}
	r := &ruleset{}
	add := func(rules ...landlock.Rule) { r.rules = append(r.rules, rules...) }
	add(system()...)
	own := landlock.PathAccess(readTree, filepath.Dir(dir.DaemonConfig(daemon)))
	switch daemon {
	case bottle.DaemonEgress:
		add(own,
			landlock.PathAccess(readFile, dir.CACert(), dir.CAKey()),
			landlock.PathAccess(writeTree, filepath.Dir(dir.SpentFile())),
		)
		for _, p := range pipelocks {
			add(landlock.ConnectTCP(p))
		}
	case bottle.DaemonPipelock:
		add(own)
		if c.Binary != "" {
			for _, p := range pipelocks {
				add(landlock.BindTCP(p))
			}
		}
		r.connectAny = true
		r.listen, r.watch = c.Binary != "", c.Binary != ""
		r.udp = true // it resolves, by DNS alone: a resolver behind a unix socket (nscd) is passed by
	case bottle.DaemonSupervise:
		add(own,
			landlock.PathAccess(readTree, dir.Decisions()),
			landlock.PathAccess(writeTree, dir.Path("queue")),
			landlock.ConnectTCP(egress),
		)
		r.watch = true
	default:
		return nil, fmt.Errorf("no daemon %q: %w", daemon, bottle.ErrInvalid)
	}
	return r, nil
}

// system is what any program needs: trust roots, name resolution, time zones, and the
// libraries of a build that is linked dynamically. None of it is secret or writable.
func system() []landlock.Rule {
	return []landlock.Rule{
		landlock.PathAccess(execTree, "/lib", "/lib64", "/usr/lib", "/usr/lib64").IgnoreIfMissing(),
		landlock.PathAccess(readTree,
			"/etc/ssl", "/etc/pki", "/etc/ca-certificates", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates",
			"/usr/share/zoneinfo", "/run/systemd/resolve",
		).IgnoreIfMissing(),
		landlock.PathAccess(readFile,
			"/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/gai.conf", "/etc/host.conf", "/etc/services", "/etc/protocols",
			"/etc/localtime", "/etc/ld.so.cache", "/etc/mime.types", "/dev/urandom",
			"/proc/sys/kernel/random/boot_id", "/proc/sys/net/core/somaxconn", "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size",
		).IgnoreIfMissing(),
		landlock.PathAccess(readFile|ll.AccessFSWriteFile, "/dev/null"),
	}
}

// Landlock ABI versions, see landlock(7): what the launcher can't enforce below them.
const (
	abiFiles  = 1
	abiPorts  = 4 // Linux 6.7
	abiScopes = 6 // Linux 6.12
	abiMax    = 7 // what the rules above are written for
)

// checkABI decides whether a kernel's Landlock is enough. gap says what an older one leaves open.
func checkABI(abi int, acceptNone bool) (gap string, err error) {
	switch {
	case abi < abiFiles && !acceptNone:
		return "", fmt.Errorf("this kernel has no Landlock (Linux 5.13 or later, with landlock in the lsm= list), so the daemons could read each other's files; boot with it, or accept that by name with accept_no_landlock: %w", bottle.ErrInvalid)
	case abi < abiFiles:
		return "no Landlock, as accepted: daemons are not kept apart", nil
	case abi < abiPorts:
		return fmt.Sprintf("Landlock ABI %d: ports are not restricted (Linux 6.7 does)", abi), nil
	case abi < abiScopes:
		return fmt.Sprintf("Landlock ABI %d: signals and abstract sockets are not restricted (Linux 6.12 does)", abi), nil
	}
	return "", nil
}

// enforce applies the ruleset to this process, as far as the kernel's ABI goes (checkABI
// has said what that leaves), and sets no_new_privs.
func (r *ruleset) enforce() error {
	cfg := landlock.V7
	if r.connectAny {
		cfg.HandledAccessNet &^= ll.AccessNetConnectTCP
	}
	return cfg.BestEffort().Restrict(r.rules...)
}
