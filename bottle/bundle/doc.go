// Package bundle is the supervisor of a bottle's sidecar bundle and what confines each
// daemon.
//
// # Model
//
// The supervisor ([New], [Supervisor.Run]) is PID 1 of the bundle's container, or a child
// of the host on the local backend, where it makes itself the subreaper of its
// descendants. One event loop owns all of its state. What reaches the loop are levels, not
// edges: a signal sets a flag that means "verify and publish whatever the file holds
// now", so signals that coalesce, repeat or arrive too early ask for one more pass and
// none is lost. Apart from the loop there is one reaper, one OS thread that starts
// children, and per child a goroutine for its output, one for its reports and one for its end.
//
// The supervisor holds the listening sockets and passes them on ([Inherit]), so a daemon
// that ends refuses nobody. pipelock can be replaced without a gap: see advance.
//
// Config files come from the host through read-only mounts, one file each, written in
// place. A reader can see them torn, and pipelock started on a torn file fails open.
// So no daemon reads a mounted file: the supervisor checks the revision line and publishes the verified bytes
// by rename into run/bundle, and a daemon whose file has never verified is not started.
//
// # Trust
//
// The daemons parse what the agent sends, so each may be taken over. The supervisor reads
// nothing of theirs but what each reports by its own pipe, bounded in size and rate; the worst that a lie
// does there is a daemon that says it has a revision in force and has not. It starts them with a short list of
// environment variables, and each is confined to the files and ports of its own job, on all its threads: ours
// confine themselves before they read anything of the agent's ([Serve]), what is not ours is
// started through the launcher ([Exec]). None reads the records, the journal, the audit log or
// the manifest, and the CA's key is egress' alone. A confined daemon keeps its uid, so
// what Landlock does not cover (stat, say) is not a boundary between siblings.
package bundle
