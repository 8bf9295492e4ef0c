package launch_test

import (
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"bottle/bottle"
	"bottle/bottle/launch"
)

// The proxy's secrets are of one start, for the owner's eyes, and only the agent's own is
// in the agent's environment.
func TestSecretsOfAStart(t *testing.T) {
	dir, err := bottle.NewDir(filepath.Join(t.TempDir(), "b"))
	if err != nil {
		t.Fatal(err)
	}
	if err := dir.Create(); err != nil {
		t.Fatal(err)
	}
	m := bottle.DefaultManifest()
	m.Name = "b"
	seen := map[string]bool{}
	for range 2 {
		if err := launch.Prepare(dir, m, launch.Files{}); err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(dir.BundleConfig())
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", st.Mode(), err)
		}
		var cfg bottle.BundleConfig
		if err := bottle.ReadJSON(dir.BundleConfig(), 0, &cfg); err != nil {
			t.Fatal(err)
		}
		for _, s := range []string{cfg.ProxySecret, cfg.GateSecret} {
			if len(s) < 26 || seen[s] { // 128 bits in base32
				t.Errorf("secret %q: short, or not new", s)
			}
			seen[s] = true
		}
		env, err := launch.AgentEnv(dir)
		if err != nil {
			t.Fatal(err)
		}
		proxy := url.URL{Scheme: "http", User: url.UserPassword("bottle", cfg.ProxySecret), Host: cfg.Egress}
		for _, name := range []string{"HTTP_PROXY", "https_proxy"} {
			if !slices.Contains(env, name+"="+proxy.String()) {
				t.Errorf("no %s=%s in %q", name, &proxy, env)
			}
		}
	}
}
