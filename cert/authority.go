// Package cert issues the cluster's certificates: those by which its own
// listeners prove who they are, and those that Sessions log in with.
//
// There is one CA, made by the first start and kept in the store as a Secret. It
// signs for this cluster only: no role inside trusts a certificate of it for
// anything but being a Session, and no client trusts it but those that pinned
// it. Another can take its place, with an overlap: see [Authority.RotateCA].
package cert

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"cardea/secret"
	"cardea/store"
)

// The names of the Secrets that hold the cluster's own keys.
const (
	caSecret    = "cluster-ca"     // the CA's key and its certificate
	oldCASecret = "cluster-ca-old" // while another takes its place: see root.cross
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
	// Log is told what Run cannot read; nil is nobody. It is set before Run.
	Log *slog.Logger

	domain    string
	now       func() time.Time
	keys      keys
	serverKey *ecdsa.PrivateKey // of all server certificates of this process
	state     atomic.Pointer[state]
	moving    sync.Mutex // held by who replaces state
}

// A state is the CA as it stands. It does not change.
type state struct {
	root root  // the one that is pinned now
	old  *root // that it replaces; nil once the overlap is over
	pool *x509.CertPool
	// servers are the certificates that were issued in this state.
	servers servers
}

// A root is a CA with its key.
type root struct {
	key  crypto.Signer
	cert *x509.Certificate // signed by itself
	// cross, of one that is being replaced, is a certificate for its key by the
	// root that replaces it. It is valid as long as they overlap.
	cross *x509.Certificate
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
	var err error
	if a.serverKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, fmt.Errorf("cert: %w", err)
	}
	first := func() (crypto.Signer, *x509.Certificate, error) { return a.newCA(0) }
	if _, _, err := a.keys.signer(ctx, caSecret, "The key and the certificate of the cluster's CA.", first); err != nil {
		return nil, fmt.Errorf("cert: the cluster's CA: %w", err)
	}
	if err := a.load(ctx); err != nil {
		return nil, err
	}
	if end := a.current().root.cert.NotAfter; !now().Before(end) {
		return nil, fmt.Errorf("cert: the cluster's CA expired at %s: compare the clock of this machine", end.UTC().Format(time.RFC3339))
	}
	return a, nil
}

// newCA makes a CA that is signed by itself and may have so many others below it.
func (a *Authority) newCA(below int) (crypto.Signer, *x509.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return nil, nil, err
	}
	// No two have one name: whoever builds a chain shall not confuse them.
	sum := sha256.Sum256(spki)
	template := a.caTemplate(below)
	template.Subject = pkix.Name{CommonName: "Cardea CA " + a.domain, SerialNumber: hex.EncodeToString(sum[:8])}
	cert, err := a.certify(&key.PublicKey, template, nil, key)
	return key, cert, err
}

// caTemplate is what all CAs have.
func (a *Authority) caTemplate(below int) *x509.Certificate {
	now := a.now()
	return &x509.Certificate{
		NotBefore:             now.Add(-caSkew),
		NotAfter:              now.Add(caLifetime),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            below,
		MaxPathLenZero:        below == 0,
	}
}

// certify signs a certificate of key; without a parent, by itself.
func (a *Authority) certify(key crypto.PublicKey, template, parent *x509.Certificate, by crypto.Signer) (*x509.Certificate, error) {
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, by)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// issue signs a leaf for key by r, valid from a little before now until notAfter
// or the end of r. x509 gives it a random serial number of 20 bytes.
func (a *Authority) issue(r *root, leaf *x509.Certificate, key crypto.PublicKey, notAfter time.Time) ([]byte, error) {
	leaf.NotBefore, leaf.NotAfter = a.now().Add(-skew), notAfter
	if r.cert.NotAfter.Before(notAfter) {
		leaf.NotAfter = r.cert.NotAfter
	}
	leaf.KeyUsage = x509.KeyUsageDigitalSignature
	leaf.BasicConstraintsValid = true // and IsCA is false
	return x509.CreateCertificate(rand.Reader, leaf, r.cert, key, r.key)
}

// Roots returns the certificates of the CAs that clients trust, the newest first:
// there are two while one takes the place of the other.
func (a *Authority) Roots() []*x509.Certificate {
	s := a.current()
	if s.old != nil {
		return []*x509.Certificate{s.root.cert, s.old.cert}
	}
	return []*x509.Certificate{s.root.cert}
}

// Pool returns the Roots as a pool, the same one as long as they are. It must not
// be written to.
func (a *Authority) Pool() *x509.CertPool { return a.current().pool }

// Fingerprint returns the SHA-256 of the CA's certificate (DER), in lower-case
// hex: what `login --ca-sha256` takes.
func (a *Authority) Fingerprint() string { return fingerprint(a.current().root.cert) }

func fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

// validLabel tells whether l can be one label of a host name (RFC 1123), in lower
// case.
func validLabel(l string) bool {
	return l != "" && len(l) <= 63 && l[0] != '-' && l[len(l)-1] != '-' &&
		strings.Trim(l, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}
