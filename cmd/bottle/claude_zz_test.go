package main_test

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bottle/mcp/claudetest"
)

func TestZZOnboard(t *testing.T) {
	b := newClaudeBottle(t, os.Getenv("BOTTLE_E2E_CLAUDE"), claudeBackends[0], func(b *claudeBottle) []claudetest.Step { return nil })
	os.RemoveAll(b.workspace + "/home/.claude")
	ctx, c := context.WithTimeout(t.Context(), 60*time.Second)
	defer c()
	m, err := os.ReadFile(b.manifest)
	if err != nil {
		t.Fatal(err)
	}
	x := strings.Replace(string(m), "    allow_cidrs:", "        api.anthropic.com: 127.0.0.1\n        platform.claude.com: 127.0.0.1\n    allow_cidrs:", 1)
	x = strings.Replace(x, "    routes:\n", "    routes:\n        - host: api.anthropic.com\n", 1)
	t.Log(x)
	os.WriteFile(b.manifest, []byte(x), 0o600)
	cert, ca := certificate(t, "api.anthropic.com", "platform.claude.com")
	f, _ := os.OpenFile(filepath.Dir(b.manifest)+"/ca.pem", os.O_APPEND|os.O_WRONLY, 0)
	f.Write(ca)
	f.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:443")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { t.Log(r.Host, r.URL.Path); w.Write([]byte("{}")) })}
	go srv.Serve(tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{cert}}))
	defer srv.Close()
	b.command = b.command[:len(b.command)-2] // neither strict nor bypass
	term, err := claudetest.Start(b.start(ctx))
	if err != nil {
		t.Fatal(err)
	}
	defer term.Close()
	last := 0
	for i := range 6 {
		cc, c2 := context.WithTimeout(ctx, 6*time.Second)
		err = term.Await(cc, last, "NEVER EVER")
		c2()
		t.Log(i, err)
		m := term.Mark()
		last = m
		if i == 1 || i == 4 {
			term.Type("1")
		}
		term.Type("\r")
	}
}
