package main_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mark3labs/mcp-go/client"
	"github.com/mark3labs/mcp-go/mcp"

	"bottle/bottle"
	"bottle/bottle/launch"
)

// stepTimeout bounds a step of a script: far beyond what any takes, so that only what
// hangs fails by it.
const stepTimeout = 20 * time.Second

// An agent is the sandbox's side of a script: an MCP client over a real bottle-mcp, and an
// HTTPS client that knows the proxy and the CA of its environment and no more.
type agent struct {
	mcp    *client.Client
	http   *http.Client
	stream io.ReadCloser
	calls  map[string]chan reply // in the background
}

// A reply is the result of a tool call, or its error.
type reply struct {
	text    string // the structured result and the text, as a script reads them
	id      string
	isError bool
	err     error
}

func newAgent(state, name string) (*agent, error) {
	dir, err := bottle.NewDir(filepath.Join(state, name))
	if err != nil {
		return nil, err
	}
	env, err := launch.AgentEnv(dir)
	if err != nil {
		return nil, err
	}
	vars := map[string]string{}
	for _, kv := range env {
		k, v, _ := strings.Cut(kv, "=")
		vars[k] = v
	}
	c, err := httpClient(vars["HTTPS_PROXY"], vars["SSL_CERT_FILE"])
	if err != nil {
		return nil, err
	}
	bridge := filepath.Join(programs, "bottle-mcp")
	m, err := client.NewStdioMCPClient(bridge, append(env, "PATH="+os.Getenv("PATH")), "--socket", vars["BOTTLE_MCP_SOCKET"])
	if err != nil {
		return nil, err
	}
	a := &agent{mcp: m, http: c, calls: map[string]chan reply{}}
	ctx, cancel := context.WithTimeout(context.Background(), stepTimeout)
	defer cancel()
	var init mcp.InitializeRequest
	init.Params.ProtocolVersion = "2025-11-25"
	init.Params.ClientInfo = mcp.Implementation{Name: "script", Version: "1"}
	hello, err := m.Initialize(ctx, init)
	if err == nil && hello.ServerInfo.Version == "0" {
		err = errors.New("the server does not say its version")
	}
	if err != nil {
		a.close()
		return nil, fmt.Errorf("initialize over bottle-mcp: %w", err)
	}
	return a, nil
}

func httpClient(proxy, caFile string) (*http.Client, error) {
	u, err := url.Parse(proxy)
	if err != nil {
		return nil, err
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: no certificate", caFile)
	}
	return &http.Client{
		Timeout: stepTimeout,
		Transport: &http.Transport{
			Proxy: http.ProxyURL(u), DisableKeepAlives: true,
			TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		},
	}, nil
}

func (a *agent) close() {
	if a.stream != nil {
		_ = a.stream.Close()
	}
	_ = a.mcp.Close()
	for _, c := range a.calls {
		<-c // its call ended with the client
	}
}

func (a *agent) call(tool, args string) reply {
	ctx, cancel := context.WithTimeout(context.Background(), stepTimeout)
	defer cancel()
	var req mcp.CallToolRequest
	req.Params.Name, req.Params.Arguments = tool, json.RawMessage(args)
	res, err := a.mcp.CallTool(ctx, req)
	if err != nil {
		return reply{err: err}
	}
	r := reply{isError: res.IsError}
	if m, ok := res.StructuredContent.(map[string]any); ok {
		r.id, _ = m["id"].(string)
		b, err := json.MarshalIndent(m, "", " ")
		if err != nil {
			return reply{err: err}
		}
		r.text = string(b) + "\n"
	}
	for _, c := range res.Content {
		if t, ok := c.(mcp.TextContent); ok {
			r.text += t.Text + "\n"
		}
	}
	return r
}

// get sends a request through the bottle and returns the status and the body, or what the
// client says of a connection that came to nothing.
func (a *agent) get(method, to string) (int, string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), stepTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, to, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := a.http.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode, string(b), err
}

// open starts reading an endless response, and returns once its first line is there.
func (a *agent) open(to string) error {
	req, err := http.NewRequest(http.MethodGet, to, nil) //nolint:noctx // bounded by the client's Timeout
	if err != nil {
		return err
	}
	resp, err := a.http.Do(req) //nolint:bodyclose // cut reads it, and close closes it
	if err != nil {
		return err
	}
	a.stream = resp.Body
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	_, err = bufio.NewReader(resp.Body).ReadString('\n')
	return err
}

// cut reads the stream to its end, which must come, and be an unclean one.
func (a *agent) cut() error {
	if a.stream == nil {
		return errors.New("no stream is open")
	}
	began := time.Now()
	_, err := io.Copy(io.Discard, a.stream)
	switch {
	case err == nil:
		return errors.New("the stream came to a clean end")
	case time.Since(began) > stepTimeout/2:
		return fmt.Errorf("the stream was not cut: %w", err)
	}
	return nil
}

// fetchMain is an agent's program: it gets a URL with what its environment says of proxies
// and CAs, as curl would, and exits with 22 for a status of 400 or more.
func fetchMain() {
	client, err := httpClient(os.Getenv("HTTPS_PROXY"), os.Getenv("SSL_CERT_FILE"))
	if err == nil {
		a := &agent{http: client}
		var status int
		var body string
		if status, body, err = a.get(http.MethodGet, os.Args[1]); err == nil {
			fmt.Println(status, body)
			if status >= 400 {
				os.Exit(22)
			}
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "fetch:", err)
		os.Exit(1)
	}
}
