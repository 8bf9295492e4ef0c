package pipelock

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"bottle/bottle"
	"bottle/bottle/fdpass"
)

func (g *Gate) serve(w http.ResponseWriter, r *http.Request) {
	health := r.URL.Path == "/health" && !r.URL.IsAbs() && (r.Method == http.MethodGet || r.Method == http.MethodHead)
	switch {
	case health:
		g.health(w)
	case !bottle.ProxyAuthorized(r.Header["Proxy-Authorization"], g.cfg.Secret):
		w.Header().Set("Proxy-Authenticate", `Basic realm="pipelock"`)
		w.Header().Set("Connection", "close")
		g.refuse(w, http.StatusProxyAuthRequired, refusal{Reason: "this proxy belongs to the egress of a bottle"})
	case r.Method == http.MethodConnect:
		g.connect(w, r)
	case r.URL.IsAbs():
		g.plainHTTP(w, r)
	default:
		g.refuse(w, http.StatusBadRequest, refusal{Reason: "this is a forward proxy: use CONNECT or an absolute http URL"})
	}
}

func (g *Gate) health(w http.ResponseWriter) {
	g.mu.Lock()
	t := g.table
	g.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"status": "healthy", "mode": modeStrict, "revision": t.revision, "config_hash": t.rawHash})
}

// connect splices a tunnel to the target, byte for byte.
func (g *Gate) connect(w http.ResponseWriter, r *http.Request) {
	host, port, err := splitTarget(r.RequestURI, "")
	if err != nil {
		g.refuse(w, http.StatusBadRequest, refusal{Host: r.RequestURI, Reason: err.Error()})
		return
	}
	// Not the request's own context: that ends when the client closes its side, and a client
	// may do so at once, with all that it has to say in the same packet.
	ctx, end, why := g.admit(context.WithoutCancel(r.Context()), host, port)
	if why != nil {
		g.refuse(w, why.code, *why)
		return
	}
	defer end()
	up, err := g.dial(ctx, host, port)
	if err != nil {
		g.dialFailed(ctx, w, host, port, err)
		return
	}
	defer up.Close()
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		g.refuse(w, http.StatusInternalServerError, refusal{Host: string(host), Port: port, Reason: "the connection can't be taken over: " + err.Error()})
		return
	}
	defer g.release()
	defer conn.Close()
	_ = conn.SetDeadline(time.Time{})
	early := make([]byte, buf.Reader.Buffered())
	if _, err := buf.Read(early); err != nil && len(early) > 0 {
		return
	}
	client, isTCP := conn.(*net.TCPConn)
	t := &tunnel{host: host, port: port, since: time.Now().UTC().Truncate(time.Second), client: client, up: up}
	answer := "HTTP/1.1 200 Connection established\r\n"
	if token := r.Header.Get(fdpass.Header); token != "" && isTCP && len(early) == 0 && g.pass(token, up) {
		t.leash = true
		answer += fdpass.Header + ": " + token + "\r\n"
	}
	if _, err := io.WriteString(conn, answer+"\r\n"); err != nil {
		if t.leash {
			t.letGo(ctx)
		}
		return
	}
	if _, err := up.Write(early); err != nil {
		return
	}
	g.counters.allowed.Add(1)
	g.chatter.Debug("tunnel", "host", host, "port", port, "address", up.RemoteAddr().String())
	if !isTCP {
		splice(ctx, conn, up)
		return
	}
	g.carry(ctx, t)
}

// pass gives egress the connection that it asked for. Where that can't be done at once, what
// flows there flows through the gate.
func (g *Gate) pass(token string, up *net.TCPConn) bool {
	if g.cfg.Pass == nil {
		return false
	}
	if err := fdpass.TrySend(g.cfg.Pass, []byte(token), up); err != nil {
		g.chatter.Warn("a connection could not be passed to egress and goes through the gate", "error", err.Error())
		return false
	}
	g.counters.passed.Add(1)
	return true
}

type targetKey struct{}

type target struct {
	host bottle.Host
	port int
}

// plainHTTP forwards one request for an absolute http URL. A redirect is the client's to
// follow, so it goes back as it came.
func (g *Gate) plainHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Scheme != "http" || r.URL.User != nil {
		g.refuse(w, http.StatusBadRequest, refusal{Host: r.URL.Host, Reason: "an absolute URL is for http without userinfo; use CONNECT for https"})
		return
	}
	host, port, err := splitTarget(r.URL.Host, "80")
	if err != nil {
		g.refuse(w, http.StatusBadRequest, refusal{Host: r.URL.Host, Reason: err.Error()})
		return
	}
	ctx, end, why := g.admit(r.Context(), host, port)
	if why != nil {
		g.refuse(w, why.code, *why)
		return
	}
	defer end()
	g.forward.ServeHTTP(w, r.WithContext(context.WithValue(ctx, targetKey{}, target{host, port})))
}

