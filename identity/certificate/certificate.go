// Package certificate verifies the certificates of Sessions: X.509 (RFC 5280),
// issued by the cluster's CA for clients only, with the Session's URI as their
// one name.
//
// It takes for granted that the peer proved the certificate's key, as TLS does
// before it hands out a peer's certificate.
package certificate

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"cardea/api"
	"cardea/identity"
)

const (
	// maxSize is the size in bytes of the largest certificate that is looked at;
	// ours have about 500.
	maxSize = 8 << 10
	// skew is how far our clock may be from that of the issuer, and so how long
	// before and after its time a certificate counts. The end of its Session is
	// exact: that is decided, by one clock.
	skew = 5 * time.Minute
	// slots is the number of verified certificates that are remembered, at most.
	slots = 4096
)

// A Verifier verifies evidence of kind CERTIFICATE. It may be used from any
// number of goroutines, takes no lock, and must not be copied once it is in use.
type Verifier struct {
	// Roots returns the cluster's CAs. As long as it returns the same pool, what
	// was verified against it stays verified, until it expires.
	Roots func() *x509.CertPool

	// Verified certificates, each in the slot that its hash says, so that evidence
	// that was seen before costs one hash. Two that share a slot take turns. Only
	// what the CA signed gets here: strangers cannot push anything out.
	cache [slots]atomic.Pointer[verified]
}

// verified is a certificate that passed all checks but that of the time.
type verified struct {
	sha256              [sha256.Size]byte // of the DER
	roots               *x509.CertPool    // that it was verified against
	notBefore, notAfter time.Time         // between which the chain is valid
	claim               identity.Claim
}

// at returns the claim if the certificate is valid now.
func (c *verified) at(now time.Time) (identity.Claim, error) {
	if now.Before(c.notBefore.Add(-skew)) {
		return identity.Claim{}, fmt.Errorf("certificate: that of Session %s is valid from %s on, and it is %s here: the clocks differ",
			c.claim.SessionUID, c.notBefore.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	if now.After(c.notAfter.Add(skew)) {
		return identity.Claim{}, &identity.ExpiredError{Claim: c.claim, NotAfter: c.notAfter, At: now}
	}
	return c.claim, nil
}

// Verify implements identity.Verifier. A certificate that is good but for its age
// is an [identity.ExpiredError].
func (v *Verifier) Verify(ev api.Evidence, now time.Time) (identity.Claim, error) {
	switch {
	case ev.Kind == "" && len(ev.Data) == 0:
		return identity.Claim{}, identity.ErrNobody
	case ev.Kind != api.EvidenceCertificate:
		return identity.Claim{}, errors.New("certificate: the evidence is of another kind")
	case len(ev.Data) > maxSize:
		return identity.Claim{}, fmt.Errorf("certificate: has %d bytes and may have %d", len(ev.Data), maxSize)
	}
	roots := v.Roots()
	sum := sha256.Sum256(ev.Data)
	slot := &v.cache[binary.BigEndian.Uint64(sum[:])%slots]
	if c := slot.Load(); c != nil && c.sha256 == sum && c.roots == roots {
		return c.at(now)
	}
	c, err := verify(ev.Data, roots)
	if err != nil {
		return identity.Claim{}, fmt.Errorf("certificate: %w", err)
	}
	c.sha256, c.roots = sum, roots
	slot.Store(c)
	return c.at(now)
}

// verify checks all of a certificate but whether it is valid now.
func verify(der []byte, roots *x509.CertPool) (*verified, error) {
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, errors.New("cannot be parsed")
	}
	if roots == nil { // for x509, that would be those of the machine
		return nil, errors.New("there is no CA to verify it against")
	}
	// Now is compared with the times of the chain at each use. The chain itself
	// has to be good at the moment from which on the certificate is valid.
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots:       roots,
		CurrentTime: leaf.NotBefore,
		KeyUsages:   []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return nil, errors.New("was not issued by this cluster's CA for a client: log in to this cluster")
	}
	uid, err := session(leaf)
	if err != nil {
		return nil, err
	}
	key := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	c := &verified{
		notBefore: leaf.NotBefore,
		claim:     identity.Claim{SessionUID: uid, KeySHA256: hex.EncodeToString(key[:])},
	}
	for _, chain := range chains {
		if end := end(chain); end.After(c.notAfter) {
			c.notAfter = end
		}
	}
	return c, nil
}

// end returns when the first of a chain's certificates expires.
func end(chain []*x509.Certificate) time.Time {
	return slices.MinFunc(chain, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) }).NotAfter
}

// session returns the uid of the Session whose certificate leaf is: for clients
// only, with the Session's URI and no other name.
func session(leaf *x509.Certificate) (uid string, err error) {
	switch {
	case leaf.IsCA, len(leaf.UnknownExtKeyUsage) > 0, !slices.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}):
		return "", errors.New("is not for a client only")
	case len(leaf.URIs) != 1, len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) > 0:
		return "", errors.New("must have the URI of a Session and no other name")
	}
	uid, ok := SessionOf(leaf.URIs[0])
	if !ok {
		return "", errors.New("has a URI that is not that of a Session")
	}
	return uid, nil
}
