package egress

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"bottle/bottle"
	"bottle/bottle/allow"
)

// A refusal is everything that is told of a request that did not go through.
type refusal struct {
	status  int
	layer   string
	host    string // canonical, or as asked
	port    int
	tls     bool
	method  string
	path    string // without the query, which may hold secrets
	reason  string
	nearest string
	ask     *bottle.Ask
	failure bool   // nothing was forbidden: something did not work
	close   bool   // the connection can't be used on
	entry   *entry // of the access log, if that has one which is under way
}

// The JSON of a refusal.
type refusalJSON struct {
	Error   string    `json:"error"`
	Layer   string    `json:"layer"`
	Host    string    `json:"host"`
	Port    int       `json:"port"`
	Method  string    `json:"method"`
	Path    string    `json:"path,omitempty"`
	Reason  string    `json:"reason"`
	Nearest string    `json:"nearest,omitempty"`
	Ask     *toolCall `json:"ask,omitempty"`
}

// A toolCall is an MCP call, ready to make.
type toolCall struct {
	Tool      string        `json:"tool"`
	Arguments toolArguments `json:"arguments"`
}

// toolArguments are the arguments of request_allowlist_change, of which a suggestion uses
// these. They are a [bottle.Ask] without what the tool itself adds.
type toolArguments struct {
	Add    []bottle.Entry `json:"add"`
	Reason string         `json:"reason"`
}

const askTool = "request_allowlist_change"

func (r *refusal) call() *toolCall {
	if r.ask == nil {
		return nil
	}
	return &toolCall{Tool: askTool, Arguments: toolArguments{Add: r.ask.Add, Reason: r.ask.Reason}}
}

// suggest returns the ready-made ask for q, or nil if none could let it through.
func suggest(q allow.Query) *bottle.Ask {
	ask := allow.SuggestAsk(q)
	if len(ask.Add) == 0 {
		return nil
	}
	return &ask
}

func (r *refusal) headline() string {
	if r.failure {
		return "bottle could not complete this request"
	}
	return "blocked by bottle"
}

func (r *refusal) json() []byte {
	b, err := marshal(refusalJSON{
		Error: r.headline(), Layer: r.layer, Host: printable(r.host, maxShownHost), Port: r.port,
		Method: printable(r.method, maxShownMethod), Path: printable(r.path, maxShownPath),
		Reason: r.reason, Nearest: r.nearest, Ask: r.call(),
	})
	if err != nil { // strings and numbers alone
		return []byte(`{"error":"blocked by bottle"}`)
	}
	return b
}

// text is for people, and for programs that show an error's text: curl does, git shows
// text/plain alone. An agent reads it there, so it holds the call too.
func (r *refusal) text() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s: %s\n", r.headline(), r.what())
	fmt.Fprintf(&b, "layer: %s\nreason: %s\n", r.layer, r.reason)
	if r.nearest != "" {
		fmt.Fprintf(&b, "nearest rule: %s\n", r.nearest)
	}
	if call := r.call(); call != nil {
		if args, err := marshal(call.Arguments); err == nil {
			fmt.Fprintf(&b, "to ask the operator for it, call the MCP tool %s with:\n%s\n", askTool, args)
		}
	}
	return b.Bytes()
}

func (r *refusal) what() string {
	method, path := printable(r.method, maxShownMethod), printable(r.path, maxShownPath)
	host := printable(r.host, maxShownHost)
	if r.port == 0 {
		return strings.TrimSpace(method + " " + host)
	}
	if method == http.MethodConnect {
		return "CONNECT " + host + ":" + strconv.Itoa(r.port)
	}
	if r.port != schemePort(r.tls) {
		host += ":" + strconv.Itoa(r.port)
	}
	return method + " " + scheme(r.tls) + "://" + host + path
}

// marshal is JSON on one line, with < and > as they are.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimRight(b.Bytes(), "\n"), nil
}

// write answers with the refusal: JSON if the client names it in Accept, else text.
func (r *refusal) write(w http.ResponseWriter, accept []string) {
	body, kind := r.text(), "text/plain; charset=utf-8"
	if strings.Contains(strings.ToLower(strings.Join(accept, ",")), "json") {
		body, kind = append(r.json(), '\n'), "application/json"
	}
	h := w.Header()
	clear(h)
	h.Set("Content-Type", kind)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set(layerHeader, r.layer)
	if r.status == http.StatusProxyAuthRequired {
		h.Set("Proxy-Authenticate", challenge)
	}
	if r.close {
		h.Set("Connection", "close")
	}
	w.WriteHeader(r.status)
	if r.method != http.MethodHead {
		_, _ = w.Write(body) //nolint:gosec // G705: JSON or plain text, nosniff; and a client that is gone needs no refusal
	}
}

// wire is the whole response as bytes, for where there is no ResponseWriter. It ends the
// connection.
func (r *refusal) wire() []byte {
	body := r.text()
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nCache-Control: no-store\r\n%s: %s\r\nConnection: close\r\n\r\n",
		r.status, http.StatusText(r.status), len(body), layerHeader, r.layer)
	b.Write(body)
	return b.Bytes()
}

// note records the refusal for /denials and, if it is the first of its kind, in the log.
// A failure is logged alone: there is nothing to ask for.
func (s *Server) note(r *refusal) {
	s.logRefusal(r)
	if !r.failure {
		first := s.denials.add(bottle.Denial{
			Host: r.host, Port: r.port, Method: r.method, Path: r.path, Layer: r.layer,
			Reason: r.reason, Nearest: r.nearest, Ask: r.ask,
		})
		if !first {
			return
		}
	}
	s.chatter.Info("request refused", "status", r.status, "layer", r.layer, "host", printable(r.host, maxShownHost), "port", r.port,
		"method", printable(r.method, maxShownMethod), "path", printable(r.path, maxShownPath), "reason", r.reason)
}