// newForward builds the forwarder of plain requests. [httputil.ReverseProxy] removes
// hop-by-hop headers (RFC 9110, 7.6.1), flushes streams and passes upgrades on.
func (g *Gate) newForward() {
	g.plain = &http.Transport{
		Proxy:                  nil, // never around this process, whatever the environment says
		DisableCompression:     true,
		MaxIdleConns:           100,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxResponseHeader,
		ResponseHeaderTimeout:  0, // an upstream may think as long as it likes; the client decides
		// The key of a pooled connection is host:port, and both came through admit.
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			host, port, err := splitTarget(addr, "")
			if err != nil {
				return nil, err
			}
			return g.dial(ctx, host, port)
		},
	}
	g.forward = &httputil.ReverseProxy{
		Transport:     g.plain,
		FlushInterval: -1,
		ErrorLog:      slog.NewLogLogger(g.chatter.Handler(), slog.LevelDebug),
		Rewrite: func(p *httputil.ProxyRequest) {
			t, _ := p.In.Context().Value(targetKey{}).(target)
			p.Out.URL.Host = string(t.host)
			if t.port != 80 {
				p.Out.URL.Host += ":" + strconv.Itoa(t.port)
			}
			p.Out.Host = p.Out.URL.Host
			p.Out.URL.RawQuery = p.In.URL.RawQuery // which net/http cleans; it is not ours to judge
			for k := range p.Out.Header {
				// To CGI (RFC 3875, 4.1.18) and what came of it, this is a second frame for the body.
				switch strings.ToLower(k) {
				case "content_length", "transfer_encoding":
					delete(p.Out.Header, k)
				}
			}
			for _, k := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
				if v, ok := p.In.Header[k]; ok { // not ours to take away or add
					p.Out.Header[k] = v
				}
			}
			if _, ok := p.Out.Header["User-Agent"]; !ok {
				p.Out.Header["User-Agent"] = nil
			}
		},
		ModifyResponse: func(res *http.Response) error {
			if res.StatusCode < http.StatusContinue { // which net/http can't pass on
				return fmt.Errorf("the answer's status is %03d, which is none", res.StatusCode)
			}
			res.Header.Del("X-Bottle-Layer") // an upstream can't speak for the gate
			g.counters.allowed.Add(1)
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			t, _ := r.Context().Value(targetKey{}).(target)
			g.dialFailed(r.Context(), w, t.host, t.port, err)
		},
	}
}

// splitTarget takes an authority apart, strictly: the name must be canonical but for case
// and a final dot, the port plain decimal.
func splitTarget(s, defaultPort string) (bottle.Host, int, error) {
	name, portText := s, defaultPort
	if i := strings.LastIndexByte(s, ':'); i >= 0 {
		name, portText = s[:i], s[i+1:]
	}
	if portText == "" {
		return "", 0, fmt.Errorf("%q names no port", clip(s))
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || port == 0 || portText[0] == '0' {
		return "", 0, fmt.Errorf("%q is not a port", clip(portText))
	}
	host, err := bottle.ParseHost(name)
	if err != nil {
		return "", 0, err
	}
	return host, int(port), nil
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80]
	}
	return s
}

// A refusal is the body of an answer that the gate makes itself.
type refusal struct {
	Layer  string `json:"layer"`
	Host   string `json:"host"`
	Port   int    `json:"port,omitempty"`
	Reason string `json:"reason"`
	code   int    // to answer with, if it is not said otherwise
}

// dialFailed tells a name that leads where it must not (403) from one that leads nowhere
// (502) or did not answer (504), from a gate that has no descriptors left (503), and from a flow that was cut before it was connected.
func (g *Gate) dialFailed(ctx context.Context, w http.ResponseWriter, host bottle.Host, port int, err error) {
	v := refusal{Host: string(host), Port: port, Reason: err.Error()}
	var (
		forbidden *forbiddenError
		timeout   interface{ Timeout() bool }
	)
	switch cause := context.Cause(ctx); {
	case errors.As(err, &forbidden), errors.Is(cause, errForbidden):
		if errors.Is(cause, errForbidden) {
			v.Reason = fmt.Sprintf("%s is %s", host, errForbidden)
		}
		g.refuse(w, http.StatusForbidden, v)
	case errors.Is(cause, errStopping):
		v.Reason = errStopping.Error()
		g.refuse(w, http.StatusServiceUnavailable, v)
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		v.Reason = "the gate has no descriptors left to connect with; close some connections and try again"
		g.refuse(w, http.StatusServiceUnavailable, v)
	case errors.As(err, &timeout) && timeout.Timeout():
		g.refuse(w, http.StatusGatewayTimeout, v)
	default:
		if op := (*net.OpError)(nil); errors.As(err, &op) && op.Op != "dial" {
			v.Reason = "its answer: " + op.Err.Error() // without the addresses, of which the gate's is nobody's business
		}
		g.refuse(w, http.StatusBadGateway, v)
	}
}

func (g *Gate) refuse(w http.ResponseWriter, code int, v refusal) {
	v.Layer, v.Host = bottle.DaemonPipelock, clip(v.Host)
	if code == http.StatusForbidden {
		g.counters.refused.Add(1)
	} else {
		g.counters.failed.Add(1)
	}
	g.chatter.Info("refused", "code", code, "host", v.Host, "port", v.Port, "reason", v.Reason)
	b, err := json.Marshal(v)
	if err != nil { // a struct of strings and a number
		b = []byte(`{"layer":"pipelock"}`)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("X-Bottle-Layer", bottle.DaemonPipelock)
	h.Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(code)
	_, _ = w.Write(b)
}
