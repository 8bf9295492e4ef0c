package pipelocktest_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"bottle/bottle/pipelock/pipelocktest"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "run" {
		os.Exit(pipelocktest.Main(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// quietTime is how long nothing must have been logged for us to say that nothing will be.
const quietTime = 300 * time.Millisecond

// A subject is one of the programs that the table is run against.
type subject struct{ name, program string }

// A proc is one run of it. The config is written through a second link in another directory,
// so that the watch on its own does not see it (as it sees nothing of a mounted file).
type proc struct {
	t            *testing.T
	cmd          *exec.Cmd
	addr         string
	live, unseen string
	done         chan struct{}

	mu     sync.Mutex
	out    []logLine
	stderr bytes.Buffer
	last   time.Time // of the last output
}

type logLine struct {
	Level, Component, Event, Mode, Status, Method, Error string
	Hash                                                 string `json:"config_hash"`
}

// launch starts the program on a config, and waits for nothing.
func (s subject) launch(t *testing.T, config string, env ...string) *proc {
	t.Helper()
	dir := t.TempDir()
	p := &proc{t: t, addr: freeAddr(t), live: filepath.Join(dir, "live", "pipelock.yaml"), unseen: filepath.Join(dir, "unseen", "pipelock.yaml"), done: make(chan struct{}), last: time.Now()}
	for _, f := range []string{p.live, p.unseen} {
		if err := os.Mkdir(filepath.Dir(f), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(p.live, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(p.live, p.unseen); err != nil {
		t.Fatal(err)
	}
	p.run(s, env...)
	return p
}

func (p *proc) run(s subject, env ...string) {
	p.t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(p.t.Context()), s.program, "run", "--config", p.live, "--listen", p.addr)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = writer(func(b []byte) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.stderr.Write(b)
		p.last = time.Now()
	})
	r, w := io.Pipe()
	cmd.Stdout = w
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	var reading sync.WaitGroup
	reading.Go(func() {
		for sc := bufio.NewScanner(r); sc.Scan(); {
			var l logLine
			if err := json.Unmarshal(sc.Bytes(), &l); err != nil || l.Component != "pipelock" {
				p.t.Errorf("%s: %v", sc.Bytes(), err)
			}
			p.mu.Lock()
			p.out = append(p.out, l)
			p.last = time.Now()
			p.mu.Unlock()
		}
	})
	p.cmd = cmd
	go func() {
		defer close(p.done)
		_ = cmd.Wait() // its code is looked at by those who care
		_ = w.Close()
		reading.Wait()
	}()
	p.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-p.done
	})
}

type writer func([]byte)

func (f writer) Write(b []byte) (int, error) { f(b); return len(b), nil }

// start launches and waits until it listens.
func (s subject) start(t *testing.T, config string, env ...string) *proc {
	t.Helper()
	p := s.launch(t, config, env...)
	p.up()
	return p
}

func (p *proc) up() {
	p.t.Helper()
	p.until("health", func() bool { code, _ := p.get("/health"); return code == http.StatusOK })
}

func (p *proc) until(what string, ok func() bool) {
	p.t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(15 * time.Second); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			p.t.Fatalf("did not happen in 15 s: %s\n%+v\n%s", what, p.lines(), p.errors())
		}
	}
}

// quiet waits until it has said nothing for a while.
func (p *proc) quiet() {
	p.t.Helper()
	from := time.Now()
	p.until("silence", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return time.Since(from) > quietTime && time.Since(p.last) > quietTime
	})
}

func (p *proc) lines() []logLine {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]logLine(nil), p.out...)
}

func (p *proc) errors() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stderr.String()
}

func (p *proc) count(ok func(logLine) bool) (n int) {
	for _, l := range p.lines() {
		if ok(l) {
			n++
		}
	}
	return n
}

// loaded tells how many times a reload put that config in force.
func (p *proc) loaded(config string) int {
	return p.count(func(l logLine) bool {
		return l.Event == "config_reload" && l.Status == "success" && l.Hash == hash(config)
	})
}

func rejected(l logLine) bool {
	return l.Level == "error" && l.Method == "CONFIG_RELOAD" && l.Error == "rejected: security downgrade from strict mode"
}

func hash(config string) string {
	sum := sha256.Sum256([]byte(config))
	return hex.EncodeToString(sum[:])
}

// write overwrites the config in place, and is not seen by a watch.
func (p *proc) write(config string) {
	p.t.Helper()
	f, err := os.OpenFile(p.unseen, os.O_WRONLY, 0)
	if err != nil {
		p.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(config), 0); err != nil {
		p.t.Fatal(err)
	}
	if err := f.Truncate(int64(len(config))); err != nil {
		p.t.Fatal(err)
	}
}

func (p *proc) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// reload writes a config and waits until it is in force.
func (p *proc) reload(config string) {
	p.t.Helper()
	before := p.loaded(config)
	p.write(config)
	p.signal(syscall.SIGHUP)
	p.until("config_reload", func() bool { return p.loaded(config) > before })
}

func (p *proc) exit() int {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(15 * time.Second):
		p.t.Fatal("does not end")
	}
	return p.cmd.ProcessState.ExitCode()
}

// get asks the program itself; 0 if there is no answer.
func (p *proc) get(path string) (code int, body string) {
	return p.do(http.DefaultTransport, "http://"+p.addr+path)
}

// through asks for a URL by way of the program.
func (p *proc) through(target string) (code int, body string) {
	tr := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: p.addr}), DisableKeepAlives: true}
	return p.do(tr, target)
}

func (p *proc) do(tr http.RoundTripper, target string) (code int, body string) {
	p.t.Helper()
	req, err := http.NewRequestWithContext(p.t.Context(), http.MethodGet, target, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	res, err := (&http.Client{Transport: tr, Timeout: 15 * time.Second}).Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, err.Error()
	}
	return res.StatusCode, string(b)
}

// tunnel opens one, or returns the refusal.
func (p *proc) tunnel(target string) (net.Conn, int, string) {
	p.t.Helper()
	c, err := (&net.Dialer{}).DialContext(p.t.Context(), "tcp", p.addr)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(15 * time.Second)); err != nil {
		p.t.Fatal(err)
	}
	if _, err := fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target); err != nil {
		p.t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: http.MethodConnect})
	if err != nil {
		p.t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusOK {
		return c, res.StatusCode, ""
	}
	b, err := io.ReadAll(res.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return nil, res.StatusCode, string(b)
}

// echoes reports whether the tunnel still carries bytes there and back.
func echoes(c net.Conn) error {
	const text = "more than a TLS record's head"
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	b := make([]byte, len(text))
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if string(b) != text {
		return errors.New("other bytes came back: " + string(b))
	}
	return nil
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// site is a web server by the one name that every machine resolves to itself.
func site(t *testing.T) (target string) {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "the site") }))
	t.Cleanup(srv.Close)
	_, port, _ := strings.Cut(srv.Listener.Addr().String(), ":")
	return "localhost:" + port
}

func echo(t *testing.T) (target string) {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { _, _ = io.Copy(c, c); _ = c.Close() })
		}
	})
	t.Cleanup(func() { _ = l.Close(); conns.Wait() })
	_, port, _ := strings.Cut(l.Addr().String(), ":")
	return "localhost:" + port
}

// writeCA makes a CA, without which the real pipelock does not start with tls_interception. It
// wants the key in SEC 1 form.
func writeCA(t *testing.T, cert, key string) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, priv.Public(), priv)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "EC PRIVATE KEY", Bytes: sec1}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
