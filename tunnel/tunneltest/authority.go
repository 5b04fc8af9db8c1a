package tunneltest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"path"
	"testing"
	"time"

	"cardea/api"
)

// Domain is that of the cluster of tests.
const Domain = "cardea.internal"

// An Authority is the certificate authority of one test.
type Authority struct {
	Cert *x509.Certificate
	Key  *ecdsa.PrivateKey

	t testing.TB
}

// NewAuthority returns one that has begun yesterday.
func NewAuthority(t testing.TB) *Authority {
	t.Helper()
	a := &Authority{t: t, Key: NewKey(t)}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.Key.Public(), a.Key)
	if err != nil {
		t.Fatal(err)
	}
	if a.Cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return a
}

// NewKey makes a key.
func NewKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// Pool returns the roots that the Authority is.
func (a *Authority) Pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.Cert)
	return p
}

// Issue signs a certificate that edit may change, for a key that is made for it.
func (a *Authority) Issue(edit func(*x509.Certificate)) *tls.Certificate {
	a.t.Helper()
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62))
	template := &x509.Certificate{
		SerialNumber: serial, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature,
	}
	edit(template)
	key := NewKey(a.t)
	der, err := x509.CreateCertificate(rand.Reader, template, a.Cert, key.Public(), a.Key)
	if err != nil {
		a.t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// Session issues a certificate as the Session s-1 has it, if edits say nothing else.
func (a *Authority) Session(edits ...func(*x509.Certificate)) *tls.Certificate {
	a.t.Helper()
	return a.Issue(func(c *x509.Certificate) {
		c.Subject.CommonName = "alice"
		c.URIs = []*url.URL{{Scheme: "cardea", Host: Domain, Path: "/session/s-1"}}
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		for _, e := range edits {
			e(c)
		}
	})
}

// SessionOf returns the uid that Session puts into a certificate.
func SessionOf(leaf *x509.Certificate) (string, bool) {
	if len(leaf.URIs) == 0 {
		return "", false
	}
	return path.Base(leaf.URIs[0].Path), true
}

// A House is a Handler that keeps what comes.
type House struct {
	Arrivals chan api.Arrival
	Refusals chan api.Refusal
}

// NewHouse returns one with room for 1,000 of each.
func NewHouse() *House {
	return &House{Arrivals: make(chan api.Arrival, 1000), Refusals: make(chan api.Refusal, 1000)}
}

// Arrive implements tunnel.Handler.
func (h *House) Arrive(a api.Arrival) { h.Arrivals <- a }

// Refused implements tunnel.Handler.
func (h *House) Refused(r api.Refusal) { h.Refusals <- r }
