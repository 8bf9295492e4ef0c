package pipelocktest_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// config is one that the real pipelock takes, with upstreams on loopback.
func config(hosts string, more ...string) string {
	return "version: 1\nmode: strict\nforward_proxy: {enabled: true}\nssrf: {ip_allowlist: [127.0.0.0/8]}\napi_allowlist: [" + hosts + "]\n" + strings.Join(more, "\n")
}

var (
	open   = config("localhost")
	closed = config("bottle.invalid")
)

// behaviours are what a supervisor of pipelock has to know of it.
var behaviours = []struct {
	name string
	test func(*testing.T, subject)
}{
	{"start", start},
	{"start says so before it can't listen", startTaken},
	{"start refused", startRefused},
	{"start on an empty file opens", startEmpty},
	{"start without mode opens", startWithoutMode},
	{"reload", reload},
	{"reload refused", reloadRefused},
	{"reload is no downgrade", reloadDowngrade},
	{"reload drops the newest", reloadLost},
	{"reload of the same is silent", reloadSame},
	{"watch", watch},
	{"wildcards", wildcards},
	{"tunnels outlive a narrowing", tunnels},
	{"SIGUSR1 closes all", killSwitch},
	{"end", end},
}

func TestBehaviour(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	subjects := []subject{{"stand-in", exe}}
	if program := os.Getenv("BOTTLE_PIPELOCK"); program != "" {
		subjects = append(subjects, subject{"real", program})
	} else {
		t.Log("BOTTLE_PIPELOCK names no real pipelock to compare with")
	}
	for _, s := range subjects {
		t.Run(s.name, func(t *testing.T) {
			for _, b := range behaviours {
				t.Run(b.name, func(t *testing.T) { t.Parallel(); b.test(t, s) })
			}
		})
	}
}

func start(t *testing.T, s subject) {
	p := s.start(t, open)
	first := p.lines()[0]
	if first.Event != "startup" || first.Hash != hash(open) || first.Mode != "strict" {
		t.Errorf("%+v", first)
	}
	if !strings.Contains(p.errors(), "Pipelock v") {
		t.Errorf("standard error: %s", p.errors())
	}
	code, health := p.get("/health")
	if code != http.StatusOK || !strings.Contains(health, `"status":"healthy"`) || !strings.Contains(health, `"mode":"strict"`) || strings.Contains(health, hash(open)) {
		t.Errorf("health: %d %s", code, health)
	}
	up := site(t)
	if code, body := p.through("http://" + up + "/"); code != http.StatusOK || body != "the site" {
		t.Errorf("http: %d %s", code, body)
	}
	if code, body := p.through("http://bottle.invalid/"); code != http.StatusForbidden || !strings.HasPrefix(body, "blocked: domain not in allowlist: bottle.invalid") {
		t.Errorf("http to a host that is not listed: %d %s", code, body)
	}
	if c, code, body := p.tunnel("127.0.0.1:443"); c != nil || code != http.StatusForbidden || !strings.Contains(body, "domain not in allowlist") {
		t.Errorf("tunnel to what is not listed: %d %s", code, body)
	}
	p.reload(config("127.0.0.1, localhost"))
	if c, code, body := p.tunnel(freeAddr(t)); c != nil || code != http.StatusBadGateway {
		t.Errorf("tunnel to a port where nobody listens: %d %s", code, body)
	}
}

func startTaken(t *testing.T, s subject) {
	first := s.start(t, open)
	second := &proc{t: t, addr: first.addr, live: first.live, unseen: first.unseen, done: make(chan struct{}), last: time.Now()}
	second.run(s)
	if code := second.exit(); code != 1 || !strings.Contains(second.errors(), "address already in use") {
		t.Errorf("code %d: %s", code, second.errors())
	}
	if second.count(func(l logLine) bool { return l.Event == "startup" }) != 1 {
		t.Errorf("%+v", second.lines())
	}
}

func startRefused(t *testing.T, s subject) {
	for config, want := range map[string]string{
		config(""):                               "strict mode requires at least one domain in api_allowlist",
		open + "nonsense: 1\n":                   "field nonsense not found",
		"mode: loose\n":                          `invalid mode "loose"`,
		open + "---\nmode: strict\n":             "multiple YAML documents",
		config("a.example.com") + "mode: strict": "already defined",
	} {
		p := s.launch(t, config)
		if code := p.exit(); code != 1 || !strings.Contains(p.errors(), want) || len(p.lines()) > 0 {
			t.Errorf("%q: code %d, %s %+v", config, code, p.errors(), p.lines())
		}
	}
}

