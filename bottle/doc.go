// Package bottle is the domain of the program of the same name: a coding agent
// in a sandbox (a bottle), the routes it may take out of it, its requests for
// more, what a human operator decided of them, and the state directory in which
// all of that is kept.
//
// Trust runs downhill: the operator's terminal and the host's files are
// believed; what the bundle of daemons wrote (queue, status) is parsed with
// bounds and never followed through a link; what the agent wrote is text to be
// shown escaped, and nothing else. The types here are the meeting point of the
// two sides, so each says which side writes it.
//
// The package imports nothing of ours, so that every other package may import it.
package bottle
