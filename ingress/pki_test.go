package ingress

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"sync/atomic"
	"testing"
	"time"
)

// pki is an authority for tests.
type pki struct {
	t      *testing.T
	ca     *x509.Certificate
	key    crypto.Signer
	pool   *x509.CertPool
	serial atomic.Int64
}

func newKey(t *testing.T) crypto.Signer {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newPKI(t *testing.T) *pki {
	p := &pki{t: t, key: newKey(t), pool: x509.NewCertPool()}
	p.ca = p.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "authority " + t.Name()}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, p.key)
	p.pool.AddCert(p.ca)
	return p
}

// sign issues a certificate; the first is the authority's own.
func (p *pki) sign(c *x509.Certificate, key crypto.Signer) *x509.Certificate {
	c.SerialNumber = big.NewInt(p.serial.Add(1))
	c.NotBefore = time.Now().Add(-time.Hour)
	if c.NotAfter.IsZero() {
		c.NotAfter = time.Now().Add(time.Hour)
	}
	parent := p.ca
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), p.key)
	if err != nil {
		p.t.Fatal(err)
	}
	x, err := x509.ParseCertificate(der)
	if err != nil {
		p.t.Fatal(err)
	}
	return x
}

// leaf returns a certificate for a name, for either end.
func (p *pki) leaf(name string) *tls.Certificate { return p.until(time.Time{}, name) }

// until returns one that ends at a time.
func (p *pki) until(end time.Time, name string) *tls.Certificate {
	key := newKey(p.t)
	c := p.sign(&x509.Certificate{Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotAfter: end, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}, key)
	return &tls.Certificate{Certificate: [][]byte{c.Raw}, PrivateKey: key, Leaf: c}
}

// crl returns a revocation list.
func (p *pki) crl(next time.Time, revoked ...*tls.Certificate) *x509.RevocationList {
	list := &x509.RevocationList{Number: big.NewInt(p.serial.Add(1)), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: next}
	for _, c := range revoked {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.Leaf.SerialNumber, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, p.ca, p.key)
	if err != nil {
		p.t.Fatal(err)
	}
	l, err := x509.ParseRevocationList(der)
	if err != nil {
		p.t.Fatal(err)
	}
	return l
}