// The fail-open that bottle's seal and parser close: no CONNECT, but another way out.
func startEmpty(t *testing.T, s subject) {
	p := s.start(t, "")
	if l := p.lines()[0]; l.Mode != "balanced" || l.Hash != hash("") {
		t.Errorf("%+v", l)
	}
	up := site(t)
	if _, code, _ := p.tunnel(up); code != http.StatusMethodNotAllowed {
		t.Errorf("CONNECT: %d", code)
	}
	if code, body := p.get("/fetch?url=http://" + up + "/"); code != http.StatusForbidden || !strings.Contains(body, "resolves to internal IP") {
		t.Errorf("fetch: %d %s; want it refused for the address, not for the name", code, body)
	}
}

func startWithoutMode(t *testing.T, s subject) {
	p := s.start(t, strings.Replace(closed, "mode: strict\n", "", 1))
	up := site(t)
	if code, body := p.through("http://" + up + "/"); code != http.StatusOK || body != "the site" {
		t.Errorf("a host that nobody listed: %d %s", code, body)
	}
	if code, body := p.get("/fetch?url=http://" + up + "/"); code != http.StatusOK || !strings.Contains(body, "the site") {
		t.Errorf("fetch: %d %s", code, body)
	}
}

func reload(t *testing.T, s subject) {
	p := s.start(t, closed)
	up := site(t)
	if code, _ := p.through("http://" + up + "/"); code != http.StatusForbidden {
		t.Errorf("before: %d", code)
	}
	p.reload(open)
	if code, body := p.through("http://" + up + "/"); code != http.StatusOK {
		t.Errorf("after: %d %s", code, body)
	}
	p.reload(closed)
	if code, _ := p.through("http://" + up + "/"); code != http.StatusForbidden {
		t.Errorf("after that: %d", code)
	}
}

func reloadRefused(t *testing.T, s subject) {
	p := s.start(t, open)
	for _, bad := range []string{config(""), open + "nonsense: 1\n", "{"} {
		before := strings.Count(p.errors(), "pipelock: config reload failed: ")
		p.write(bad)
		p.signal(syscall.SIGHUP)
		p.until("config reload failed", func() bool { return strings.Count(p.errors(), "pipelock: config reload failed: ") > before })
	}
	if code, body := p.through("http://" + site(t) + "/"); code != http.StatusOK {
		t.Errorf("what it had is not in force: %d %s", code, body)
	}
	if n := p.count(func(l logLine) bool { return l.Event != "startup" && l.Event != "forward_http" }); n > 0 {
		t.Errorf("%+v", p.lines())
	}
}

func reloadDowngrade(t *testing.T, s subject) {
	dir := t.TempDir()
	writeCA(t, filepath.Join(dir, "ca.pem"), filepath.Join(dir, "key.pem"))
	tls := func(passthrough string) string {
		return config("localhost", fmt.Sprintf("tls_interception: {enabled: true, ca_cert: %s/ca.pem, ca_key: %s/key.pem, passthrough_domains: [%s]}\n", dir, dir, passthrough))
	}
	for name, tt := range map[string]struct{ from, to string }{
		"trusted":      {open, config("localhost", "trusted_domains: [a.example.com]\n")},
		"passthrough":  {tls("localhost"), tls("localhost, a.example.com")},
		"ip_allowlist": {open, strings.Replace(open, "127.0.0.0/8", "127.0.0.0/8, 10.0.0.0/8", 1)},
		"mode":         {open, strings.Replace(open, "strict", "balanced", 1)},
		"empty":        {open, ""},
		"enforce":      {open, config("localhost", "enforce: false\n")},
	} {
		t.Run(name, func(t *testing.T) {
			p := s.start(t, tt.from)
			p.write(tt.to)
			p.signal(syscall.SIGHUP)
			p.until("rejection", func() bool { return p.count(rejected) == 2 }) // it is said twice
			if p.loaded(tt.to) > 0 {
				t.Errorf("%+v", p.lines())
			}
			// The other way round it takes, and a new process takes it as it is.
			p.write(tt.from)
			p.signal(syscall.SIGHUP)
			p.until("reload", func() bool { return p.loaded(tt.from) > 0 })
			s.start(t, tt.to)
		})
	}
}

