// Package cert issues the cluster's certificates: those by which its own
// listeners prove who they are, and those that Sessions log in with.
//
// There is one CA, made by the first start and kept in the store as a Secret. It
// signs for this cluster only: no role inside trusts a certificate of it for
// anything but being a Session, and no client trusts it but those that pinned
// it.
package cert

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"cardea/secret"
	"cardea/store"
)

// The names of the Secrets that hold the cluster's own keys.
const (
	caSecret      = "cluster-ca"
	journalSecret = "journal-key"
)

const (
	caLifetime = 10 * 365 * 24 * time.Hour
	// skew is how far a peer's clock may be behind ours: certificates are valid
	// since that long before they are issued.
	skew = 5 * time.Minute
	// caSkew is skew for the CA: nobody pins it before it is there, so it may as
	// well be generous.
	caSkew = 24 * time.Hour
)

// An Authority is the CA of a cluster. It may be used from any number of
// goroutines.
type Authority struct {
	domain  string
	now     func() time.Time
	keys    keys
	ca      *x509.Certificate
	caKey   crypto.Signer
	pool    *x509.CertPool
	servers servers
}

// Open returns the Authority of the cluster that st holds, and makes its CA if
// there is none: ECDSA P-256, valid for ten years, for leaves only. All that open
// one store get the same CA, also if they do so at once. domain is the cluster's
// DNS domain, in lower case; now is the clock.
func Open(ctx context.Context, st store.Store, k *secret.Keeper, domain string, now func() time.Time) (*Authority, error) {
	for l := range strings.SplitSeq(domain, ".") {
		if !validLabel(l) {
			return nil, fmt.Errorf("cert: the domain %q must be a DNS name in lower case, such as cardea.internal", domain)
		}
	}
	a := &Authority{domain: domain, now: now, keys: keys{store: st, keeper: k, now: now}}
	key, chain, err := a.keys.signer(ctx, caSecret, "The key and the certificate of the cluster's CA.", a.newCA)
	switch {
	case err != nil:
		return nil, fmt.Errorf("cert: the cluster's CA: %w", err)
	case len(chain) != 1 || !chain[0].IsCA:
		return nil, fmt.Errorf("cert: the Secret %s must hold a private key and the certificate of a CA, in PEM", caSecret)
	case !now().Before(chain[0].NotAfter):
		return nil, fmt.Errorf("cert: the cluster's CA expired at %s: compare the clock of this machine",
			chain[0].NotAfter.UTC().Format(time.RFC3339))
	}
	a.caKey, a.ca, a.pool = key, chain[0], x509.NewCertPool()
	a.pool.AddCert(a.ca)
	if a.servers.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, fmt.Errorf("cert: %w", err)
	}
	return a, nil
}

// newCA makes a CA that is signed by itself.
func (a *Authority) newCA() (crypto.Signer, *x509.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	now := a.now()
	ca := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "Cardea CA " + a.domain},
		NotBefore:             now.Add(-caSkew),
		NotAfter:              now.Add(caLifetime),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true, // no CA below it
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	ca, err = x509.ParseCertificate(der)
	return key, ca, err
}

// issue signs a leaf for key, valid from a little before now until notAfter or
// the end of the CA. x509 gives it a random serial number of 20 bytes.
func (a *Authority) issue(leaf *x509.Certificate, key crypto.PublicKey, notAfter time.Time) ([]byte, error) {
	leaf.NotBefore, leaf.NotAfter = a.now().Add(-skew), notAfter
	if a.ca.NotAfter.Before(notAfter) {
		leaf.NotAfter = a.ca.NotAfter
	}
	leaf.KeyUsage = x509.KeyUsageDigitalSignature
	leaf.BasicConstraintsValid = true // and IsCA is false
	return x509.CreateCertificate(rand.Reader, leaf, a.ca, key, a.caKey)
}

// Roots returns the certificates of the CAs that clients trust.
func (a *Authority) Roots() []*x509.Certificate { return []*x509.Certificate{a.ca} }

// Pool returns the Roots as a pool, always the same. It must not be written to.
func (a *Authority) Pool() *x509.CertPool { return a.pool }

// Fingerprint returns the SHA-256 of the CA's certificate (DER), in lower-case
// hex: what `login --ca-sha256` takes.
func (a *Authority) Fingerprint() string {
	sum := sha256.Sum256(a.ca.Raw)
	return hex.EncodeToString(sum[:])
}

// JournalSigner returns the Ed25519 key that signs the heads of the journal, and
// makes it at first use. All that use one store get the same key.
func (a *Authority) JournalSigner(ctx context.Context) (crypto.Signer, error) {
	key, _, err := a.keys.signer(ctx, journalSecret, "The key that signs the heads of the journal.",
		func() (crypto.Signer, *x509.Certificate, error) {
			_, key, err := ed25519.GenerateKey(rand.Reader)
			return key, nil, err
		})
	if _, ok := key.(ed25519.PrivateKey); err == nil && !ok {
		err = errors.New("it is not Ed25519")
	}
	if err != nil {
		return nil, fmt.Errorf("cert: the key of the journal, Secret %s: %w", journalSecret, err)
	}
	return key, nil
}

// validLabel tells whether l can be one label of a host name (RFC 1123), in lower
// case.
func validLabel(l string) bool {
	return l != "" && len(l) <= 63 && l[0] != '-' && l[len(l)-1] != '-' &&
		strings.Trim(l, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}
