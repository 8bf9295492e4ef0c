package bench

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"
)

// The names of the upstream. Others' proxies resolve the last one by themselves.
const (
	interceptedHost = "api.example.com"
	passedHost      = "pass.example.com"
	localHost       = "localhost"
)

const bodySize = 1 << 10

// A world is the upstream and what trusts it.
type world struct {
	dir   string
	roots *x509.CertPool
	caPEM string // its file
	port  int
	// hop is the same upstream behind a CONNECT.
	hop string
}

func (w *world) direct() *path {
	return &path{dial: "127.0.0.1:" + strconv.Itoa(w.port), host: localHost, port: w.port, roots: w.roots}
}

func newWorld(b *testing.B) *world {
	w := &world{dir: b.TempDir(), roots: x509.NewCertPool()}
	w.caPEM = filepath.Join(w.dir, "upstream-ca.pem")
	ca, caKey := newCertificate(b, nil, nil)
	leaf, leafKey := newCertificate(b, ca, caKey)
	w.roots.AddCert(ca)
	if err := os.WriteFile(w.caPEM, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw}), 0o600); err != nil {
		b.Fatal(err)
	}
	up := &upstream{
		tls:      &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{{Certificate: [][]byte{leaf.Raw}, PrivateKey: leafKey, Leaf: leaf}}},
		response: append([]byte("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "+strconv.Itoa(bodySize)+"\r\n\r\n"), bytes.Repeat([]byte("x"), bodySize)...),
		conns:    map[net.Conn]struct{}{},
	}
	var direct, hop net.Listener
	for _, l := range []*net.Listener{&direct, &hop} {
		var err error
		if *l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil { //nolint:noctx // a test's listener
			b.Fatal(err)
		}
	}
	up.serving.Go(func() { up.accept(direct, up.serve) })
	up.serving.Go(func() { up.accept(hop, up.serveConnect) })
	b.Cleanup(func() {
		_, _ = direct.Close(), hop.Close()
		up.closeAll()
		up.serving.Wait()
	})
	w.port = direct.Addr().(*net.TCPAddr).Port //nolint:errcheck // a TCP listener
	w.hop = hop.Addr().String()
	return w
}

// newCertificate makes a CA without a parent, else a leaf for all names.
func newCertificate(b *testing.B, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	t := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "bench"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), BasicConstraintsValid: true,
	}
	if parent == nil {
		t.IsCA, t.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
		parent, parentKey = t, key
	} else {
		t.Subject.CommonName = "bench upstream" // another than the CA's: OpenSSL takes it for self-signed else
		t.DNSNames = []string{interceptedHost, passedHost, localHost}
		t.KeyUsage, t.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, key.Public(), parentKey)
	if err != nil {
		b.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		b.Fatal(err)
	}
	return cert, key
}

// An upstream answers each request with the same bytes, at as little cost as can be.
type upstream struct {
	tls      *tls.Config
	response []byte
	serving  sync.WaitGroup

	mu     sync.Mutex
	closed bool
	conns  map[net.Conn]struct{}
}

func (u *upstream) accept(l net.Listener, serve func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		u.mu.Lock()
		closed := u.closed
		u.conns[c] = struct{}{}
		u.mu.Unlock()
		if closed {
			_ = c.Close()
			return
		}
		u.serving.Go(func() {
			serve(c)
			_ = c.Close()
			u.mu.Lock()
			delete(u.conns, c)
			u.mu.Unlock()
		})
	}
}

func (u *upstream) closeAll() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.closed = true
	for c := range u.conns {
		_ = c.Close()
	}
}

func (u *upstream) serveConnect(raw net.Conn) {
	if _, ok := readHead(raw, make([]byte, 4<<10)); !ok {
		return
	}
	if _, err := raw.Write([]byte("HTTP/1.1 200 OK\r\n\r\n")); err == nil {
		u.serve(raw)
	}
}

func (u *upstream) serve(raw net.Conn) {
	c := tls.Server(raw, u.tls)
	buf := make([]byte, 4<<10)
	for {
		head, ok := readHead(c, buf)
		if !ok {
			break
		}
		if _, err := c.Write(u.response); err != nil || bytes.Contains(head, []byte("Connection: close\r\n")) {
			break
		}
	}
	_ = c.Close()
}

// readHead reads one request, which has no body and comes alone.
func readHead(c net.Conn, buf []byte) (head []byte, ok bool) {
	have := 0
	for !bytes.HasSuffix(buf[:have], []byte("\r\n\r\n")) {
		n, err := c.Read(buf[have:])
		if err != nil {
			return nil, false
		}
		have += n
	}
	return buf[:have], true
}
