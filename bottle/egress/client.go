package egress

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"bottle/bottle"
)

const (
	clientTimeout = 10 * time.Second
	maxAnswer     = 32 << 20 // bytes; a table of 10,000 routes fits
)

// A Client asks an egress what it enforces, through its own proxy port, as anything in the
// sandbox may that has its secret. It meets mcp's Enforcer. Its zero value is invalid: Proxy is required.
type Client struct {
	Proxy  string // host:port of the egress
	Secret string // its Config.Secret
}

// Routes returns the routes in force.
func (c Client) Routes(ctx context.Context) (bottle.InForce, error) {
	var out bottle.InForce
	return out, c.get(ctx, "/routes", nil, &out)
}

// Denials returns the recent refusals, newest first, at most limit of them; 0 means all.
func (c Client) Denials(ctx context.Context, limit int) ([]bottle.Denial, error) {
	var out []bottle.Denial
	return out, c.get(ctx, "/denials", url.Values{"limit": {strconv.Itoa(limit)}}, &out)
}

// Check returns what would become of a request; an empty method is GET. A URL that is none
// is not an error: the answer says what is wrong with it.
func (c Client) Check(ctx context.Context, rawURL, method string) (bottle.Check, error) {
	var out bottle.Check
	return out, c.get(ctx, "/check", url.Values{"url": {rawURL}, "method": {method}}, &out)
}

// get asks once, on a connection of its own: the egress may be another process next time.
func (c Client) get(ctx context.Context, path string, query url.Values, into any) error {
	ctx, cancel := context.WithTimeout(ctx, clientTimeout)
	defer cancel()
	t := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", User: bottle.ProxyUserinfo(c.Secret), Host: c.Proxy}), DisableKeepAlives: true}
	u := url.URL{Scheme: "http", Host: bottle.EgressHost, Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return fmt.Errorf("ask egress: %w", err)
	}
	req.Header.Set("Accept", "application/json")
	res, err := t.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("ask egress at %s: %w", c.Proxy, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("ask egress at %s: %w", c.Proxy, err)
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("ask egress at %s: %s: %s", c.Proxy, res.Status, clip(string(b), 300))
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("ask egress at %s: its answer: %w", c.Proxy, err)
	}
	return nil
}
