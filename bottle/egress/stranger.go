package egress

import (
	"log/slog"
	"net/http"
)

// challenge is Proxy-Authenticate (RFC 9110 section 11.7.1).
const challenge = `Basic realm="bottle"`

// stranger is the answer to who does not know the proxy's secret. It names nothing that was
// asked for, nor goes to the denials, which the agent reads: a stranger must not write there.
func (s *Server) stranger(method string) *refusal {
	return &refusal{
		status: http.StatusProxyAuthRequired, layer: layerEgress, method: method, failure: true, close: true,
		reason: "this proxy belongs to the agent of bottle " + s.cfg.Name + "; use the HTTP_PROXY of its environment",
	}
}

// turnAway answers a stranger's request. The challenge is for clients that send what they
// know only when they are asked, as git does.
func (s *Server) turnAway(w http.ResponseWriter, r *http.Request) {
	level := slog.LevelInfo
	if len(r.Header["Proxy-Authorization"]) == 0 { // most likely a client that waits to be asked
		level = slog.LevelDebug
	}
	s.chatter.Log(r.Context(), level, "turned away who does not know the proxy's secret", "method", printable(r.Method, maxShownMethod))
	s.stranger(r.Method).write(w, r.Header["Accept"])
}
