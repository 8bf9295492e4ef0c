// Package egress is the agent's only way to HTTP(S): a forward proxy that judges every
// request by the routes in force before anything is resolved or dialled.
//
// # Model
//
// A CONNECT opens a tunnel. Its target, the TLS server name in it and the Host of every
// request in it must name the same host and port; anything else is fronting and refused.
// On an intercepted route egress ends the TLS with the bottle's own CA and judges each
// request on its own; on a passthrough route it reads the ClientHello, then splices. A
// tunnel to a host that no route names is accepted all the same and every request in it
// is refused inside the TLS, since curl, git and node show nothing of a refused CONNECT.
// Plain requests (absolute-form, http) are judged alike. All that is allowed goes on by
// way of pipelock, which alone resolves and dials; the built-in one passes on what it has
// dialled ([passed]).
//
// The routes are one immutable snapshot behind an atomic pointer. What is open (an
// exchange, a spliced tunnel, an upgraded stream) is registered together with the
// question that allowed it; a reload, or the end of a grant, asks that question again
// and cuts what is no longer allowed, and nothing else. See [registry].
//
// Which pipelock that is may change: a reload first goes over to the one that hop.json names,
// on connections of its own. What is under way stays with the old one, whose connections are
// closed as they come free, so that it drains. A dial that finds nobody is tried again for
// two seconds, by the address of then; what may have been sent is never repeated for that, and
// nothing goes around pipelock. See [hop] and [upstreams.use].
//
// The sockets are not egress' own: init makes them and holds them too, so that those who come
// while egress is replaced wait in the backlog and are served by the next one. What is in
// force is reported to init, once it is so.
//
// # Trust
//
// Everything from the agent is hostile: its bytes are framed strictly before net/http
// sees them ([wireConn]), its text is bounded and escaped where it is kept, its memory is
// bounded. routes.yaml, the CA and the credentials come from the host. A credential is
// held in memory alone, arrives over a private socket from the host's uid, leaves over
// verified TLS to one of its own hosts alone, and is in no log, error, status or answer.
// What was sent of it is overwritten where an upstream echoes it; see [redact].
// pipelock is believed about refusals, not about content; upstreams about nothing.
//
// # What it says
//
// A line for each request and each tunnel in the access log ([accessLog]), which init keeps; counters in
// its status. Neither makes a request wait.
//
// # Why so
//
// Messages are parsed and written anew by net/http on both sides, never relayed as
// bytes, so that a request which two parsers could read in two ways does not get through
// as the agent wrote it. Bodies stream. Either side speaks HTTP/1.1 or HTTP/2: an agent that
// offers HTTP/2 is answered by what its upstream speaks, which is asked before the answer
// ([transports.learn]), so that gRPC and the like go through as they are and nothing is
// translated without need. Each stream is judged as a request of its own.
package egress
