package egress_test

import (
	"io"
	"net/http"
	"os/exec"
	"strings"
	"testing"

	"bottle/bottle"
)

// The programs that agents use must show a refusal as it was written: which layer, why, and
// the call that would ask for more. They show nothing of a refused CONNECT.
func TestRefusalAsProgramsShowIt(t *testing.T) {
	w := newWorld(t, []bottle.Route{below("api.example.com", "/v1")}, withSecret)
	w.upstream("api.example.com", func(rw http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/info/refs") { // of a git server that speaks the old protocol, over files
			_, _ = io.WriteString(rw, strings.Repeat("1", 40)+"\tHEAD\n")
			return
		}
		hello(rw, r)
	})
	env := []string{
		"HTTPS_PROXY=" + w.proxy().String(), "https_proxy=" + w.proxy().String(), "http_proxy=" + w.proxy().String(),
		"CURL_CA_BUNDLE=" + w.cfg.CACert, "GIT_SSL_CAINFO=" + w.cfg.CACert, "NODE_EXTRA_CA_CERTS=" + w.cfg.CACert, "NODE_USE_ENV_PROXY=1",
		"GIT_TERMINAL_PROMPT=0", "GIT_CONFIG_NOSYSTEM=1", "HOME=" + t.TempDir(), "PATH=/usr/local/bin:/usr/bin:/bin",
	}
	run := func(t *testing.T, name string, args ...string) string {
		t.Helper()
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatalf("%v: make test installs it", err)
		}
		cmd := exec.CommandContext(t.Context(), path, args...)
		cmd.Env = env
		out, _ := cmd.CombinedOutput() // git and curl -f exit with a code of their own
		return string(out)
	}
	shown := func(t *testing.T, out string, want ...string) {
		t.Helper()
		for _, s := range append(want, "layer: egress", "request_allowlist_change", `"add":[{"host":"`) {
			if !strings.Contains(out, s) {
				t.Errorf("%q is not in what it shows:\n%s", s, out)
			}
		}
	}
	t.Run("curl", func(t *testing.T) {
		if out := run(t, "curl", "-sS", "https://api.example.com/v1/models"); out != "hello from api.example.com" {
			t.Errorf("allowed: %s", out)
		}
		shown(t, run(t, "curl", "-sS", "https://api.example.com/v2/models"), "https://api.example.com/v2/models", "/v1")
		shown(t, run(t, "curl", "-sS", "https://forbidden.example.net/"), "no route allows the host forbidden.example.net")
		shown(t, run(t, "curl", "-sS", "http://forbidden.example.net/"), "no route allows the host forbidden.example.net")
		shown(t, run(t, "curl", "-sS", "--fail-with-body", "-X", "POST", "-d", "x=y", "https://api.example.com/v1/models"), "POST")
	})
	t.Run("git", func(t *testing.T) {
		shown(t, run(t, "git", "ls-remote", "https://forbidden.example.net/acme/app.git"), "remote: ", "/acme/app.git/info/refs")
		if out := run(t, "git", "ls-remote", "https://api.example.com/v1/app.git"); !strings.Contains(out, "HEAD") {
			t.Errorf("allowed: %s", out)
		}
	})
	t.Run("node", func(t *testing.T) {
		// node's own HTTPS client, with the CONNECT made by hand: this works in each version.
		const script = `
const http = require('http'), tls = require('tls'), https = require('https');
const [host, path] = process.argv.slice(1);
const proxy = new URL(process.env.https_proxy);
const headers = {'proxy-authorization': 'Basic ' + btoa(proxy.username + ':' + proxy.password)};
http.request({host: proxy.hostname, port: proxy.port, method: 'CONNECT', path: host + ':443', headers}).on('connect', (res, socket) => {
  https.get({host, path, defaultPort: 443, port: 443, createConnection: () => tls.connect({socket, servername: host})}, r => {
    let b = ''; r.on('data', d => b += d); r.on('end', () => { console.log(r.statusCode, b); socket.end(); });
  }).on('error', e => { console.log('error', e.message); process.exit(1); });
}).end();`
		out := run(t, "node", "-e", script, "forbidden.example.net", "/a/b")
		shown(t, out, "403 ", "no route allows the host forbidden.example.net")
		if out := run(t, "node", "-e", script, "api.example.com", "/v1/x"); strings.TrimSpace(out) != "200 hello from api.example.com" {
			t.Errorf("allowed: %s", out)
		}
	})
	for _, target := range w.gate.targets() {
		if target != "api.example.com:443" {
			t.Errorf("dialled %s", target)
		}
	}
}
