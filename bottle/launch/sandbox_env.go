package launch

import (
	"net/url"
	"os"
	"os/exec"

	"bottle/bottle"
)

// What the agent finds in the local sandbox, beside the system's own directories.
const (
	sandboxHome  = "/home/agent"
	socketsDir   = "/run/bottle"     // the contents of run/agent
	bottleDir    = "/etc/bottle"     // the CA, mcp.json
	sandboxBin   = "/etc/bottle/bin" // bottle-mcp
	sandboxProxy = "127.0.0.1:3128"  // where egress is reached
	sandboxPath  = sandboxBin + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// shownVariables are the host's that the agent gets: how its terminal and its language are. All others
// stay out, tokens and the addresses of the operator's own sockets among them.
var shownVariables = []string{"TERM", "COLORTERM", "NO_COLOR", "LANG", "LC_ALL", "LC_CTYPE", "LC_MESSAGES", "LC_TIME", "TZ"}

// Env is the whole environment of an agent in the sandbox, before its own variables.
func (s *Sandbox) Env() []string {
	shell := "/bin/sh"
	if _, err := exec.LookPath("/bin/bash"); err == nil {
		shell = "/bin/bash"
	}
	env := []string{
		"PATH=" + sandboxPath, "HOME=" + sandboxHome, "USER=agent", "LOGNAME=agent", "SHELL=" + shell, "PWD=" + s.workspace,
		"BOTTLE_NAME=" + s.name, "BOTTLE_MCP_SOCKET=" + socketsDir + "/mcp.sock", "NODE_USE_ENV_PROXY=1",
	}
	for _, k := range shownVariables {
		if v, ok := os.LookupEnv(k); ok {
			env = append(env, k+"="+v)
		}
	}
	proxy := url.URL{Scheme: "http", User: bottle.ProxyUserinfo(s.secret), Host: sandboxProxy}
	for _, k := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"} {
		env = append(env, k+"="+proxy.String())
	}
	for _, k := range []string{"NO_PROXY", "no_proxy"} {
		env = append(env, k+"=localhost,127.0.0.1,::1")
	}
	for _, k := range caVariables {
		env = append(env, k+"="+bottleDir+"/ca-bundle.pem")
	}
	return env
}
