package egress_test

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"bottle/bottle"
)

// A program is one of those that agents use, as it runs in the sandbox.
func (w *world) program(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%v: make test installs it", err)
	}
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Dir = dir
	cmd.Env = []string{
		"HTTPS_PROXY=" + w.proxy().String(), "https_proxy=" + w.proxy().String(), "http_proxy=" + w.proxy().String(),
		"CURL_CA_BUNDLE=" + w.cfg.CACert, "GIT_SSL_CAINFO=" + w.cfg.CACert, "NODE_EXTRA_CA_CERTS=" + w.cfg.CACert,
		"GIT_TERMINAL_PROMPT=0", "GIT_CONFIG_NOSYSTEM=1", "HOME=" + dir, "PATH=/usr/local/bin:/usr/bin:/bin",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com",
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Logf("%s %q: %v", name, args, err)
	}
	return string(out)
}

func TestCurlByBothProtocols(t *testing.T) {
	w := newWorld(t, []bottle.Route{below("new.example.com", "/v1"), whole("old.example.com")}, withSecret)
	w.upstream2("new.example.com", protocols)
	w.upstream("old.example.com", protocols)
	for _, tc := range []struct{ flag, url, want string }{
		{"--http2", "https://new.example.com/v1", "HTTP/2.0 from new.example.com 2 200"},
		{"--http1.1", "https://new.example.com/v1", "HTTP/1.1 from new.example.com 1.1 200"},
		{"--http2", "https://old.example.com/", "HTTP/1.1 from old.example.com 1.1 200"},
		{"--http2", "https://new.example.com/v2", "request_allowlist_change"},
		{"--http2", "https://else.example.com/", "no route allows the host else.example.com"},
	} {
		if out := w.program(t, t.TempDir(), "curl", "-sS", tc.flag, "-w", " %{http_version} %{http_code}", tc.url); !strings.Contains(out, tc.want) {
			t.Errorf("%s %s: %s", tc.flag, tc.url, out)
		}
	}
	// One connection, several streams.
	out := w.program(t, t.TempDir(), "curl", "-sS", "--http2", "-Z", "-w", " %{http_version}\n", "https://new.example.com/v1/[1-20]")
	if n := strings.Count(out, "HTTP/2.0 from new.example.com"); n != 20 {
		t.Errorf("%d of 20: %s", n, out)
	}
}

// git clones and fetches over HTTP/2, and pushes only where its route says so.
func TestGitByBothProtocols(t *testing.T) {
	repo := func(method, path string, q ...bottle.QueryMatch) bottle.Match {
		return bottle.Match{Method: method, Path: &bottle.PathMatch{Type: bottle.Exact, Value: path}, Query: q}
	}
	w := newWorld(t, []bottle.Route{{Host: "git.example.com", Matches: []bottle.Match{
		repo("GET", "/app.git/info/refs", bottle.QueryMatch{Name: "service", Value: "git-upload-pack"}),
		repo("POST", "/app.git/git-upload-pack"),
	}}}, withSecret)
	dir := t.TempDir()
	git := func(args ...string) string {
		t.Helper()
		return w.program(t, dir, "git", args...)
	}
	git("init", "-q", "--bare", "app.git")
	git("init", "-q", "-b", "main", "work")
	if err := os.WriteFile(filepath.Join(dir, "work", "file"), bytes.Repeat([]byte("0123456789abcdef\n"), 20_000), 0o600); err != nil {
		t.Fatal(err)
	}
	git("-C", "work", "add", "file")
	git("-C", "work", "commit", "-q", "-m", "one")
	git("-C", "work", "push", "-q", filepath.Join(dir, "app.git"), "main")
	git("--git-dir", "app.git", "symbolic-ref", "HEAD", "refs/heads/main")

	backend := &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(git("--exec-path")), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=a"},
	}
	seen := make(chan string, 100)
	w.upstream2("git.example.com", func(rw http.ResponseWriter, r *http.Request) {
		seen <- r.Proto
		// CGI wants a length, and git sends what is long in chunks.
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		if r.Header.Get("Content-Encoding") == "gzip" {
			if z, err := gzip.NewReader(bytes.NewReader(b)); err == nil {
				b, _ = io.ReadAll(z)
			}
			r.Header.Del("Content-Encoding")
		}
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(b)), int64(len(b))
		backend.ServeHTTP(rw, r)
	})
	for version, proto := range map[string]string{"HTTP/2": "HTTP/2.0", "HTTP/1.1": "HTTP/1.1"} {
		clone := "clone-" + proto[5:]
		out := git("-c", "http.version="+version, "clone", "-q", "https://git.example.com/app.git", clone)
		if st, err := os.Stat(filepath.Join(dir, clone, "file")); err != nil || st.Size() != 17*20_000 {
			t.Fatalf("%s: %v: %s", version, err, out)
		}
		for n := len(seen); n > 0; n-- {
			if got := <-seen; got != proto {
				t.Errorf("%s: the upstream was asked by %s", version, got)
			}
		}
		out = git("-C", clone, "-c", "http.version="+version, "push", "origin", "main:other")
		if !strings.Contains(out, "query parameter") || !strings.Contains(out, "request_allowlist_change") || len(seen) != 0 {
			t.Errorf("%s: a push: %s", version, out)
		}
	}
}

// node's HTTP/2 client, several streams on one session; the CONNECT is made by hand, as in
// each of its versions one has to.
func TestNodeByHTTP2(t *testing.T) {
	w := newWorld(t, []bottle.Route{below("new.example.com", "/v1")}, withSecret)
	w.upstream2("new.example.com", protocols)
	const script = `
const http = require('http'), tls = require('tls'), http2 = require('http2');
const proxy = new URL(process.env.https_proxy), host = 'new.example.com';
const headers = {'proxy-authorization': 'Basic ' + btoa(proxy.username + ':' + proxy.password)};
http.request({host: proxy.hostname, port: proxy.port, method: 'CONNECT', path: host + ':443', headers}).on('connect', (res, socket) => {
  const session = http2.connect('https://' + host, {createConnection: () => tls.connect({socket, servername: host, ALPNProtocols: ['h2']})});
  let left = 3;
  for (const h of [{':path': '/v1/a'}, {':path': '/v2'}, {':path': '/v1/b', ':authority': 'else.example.com'}]) {
    const r = session.request(h);
    let status, b = '';
    r.on('response', h => status = h[':status']).on('data', d => b += d).on('end', () => {
      console.log(h[':path'], status, b.split('\n')[0]);
      if (--left === 0) { session.close(); socket.end(); }
    });
  }
}).end();`
	out := w.program(t, t.TempDir(), "node", "-e", script)
	for _, want := range []string{"/v1/a 200 HTTP/2.0 from new.example.com", "/v2 403 blocked by bottle", "/v1/b 421 blocked by bottle"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in %s", want, out)
		}
	}
}
