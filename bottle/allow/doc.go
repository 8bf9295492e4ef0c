// Package allow decides what a bottle's agent may reach. It is pure: it reads no file,
// resolves no name, knows no clock, and keeps nothing between calls, so that a decision
// can be tested, explained and repeated.
//
// A [Table] is an immutable snapshot of the routes in force. The host of a request finds
// its routes through an index; among these, ports, methods, paths and headers decide.
// Default is to deny, and each denial carries its reason and the rule that came nearest.
//
// Everything in a [Query] was written by the agent. Two rules keep a lie in it from
// widening a route: a string is compared in one canonical form only ([bottle.ParseHost],
// [bottle.NormalizePath]), and that form, not the original, is what goes upstream. What
// has several readings is refused. A route that says nothing of paths claims nothing about
// them either, so below it a path is passed on as it came, whatever its spelling.
//
// The package also says of an address to which class it belongs ([Classify]), of a host
// how it might deceive an operator ([HostNotes], [LookAlike]), of a request what to weigh
// ([Risks]), and what is left of routes when some of what they allow is taken back
// ([Subtract]).
package allow
