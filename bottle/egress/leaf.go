package egress

import (
	"container/list"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"sync"
	"time"

	"bottle/bottle"
)

const (
	// clockSkew is by how much a client's clock may be behind.
	clockSkew = time.Hour
	// leafLife is the validity of a leaf; it is made anew at half of that.
	leafLife = 7 * 24 * time.Hour
	// maxLeaves bounds the cache: an agent can name any number of hosts.
	maxLeaves = 1024
)

// leaves has what ends a host's TLS, a certificate before all, and keeps that of the most
// recently used hosts. Of several connections that want the same host's at once, one signs and the
// rest wait.
type leaves struct {
	ca  *ca
	now func() time.Time

	mu    sync.Mutex
	byAge *list.List // of *leaf, most recently used first
	hosts map[bottle.Host]*list.Element
}

type leaf struct {
	host  bottle.Host
	renew time.Time
	make  func() (*ended, error)
}

// ended is how a host's TLS is ended. Each config makes the keys of its session tickets itself, so
// that a session is resumed for the host and the protocol that it was made for and no other.
type ended struct {
	h1, h2 *tls.Config // by what is spoken inside
}

func newLeaves(ca *ca, now func() time.Time) *leaves {
	return &leaves{ca: ca, now: now, byAge: list.New(), hosts: map[bottle.Host]*list.Element{}}
}

// config is for a connection to host in which proto is spoken. It is shared: don't change it.
func (l *leaves) config(host bottle.Host, proto string) (*tls.Config, error) {
	e, err := l.entry(host).make()
	switch {
	case err != nil:
		return nil, err
	case proto == protoH2:
		return e.h2, nil
	}
	return e.h1, nil
}

func (l *leaves) entry(host bottle.Host) *leaf {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if e, ok := l.hosts[host]; ok {
		if have := e.Value.(*leaf); now.Before(have.renew) { //nolint:errcheck // the list holds nothing else
			l.byAge.MoveToFront(e)
			return have
		}
		l.byAge.Remove(e)
	}
	fresh := &leaf{
		host: host, renew: now.Add(leafLife / 2),
		make: sync.OnceValues(func() (*ended, error) {
			cert, err := l.ca.sign(host, now)
			if err != nil {
				return nil, err
			}
			return &ended{h1: endTLS(cert, protoH1), h2: endTLS(cert, protoH2)}, nil
		}),
	}
	l.hosts[host] = l.byAge.PushFront(fresh)
	if l.byAge.Len() > maxLeaves {
		last := l.byAge.Back()
		l.byAge.Remove(last)
		delete(l.hosts, last.Value.(*leaf).host) //nolint:errcheck // the list holds nothing else
	}
	return fresh
}

func endTLS(cert *tls.Certificate, proto string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{*cert}, NextProtos: []string{proto},
		// Without the post-quantum hybrids, which cost a fifth of a connection: they are against who
		// keeps what he can't read yet, and this leg does not leave the machine.
		CurvePreferences: []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384},
	}
}

// sign makes a server certificate for one host. It has a key of its own: P-256 keys are
// cheap, and a leaf that leaks is then one host's alone.
func (c *ca) sign(host bottle.Host, now time.Time) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("leaf key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	end := now.Add(leafLife)
	if end.After(c.cert.NotAfter) {
		end = c.cert.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		// No common name: it is limited to 64 characters, and no client of today reads it.
		Subject:               pkix.Name{Organization: []string{"bottle"}},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              end,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		DNSNames:              []string{string(host)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, c.cert, key.Public(), c.key)
	if err != nil {
		return nil, fmt.Errorf("leaf certificate for %s: %w", host, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("leaf certificate for %s: %w", host, err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: cert}, nil
}
