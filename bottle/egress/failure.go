package egress

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
)

const (
	maxHopBody  = 16 << 10         // bytes of pipelock's refusal that are read
	layerHeader = "X-Bottle-Layer" // names who refused
)

// The layers that a refusal can come from.
const (
	layerEgress   = "egress"
	layerPipelock = "pipelock"
	layerUpstream = "upstream"
)

// A hopError is pipelock's answer to a CONNECT that it did not open.
type hopError struct {
	status int
	reason string
}

func (e *hopError) Error() string {
	return "pipelock: " + strconv.Itoa(e.status) + ": " + e.reason
}

// hopReason reads why pipelock refused: the reason of the built-in gate's JSON, or the
// text of another's answer.
func hopReason(res *http.Response) string {
	b, err := io.ReadAll(io.LimitReader(res.Body, maxHopBody))
	if err != nil && len(b) == 0 {
		return res.Status
	}
	var refusal struct {
		Reason string `json:"reason"`
		Error  string `json:"error"`
	}
	if json.Unmarshal(b, &refusal) == nil {
		if refusal.Reason != "" {
			return printable(refusal.Reason, maxShownReason)
		}
		if refusal.Error != "" {
			return printable(refusal.Error, maxShownReason)
		}
	}
	if text := strings.TrimSpace(string(b)); text != "" && len(b) < maxHopBody {
		return printable(text, maxShownReason)
	}
	return res.Status
}

// failed says why an exchange came to nothing, and whose fault it is.
func (ex *exchange) failed(err error) *refusal {
	n := ex.refusal(http.StatusBadGateway, "")
	n.failure, n.layer = true, layerUpstream
	var (
		hop     *hopError
		cert    *tls.CertificateVerificationError
		timeout interface{ Timeout() bool }
	)
	switch {
	case errors.As(err, &hop) && hop.status == http.StatusProxyAuthRequired:
		n.layer = layerPipelock
		n.reason = "pipelock does not know this egress: they were started with different secrets; stop and start the bottle"
	case exhausted(err):
		n.status, n.layer = http.StatusServiceUnavailable, layerEgress
		n.reason = "egress has no descriptors left to connect with; close some connections and try again"
	case errors.As(err, &hop) && hop.status == http.StatusServiceUnavailable:
		n.status, n.layer = hop.status, layerPipelock
		n.reason = hop.reason
	case errors.As(err, &hop) && hop.status >= 500:
		if hop.status == http.StatusGatewayTimeout {
			n.status = hop.status
		}
		n.reason = "pipelock could not reach " + ex.to().String() + ": " + hop.reason
	case errors.As(err, &hop):
		n.status, n.layer, n.failure = http.StatusForbidden, layerPipelock, false
		n.reason = hop.reason
		n.ask = suggest(ex.query)
	case errors.Is(err, errHopDown) && errors.Is(err, context.DeadlineExceeded):
		n.status, n.layer = http.StatusGatewayTimeout, layerPipelock
		n.reason = "pipelock, by which everything goes out, did not answer in time"
	case errors.Is(err, errHopDown):
		n.layer = layerPipelock
		n.reason = "pipelock, by which everything goes out, can't be reached: " + cause(err) + "; it is started anew by itself, so try again"
	case !ex.query.TLS && (passing(err) || errors.Is(err, net.ErrClosed) || closedUnasked(err)):
		// It would have said so if it were the upstream's doing. The request was sent, so it is
		// not repeated.
		n.layer = layerPipelock
		n.reason = "pipelock, by which everything goes out, closed the connection without an answer; the request may have arrived"
	case errors.As(err, &cert):
		n.reason = fmt.Sprintf("the certificate of %s is not trusted: %s; a private CA belongs in upstream_ca of the manifest", ex.query.Host, printable(cert.Err.Error(), 300))
	case errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		n.status = http.StatusGatewayTimeout
		n.reason = ex.to().String() + " did not answer in time"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		n.reason = ex.to().String() + " closed the connection without an answer"
	case ex.credential != "":
		// net/http quotes what it could not read, and an upstream can have put the secret there.
		n.reason = ex.to().String() + " sent what is no answer; it is not shown, since it could show the credential"
	default:
		n.reason = ex.to().String() + ": " + cause(err)
	}
	return n
}

// exhausted reports whether err is for want of descriptors, in this process or the whole system.
func exhausted(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}

// cause is an error's text without the address of pipelock, which is no business of the agent's.
func cause(err error) string {
	var (
		errno syscall.Errno
		op    *net.OpError
	)
	switch {
	case errors.As(err, &errno):
		return errno.Error()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the connection was closed"
	case errors.As(err, &op): // which may be around another one
		return cause(op.Err)
	}
	return printable(err.Error(), 300)
}

// closedUnasked is what net/http, which has no name for it, says of a new connection that was
// closed before the request was on its way.
func closedUnasked(err error) bool {
	return strings.HasSuffix(err.Error(), "server closed idle connection")
}
