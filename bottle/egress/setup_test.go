package egress_test

import (
	"net"
	"os"
	"strings"
	"testing"

	"bottle/bottle"
	"bottle/bottle/egress"
)

func TestConfigErrors(t *testing.T) {
	w := newWorld(t, []bottle.Route{whole("a.example.com")})
	for _, tc := range []struct {
		name string
		edit func(*egress.Config)
		want string
	}{
		{"no routes", func(c *egress.Config) { c.Routes = w.dir + "/none" }, "routes"},
		{"no logger", func(c *egress.Config) { c.Logger = nil }, "Logger"},
		{"nothing that names pipelock", func(c *egress.Config) { c.HopFile = "" }, "HopFile"},
		{"no hop", func(c *egress.Config) { c.HopFile = w.dir + "/none" }, "hop"},
		{"no way to report", func(c *egress.Config) { c.Report = nil }, "Report"},
		{"nowhere to listen", func(c *egress.Config) { c.Listener = nil }, "Listener"},
		{"no key socket", func(c *egress.Config) { c.KeyListener = nil }, "KeyListener"},
		{"not a TCP listener", func(c *egress.Config) { c.Listener = new(net.UnixListener) }, "a TCP one"},
		{"not a unix listener", func(c *egress.Config) { c.KeyListener = new(net.TCPListener) }, "unix socket"},
		{"bad roots", func(c *egress.Config) { c.UpstreamCA = []byte("x") }, "upstream_ca"},
		{"unreadable CA", func(c *egress.Config) { c.CACert = w.cfg.Routes }, "CA"},
		{"key of no CA", func(c *egress.Config) { c.CAKey = c.CACert }, "CA"},
		{"damaged spent.json", func(c *egress.Config) { c.SpentPath = c.Routes }, "spent"},
	} {
		cfg := w.cfg
		tc.edit(&cfg)
		if _, err := egress.New(cfg); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

func TestEnsureCA(t *testing.T) {
	dir := t.TempDir()
	cert, key := dir+"/ca.pem", dir+"/ca-key.pem"
	if err := egress.EnsureCA(cert, key, "one"); err != nil {
		t.Fatal(err)
	}
	for path, mode := range map[string]os.FileMode{cert: 0o644, key: 0o600} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v %v", path, st.Mode(), err)
		}
	}
	before, _ := os.ReadFile(cert)
	if err := egress.EnsureCA(cert, key, "one"); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.ReadFile(cert); string(after) != string(before) {
		t.Error("a CA that was there was replaced")
	}
	if err := os.WriteFile(key, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := egress.EnsureCA(cert, key, "one"); err == nil || !strings.Contains(err.Error(), key) || strings.Contains(err.Error(), "nonsense") {
		t.Errorf("a damaged key: %v", err)
	}
	if err := os.Remove(cert); err != nil { // as a crash between the two writes leaves it
		t.Fatal(err)
	}
	if err := egress.EnsureCA(cert, key, "one"); err != nil {
		t.Errorf("a key alone: %v", err)
	}
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	if err := egress.EnsureCA(cert, key, "one"); err == nil {
		t.Error("a certificate alone was accepted")
	}
}
