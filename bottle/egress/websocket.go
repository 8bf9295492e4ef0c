package egress

import (
	"crypto/sha1" //nolint:gosec // G505: RFC 6455 prescribes it
	"encoding/base64"
	"net/http"
	"strings"
)

// acceptsWebsocket reports whether a 101 is the answer to the websocket handshake with that
// key (RFC 6455 section 4.2.2). Any other stream could carry a protocol of requests that
// nobody would judge.
func acceptsWebsocket(res *http.Response, key string) bool {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11")) //nolint:gosec // G401: as above
	return strings.EqualFold(res.Header.Get("Upgrade"), "websocket") &&
		res.Header.Get("Sec-Websocket-Accept") == base64.StdEncoding.EncodeToString(sum[:])
}
