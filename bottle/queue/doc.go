// Package queue carries requests from the bundle to the host and the host's answers back.
//
// Its medium is directories of small JSON files, each written whole and durably, so either
// side may be down, restarted or killed at any instant and nothing that was acknowledged
// is lost:
//
//	queue/requests/UUID.json      [Spool] writes, [Desk] reads      bottle.Request
//	queue/cancels/UUID.json       [Spool] writes, [Desk] reads      the agent wants it no longer
//	decisions/UUID.json           [Desk] writes, [Spool] reads      bottle.Answer
//	records/SHORT.UUID.json       [Desk] alone                      bottle.Record, the truth
//	records/UUID.intent           [Desk] alone                      a transition under way
//	records/refused.json          [Desk] alone                      what it would not take in
//	records.index                 any [Reader]                      derived, see index.go
//
// The trust boundary runs between the two. A Spool lives in the bundle and is what an
// honest bundle does; a hijacked one can write anything into the first two directories. So
// a Desk opens only regular files, without following links and with a bound, judges each
// request again as if nobody had, takes in no more at a time than an honest Spool would
// have sent, and copies what it saw first into records/, which the bundle can't reach. What
// the operator decides is that copy. If the bundle's file differs from it later, the
// request can't be approved any more.
//
// Every transition is one commit: the intent is written down, then audited, then made. A
// commit that was killed is finished by the next [Desk.Intake]; one that could not be
// audited did not happen.
package queue
