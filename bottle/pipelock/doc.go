// Package pipelock is the second layer: the codec of pipelock.yaml, the rules that apply
// needs to know about reloading it, and the built-in gate that takes pipelock's place where
// its binary is not at hand.
//
// The second layer knows hosts and ports alone, and exists so that an error in egress opens
// nothing more than another path of a host that somebody allowed. It is the one place that
// resolves names and dials: a name is resolved once, every address of it is classified, and
// the very address that was classified is dialled, so that an answer can't change between
// the check and the use.
//
// The connection that was dialled goes to egress, if it asks for it ([fdpass.Header]), and the gate
// keeps a copy to cut it by: the kernel's, so that egress has no say in it.
//
// What a config file does not say is never filled in with something open: no mode, another
// mode than strict, an empty file, a file whose revision line is missing or wrong, all mean
// that the gate does not start, or keeps what it has. (Real pipelock, started on an empty
// file, comes up in balanced mode, where hosts that nobody listed are reachable.)
//
// A gate that is replaced hands its open tunnels to its successor, sockets and all, so that
// neither a long tunnel keeps an old gate alive nor its end cuts the tunnel. The successor
// holds what it is handed to its own table.
//
// Real pipelock knows no ports, so they ride in a comment on the entry, which it ignores and
// the gate enforces: "- api.example.com # ports 8443". Its wildcards are wider too: any
// depth, and the apex. The gate's cover one label, as egress's do.
package pipelock
