package egress

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"time"

	"bottle/bottle"
)

// maxPEM bounds a CA file; an ECDSA one has less than 2 KiB.
const maxPEM = 64 << 10

// caYears is how long a bottle's CA holds. It outlives any bottle; a new bottle has a new one.
const caYears = 10

// EnsureCA makes the bottle's CA (ECDSA P-256) if there is none: the certificate with
// mode 0644, the key with 0600, both durable. One that is there is checked and kept. name
// is the bottle's and shows in the certificate. The error names the file and the fix.
//
// The certificate is written last: without it there is no CA, and a key that a crash left
// alone is replaced.
func EnsureCA(certPath, keyPath, name string) error {
	_, err := os.Lstat(certPath)
	if err == nil {
		_, err = loadCA(certPath, keyPath)
		return err
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("CA %s: %w", certPath, err)
	}
	if err := bottle.CheckName(name); err != nil {
		return fmt.Errorf("CA: %w", err)
	}
	certPEM, keyPEM, err := newCA(name, time.Now())
	if err != nil {
		return err
	}
	if err := bottle.WriteFile(keyPath, keyPEM, 0o600); err != nil {
		return fmt.Errorf("CA: %w", err)
	}
	if err := bottle.WriteFile(certPath, certPEM, 0o644); err != nil {
		return fmt.Errorf("CA: %w", err)
	}
	return nil
}

func newCA(name string, now time.Time) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("CA key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{"bottle"}, CommonName: "bottle " + name + " CA"},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.AddDate(caYears, 0, 0),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, fmt.Errorf("CA certificate: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("CA key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), nil
}

// newSerial returns a random serial number of 127 bits (RFC 5280 section 4.1.2.2: positive,
// at most 20 octets).
func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}

// A ca is a bottle's certificate authority, ready to sign.
type ca struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// caFix ends every error about a CA that is there but unusable.
const caFix = "restore both files of the CA, or remove both and start the bottle anew to make another"

func loadCA(certPath, keyPath string) (*ca, error) {
	certPEM, err := bottle.ReadFile(certPath, maxPEM)
	if err != nil {
		return nil, fmt.Errorf("CA certificate can't be read; %s: %w", caFix, err)
	}
	keyPEM, err := bottle.ReadFile(keyPath, maxPEM)
	if err != nil {
		return nil, fmt.Errorf("CA key can't be read; %s: %w", caFix, err)
	}
	bad := func(path, why string) error {
		return fmt.Errorf("CA %s: %s; %s: %w", path, why, caFix, bottle.ErrCorrupt)
	}
	if !bytes.Contains(keyPEM, []byte("PRIVATE KEY")) {
		return nil, bad(keyPath, "no private key in PEM form")
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil { // its text has nothing of the key
		return nil, bad(certPath, err.Error())
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	switch {
	case !ok:
		return nil, bad(keyPath, "not an ECDSA key")
	case !pair.Leaf.IsCA || pair.Leaf.KeyUsage&x509.KeyUsageCertSign == 0:
		return nil, bad(certPath, "not a CA certificate")
	case time.Now().After(pair.Leaf.NotAfter):
		return nil, bad(certPath, "expired at "+pair.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return &ca{cert: pair.Leaf, key: key}, nil
}
