// Package apply carries an operator's yes into the bundle: from a change set to validated bytes, an in-place write, a
// signal, the daemon's confirmation, and either the record of it or the way back.
//
// # Model
//
// A change is one or two steps, each of which only narrows or only widens what the agent may reach, narrowing first.
// It is written down whole, old bytes and new, in the journal before the first byte of a config file changes:
//
//	lock -> plan, compare digest -> journal -> audit apply-started -> record approved
//	     -> each file: pwrite in place, fsync, signal, confirm
//	     -> outcome into the journal -> audit outcome -> record and decision -> journal dropped
//
// Everything before the journal leaves no trace; everything after it can be finished by [Applier.Recover] from the
// journal alone, by whichever process comes next. A widening that is not confirmed is rolled back, both files
// together. A narrowing is never rolled back: the daemon that did not confirm it is killed, and comes back on the new
// bytes or not at all. If the bundle's PID 1 does not say that it has those bytes, or does not do as it is told, the
// host stops all of it.
//
// Files are overwritten in place because they are mounted one by one into the bundle: a rename would leave the bundle
// on the old inode. A reader can therefore see a mixed file, so each ends in a digest of itself (see [bottle.Seal]) and
// no daemon reads the mounted file; the bundle's PID 1 publishes verified bytes only.
//
// # Trust boundary
//
// Everything that is believed here is the host's: records, journal, the lock, the files' own bytes. Of what the bundle
// writes, the status files are believed about revisions alone (a bundle that lies there lies about its own state, and
// gains nothing that it could not do anyway), and spent.json only to end once grants, never to extend anything. A
// widening needs the bundle's word that it is ready; nothing that it says, leaves out, or makes unreadable stands in
// the way of a narrowing. Nor does a full disk: see keepReserve.
//
// The package knows pipelock.yaml, the bundle's process, the queue and the audit log only through interfaces, so that
// nothing that can propose a change (mcp, the queue's bundle side) is linked to what can apply one.
package apply
