package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"time"
)

// The names of the demo's upstream, which resolve to loopback through the manifest.
const (
	demoAPI   = "api.demo.example"   // nothing of it is allowed at first
	demoData  = "data.demo.example"  // asked for whole, granted in part
	demoFiles = "files.demo.example" // allowed by the manifest: the unrelated download
)

// A demoUpstream is a real HTTPS server with a private CA, on loopback.
type demoUpstream struct {
	srv    *http.Server
	port   int
	caPEM  []byte
	finish chan struct{} // closed: the long download comes to its end
	done   chan struct{}
}

func startDemoUpstream() (*demoUpstream, error) {
	cert, caPEM, err := demoCertificate()
	if err != nil {
		return nil, fmt.Errorf("make the demo's certificate: %w", err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // loopback, at once
	if err != nil {
		return nil, fmt.Errorf("start the demo's upstream: %w", err)
	}
	addr, ok := ln.Addr().(*net.TCPAddr)
	if !ok {
		return nil, errors.New("start the demo's upstream: not a TCP address")
	}
	u := &demoUpstream{port: addr.Port, caPEM: caPEM, finish: make(chan struct{}), done: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("/download", u.download)
	mux.HandleFunc("/public/stream", u.stream)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s%s says hello\n", r.Method, r.Host, r.URL.Path) //nolint:gosec // G705: plain text for the demo's own agent
	})
	u.srv = &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 10 * time.Second,
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12},
		ErrorLog:          slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), // cut streams are the demo's point, not its noise
	}
	go func() {
		defer close(u.done)
		_ = u.srv.ServeTLS(ln, "", "") // ends with http.ErrServerClosed, or the demo's next step fails
	}()
	return u, nil
}

func (u *demoUpstream) stop() {
	_ = u.srv.Close()
	<-u.done
}

// download sends numbered lines until finish is closed, and as the last one the sha256 of
// all before it, so that its reader can tell that it got every byte.
func (u *demoUpstream) download(w http.ResponseWriter, r *http.Request) {
	sum := sha256.New()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for i := 0; ; i++ {
		line := fmt.Sprintf("line %d\n", i)
		sum.Write([]byte(line))
		if _, err := w.Write([]byte(line)); err != nil {
			return
		}
		_ = http.NewResponseController(w).Flush()
		select {
		case <-r.Context().Done():
			return
		case <-u.finish:
			fmt.Fprintf(w, "sha256 %x\n", sum.Sum(nil))
			return
		case <-tick.C:
		}
	}
}

// stream sends server-sent events for as long as its reader is there.
func (u *demoUpstream) stream(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for i := 0; ; i++ {
		if _, err := fmt.Fprintf(w, "data: %d\n\n", i); err != nil {
			return
		}
		_ = http.NewResponseController(w).Flush()
		select {
		case <-r.Context().Done():
			return
		case <-tick.C:
		}
	}
}

// demoCertificate returns a server certificate for the demo's names, and the private CA
// that signed it.
func demoCertificate() (tls.Certificate, []byte, error) {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	now := time.Now()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bottle demo: the upstream's private CA"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "bottle demo upstream"},
		DNSNames:  []string{demoAPI, demoData, demoFiles},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}), nil
}

// demoRequest is a context-bound request of the demo's agent.
func demoRequest(ctx context.Context, client *http.Client, method, url string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json") // a refusal comes in the form that is asked for
	return client.Do(req)
}
