package pipelock_test

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bottle/bottle"
	"bottle/bottle/pipelock"
)

func TestReload(t *testing.T) {
	port := echo(t)
	r := start(t, nil, entry("a.test", port))
	first := r.started()
	if first.Daemon != "pipelock" || first.PID != os.Getpid() || first.Revision == "" || first.Listen != r.addr || first.Instance == "" {
		t.Errorf("first status %+v", first)
	}
	a, _ := r.connect(fmt.Sprintf("a.test:%d", port))
	ping(t, a)
	if _, ans := r.connect(fmt.Sprintf("b.test:%d", port)); ans.code != 403 {
		t.Fatalf("b.test before it is allowed: %+v", ans)
	}

	r.change(sealed(t, entry("a.test", port), entry("b.test", port)))
	wide := r.readStatus()
	if wide.Revision == first.Revision || wide.Refused != nil || wide.Instance != first.Instance {
		t.Errorf("after widening: %+v", wide)
	}
	if !strings.Contains(r.log.String(), `"msg":"config_reload","status":"success","config_hash":"`) {
		t.Error("config_reload is not in the log")
	}
	ping(t, a)
	b, ans := r.connect(fmt.Sprintf("b.test:%d", port))
	if b == nil {
		t.Fatalf("%+v", ans)
	}
	ping(t, b)

	for name, bad := range map[string]struct{ body, why string }{
		"empty":         {"", "empty"},
		"no mode":       {"api_allowlist: [evil.test]\n", "mode: missing"},
		"balanced":      {"mode: balanced\napi_allowlist: [evil.test]\n", "only strict"},
		"no seal":       {"mode: strict\napi_allowlist: [evil.test]\n", "not a revision line"},
		"a wrong seal":  {"mode: strict\napi_allowlist: [evil.test]\n# revision: sha256:" + strings.Repeat("0", 64) + "\n", "but the content is"},
		"nothing found": {"mode: strict\napi_allowlist: []\n", "bottle.invalid"},
	} {
		r.change([]byte(bad.body))
		s := r.readStatus()
		if s.Revision != wide.Revision || s.Refused == nil || !strings.Contains(s.Refused.Error, bad.why) {
			t.Errorf("%s: %+v %+v; want %q", name, s, s.Refused, bad.why)
		}
		ping(t, a)
		ping(t, b)
		if c, _ := r.connect(fmt.Sprintf("b.test:%d", port)); c == nil {
			t.Errorf("%s: the old table is not in force", name)
		}
	}

	r.change(sealed(t, entry("a.test", port)))
	if s := r.readStatus(); s.Revision != first.Revision || s.Refused != nil || s.Counters["cut"] == 0 {
		t.Errorf("after narrowing: %+v", s)
	}
	ping(t, a)
	if err := b.SetDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the tunnel to b.test lives on: %v", err)
	}
	if _, ans := r.connect(fmt.Sprintf("b.test:%d", port)); ans.code != 403 {
		t.Errorf("%+v", ans)
	}
}

func TestReloadCutsPlainStreams(t *testing.T) {
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "first")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	t.Cleanup(up.Close)
	port := portOf(t, up.Listener.Addr().String())
	r := start(t, nil, entry("a.test", port))
	resp, err := r.client().Do(newRequest(t, fmt.Sprintf("http://a.test:%d/", port)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadFull(resp.Body, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	r.change(sealed(t))
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("the stream ended as if it were whole")
	}
}

func TestStopDrains(t *testing.T) {
	port := echo(t)
	r := start(t, nil, entry("a.test", port))
	c, _ := r.connect(fmt.Sprintf("a.test:%d", port))
	ping(t, c)
	began := time.Now()
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 2*time.Second { // a second, and slack for a busy machine
		t.Errorf("stopping took %s", took)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the tunnel outlived the gate")
	}
}

func TestGateDoesNotStart(t *testing.T) {
	good := string(sealed(t, entry("a.test")))
	for name, tt := range map[string]struct {
		body   string
		change func(*pipelock.GateConfig)
		want   string
	}{
		"empty":           {"", nil, "empty"},
		"comments alone":  {"# nothing\n", nil, "comments alone"},
		"lost its mode":   {strings.Replace(good, "mode: strict\n", "", 1), nil, "mode: missing"},
		"audit mode":      {strings.Replace(good, "strict", "audit", 1), nil, "only strict"},
		"unsealed":        {string(bottle.Body([]byte(good))), nil, "revision line"},
		"edited":          {strings.Replace(good, "a.test", "b.test", 1), nil, "edited by hand"},
		"torn":            {good[:len(good)/2], nil, "pipelock.yaml"},
		"no logger":       {good, func(c *pipelock.GateConfig) { c.Logger = nil }, "Logger is required"},
		"no config":       {good, func(c *pipelock.GateConfig) { c.Config = "" }, "Config is required"},
		"no listener":     {good, func(c *pipelock.GateConfig) { c.Listener = nil }, "Listener is required"},
		"a missing file":  {good, func(c *pipelock.GateConfig) { c.Config += ".gone" }, "no such file"},
		"a bad resolve":   {good, func(c *pipelock.GateConfig) { c.Resolve = map[string]string{"a.test": "b"} }, "not an IP address"},
		"a bad host":      {good, func(c *pipelock.GateConfig) { c.Resolve = map[string]string{"a b": "127.0.0.1"} }, "resolve"},
		"every interface": {good, func(c *pipelock.GateConfig) { c.Listener = listenOn(t, ":0") }, "of a loopback address"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "pipelock.yaml")
			if err := os.WriteFile(path, []byte(tt.body), 0o600); err != nil {
				t.Fatal(err)
			}
			cfg := pipelock.GateConfig{Config: path, Listener: listenOn(t, "127.0.0.1:0"), Logger: slog.New(slog.DiscardHandler)}
			if tt.change != nil {
				tt.change(&cfg)
			}
			if _, err := pipelock.NewGate(cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v; want %q", err, tt.want)
			}
		})
	}
}

func TestKeptKeysAreNamed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipelock.yaml")
	b, _ := bottle.Seal([]byte("mode: strict\napi_allowlist: [a.test]\ndlp: {scan_env: true}\n"))
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	r := start(t, func(c *pipelock.GateConfig) { c.Config = path })
	get(t, http.DefaultClient, "http://"+r.addr+"/health")
	if !strings.Contains(r.log.String(), `"keys":["dlp"]`) {
		t.Errorf("no warning in %s", r.log)
	}
}
