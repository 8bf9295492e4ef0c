// Package bench measures egress beside other proxies, all in one run.
//
// # Method
//
// Each proxy is a process of its own, as in a bundle; clients and upstreams share one, which
// measures. So "direct" is what clients and upstream cost by themselves, and what a proxy adds
// competes with them for the machine's cores as it does in life.
//
// A proxy and "direct" take turns, a few times in each measurement, so that what else the machine does
// hits both. Compare ratios ("x-direct", and the table at the end), not rates of different
// days. The processor time of the proxy's processes ("cpu-us/op") depends least on the rest.
//
// Clients are bare sockets with TLS, one request at a time each: they should cost less than
// what they measure. "kept" is a request on an open connection, "new" is TCP, CONNECT,
// a full TLS handshake, a request and a close, and "resumed" the same with a TLS session of before.
// Every certificate is verified, by clients and by proxies.
//
// "egress" alone sends what goes out to the upstream itself, which answers the CONNECT in pipelock's
// place; "egress+gate" goes by the built-in gate, which passes on what it dials; goproxy, which asks for
// nothing, goes through it. Both of ours have 1,000 routes, and secrets as
// in a bundle.
package bench