// Several signals in a row: what comes to be in force is not what is in the file, in some
// rounds, until somebody signals again.
func reloadLost(t *testing.T, s subject) {
	p := s.start(t, open)
	for round := range 40 {
		var newest string
		for i := range 6 {
			newest = config("localhost", fmt.Sprintf("# %d %d\n", round, i))
			p.write(newest)
			p.signal(syscall.SIGHUP)
			<-time.After(2 * time.Millisecond) // the spacing is what is tried
		}
		p.quiet()
		if p.loaded(newest) > 0 {
			continue
		}
		p.signal(syscall.SIGHUP)
		p.until("the newest, signalled again", func() bool { return p.loaded(newest) > 0 })
		return
	}
	t.Error("the newest was never lost")
}

func reloadSame(t *testing.T, s subject) {
	p := s.start(t, open)
	p.reload(open) // the first is not silent
	p.signal(syscall.SIGHUP)
	p.quiet()
	if n := p.loaded(open); n != 1 {
		t.Errorf("loaded %d times", n)
	}
}

func watch(t *testing.T, s subject) {
	p := s.start(t, open)
	if err := os.WriteFile(p.live+".new", []byte(closed), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(p.live+".new", p.live); err != nil {
		t.Fatal(err)
	}
	p.until("reload without a signal", func() bool { return p.loaded(closed) == 1 })
}

func wildcards(t *testing.T, s subject) {
	p := s.start(t, config(`"*.localhost"`))
	if code, body := p.through("http://" + site(t) + "/"); code != http.StatusOK {
		t.Errorf("apex: %d %s", code, body)
	}
	for host, listed := range map[string]bool{"a.localhost": true, "c.b.a.localhost": true, "A.LOCALHOST": true, "alocalhost": false, "localhost.example.com": false} {
		_, _, body := p.tunnel(host + ":443") // whether the name resolves is not the question
		if strings.Contains(body, "not in allowlist") == listed {
			t.Errorf("%s: %s", host, body)
		}
	}
}

func tunnels(t *testing.T, s subject) {
	p := s.start(t, open)
	up := echo(t)
	c, code, body := p.tunnel(up)
	if c == nil {
		t.Fatalf("%d %s", code, body)
	}
	if err := echoes(c); err != nil {
		t.Fatal(err)
	}
	p.reload(closed)
	if err := echoes(c); err != nil {
		t.Errorf("after a reload that forbids the host: %v", err)
	}
	if c, code, _ := p.tunnel(up); c != nil || code != http.StatusForbidden {
		t.Errorf("a new tunnel: %d", code)
	}
}

// SIGUSR1 is what bottle's init takes for "replace pipelock". It must not pass it on.
func killSwitch(t *testing.T, s subject) {
	p := s.start(t, open)
	up := "http://" + site(t) + "/"
	for _, tt := range []struct {
		says string
		code int
	}{{"ACTIVATED", http.StatusServiceUnavailable}, {"DEACTIVATED", http.StatusOK}} {
		p.signal(syscall.SIGUSR1)
		p.until("kill switch", func() bool { return strings.Contains(p.errors(), "kill switch "+tt.says+" via SIGUSR1") })
		if code, body := p.through(up); code != tt.code {
			t.Errorf("%s: %d %s", tt.says, code, body)
		}
		if code, _ := p.get("/health"); code != http.StatusOK {
			t.Errorf("health, %s: %d", tt.says, code)
		}
	}
	p.signal(syscall.SIGUSR2) // swallowed
	p.reload(closed)
	p.signal(syscall.SIGTERM)
	if code := p.exit(); code != 0 {
		t.Errorf("code %d", code)
	}
}

// Told to end, it takes no more, and has ended with 0 once its tunnels have. A tunnel that
// stays can hold it up, or not: see TestTunnelHoldsUpTheEnd.
func end(t *testing.T, s subject) {
	p := s.start(t, open)
	c, code, body := p.tunnel(echo(t))
	if c == nil {
		t.Fatalf("%d %s", code, body)
	}
	if err := echoes(c); err != nil {
		t.Fatal(err)
	}
	p.signal(syscall.SIGTERM)
	p.until("nobody listens", func() bool { code, _ := p.get("/health"); return code == 0 })
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if code := p.exit(); code != 0 {
		t.Errorf("code %d", code)
	}
}
