package emissary_test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"regexp"
	"strings"
	"sync"
	"time"
)

// papers are the certificates of all cases, made when they are first asked for.
type papers struct {
	mu   sync.Mutex
	made map[string]*paper
	next int64 // serial number
}

func newPapers() *papers { return &papers{made: map[string]*paper{}} }

// A paper is a certificate with its key.
type paper struct {
	leaf *x509.Certificate
	key  crypto.Signer
}

// The certificates of which the index says more than that they are self-signed for
// their own name.
const authority = "master.datawire.io"

// issued lists who has a certificate of the authority.
func issued(name string) bool {
	return name == "presto.example.com" || name == "ambassador.example.com"
}

// alternatives returns the names that a certificate is for.
func alternatives(name string) (common string, names []string) {
	switch name {
	case "*.domain.com":
		return "a.domain.com", []string{"a.domain.com", "b.domain.com", "*.domain.com", "localhost"}
	case "supersecret": // of the documentation's examples
		return name, []string{"my-host-1", "my-host-2"}
	}
	return name, []string{name}
}

// of returns the certificate of a name.
func (p *papers) of(name string) *paper {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.make(name)
}

// make returns the certificate of a name. The caller holds p.mu.
func (p *papers) make(name string) *paper {
	if x := p.made[name]; x != nil {
		return x
	}
	p.next++
	key, err := rsa.GenerateKey(rand.Reader, 2048) // the cases are about suites of RSA
	if err != nil {
		panic(err) // the system has no randomness
	}
	common, names := alternatives(name)
	c := &x509.Certificate{SerialNumber: big.NewInt(p.next), Subject: pkix.Name{CommonName: common}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment}
	parent, signer := c, crypto.Signer(key)
	switch {
	case name == authority:
		c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	case issued(name):
		ca := p.make(authority)
		parent, signer = ca.leaf, ca.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		panic(err) // what is signed is fixed
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	x := &paper{leaf: leaf, key: key}
	p.made[name] = x
	return x
}

func (x *paper) certificatePEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: x.leaf.Raw})
}

func (x *paper) keyPEM() []byte {
	der, err := x509.MarshalPKCS8PrivateKey(x.key)
	if err != nil {
		panic(err) // an RSA key always can be
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// pair returns the certificate for use in TLS.
func (x *paper) pair() tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{x.leaf.Raw}, PrivateKey: x.key, Leaf: x.leaf}
}

// list returns a revocation list of an issuer, PEM, that has the certificates of
// the names on it.
func (p *papers) list(issuer string, revoked ...string) ([]byte, error) {
	by := p.of(issuer)
	list := &x509.RevocationList{Number: big.NewInt(time.Now().UnixNano()), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(24 * time.Hour)}
	for _, name := range revoked {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{
			SerialNumber: p.of(name).leaf.SerialNumber, RevocationTime: time.Now().Add(-time.Minute)})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, by.leaf, by.key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}), nil
}

// fill puts certificates, keys and revocation lists in the place of their
// placeholders.
func (p *papers) fill(text string) (string, error) {
	placeholder := regexp.MustCompile(`@(CERT|KEY|CRL):([^@]*)@`)
	var failed error
	filled := placeholder.ReplaceAllStringFunc(text, func(m string) string {
		of := placeholder.FindStringSubmatch(m)
		var b []byte
		switch of[1] {
		case "CERT":
			b = p.of(of[2]).certificatePEM()
		case "KEY":
			b = p.of(of[2]).keyPEM()
		case "CRL": // issuer=NAME revoked=NAME
			issuer, revoked, _ := strings.Cut(of[2], " ")
			var names []string
			if name, ok := strings.CutPrefix(revoked, "revoked="); ok {
				names = []string{name}
			}
			var err error
			if b, err = p.list(strings.TrimPrefix(issuer, "issuer="), names...); err != nil {
				failed = fmt.Errorf("%s: %w", m, err)
			}
		}
		return base64.StdEncoding.EncodeToString(b)
	})
	return filled, failed
}
