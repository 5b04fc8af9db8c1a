package cert

import (
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"net/url"
	"time"

	"cardea/api"
	"cardea/identity/certificate"
)

const (
	// SessionLifetime is how long the certificate of a Session is valid if nothing
	// else was set.
	SessionLifetime = 4 * time.Hour
	// maxCSR is the size in bytes of the largest CSR that is looked at.
	maxCSR = 8 << 10
)

// ParseCSR checks a certificate signing request (PKCS #10, RFC 2986, DER) and
// returns its key and the SHA-256, in hex, of that key's SubjectPublicKeyInfo:
// what certificates for the key have, and Session.status.keySHA256. All else that
// a request says is ignored. The request's signature proves that its sender has
// the key, which must be ECDSA P-256 or P-384, or Ed25519. Its errors are INVALID
// and may be told to the sender.
func ParseCSR(der []byte) (key crypto.PublicKey, spkiSHA256 string, err error) {
	if len(der) > maxCSR {
		return nil, "", api.Errorf(api.CodeInvalid, "the CSR has %d bytes and may have %d", len(der), maxCSR)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, "", api.Errorf(api.CodeInvalid, "the CSR must be PKCS #10 in DER")
	}
	// Before the signature: what it costs to check one depends on the key.
	if !acceptable(csr.PublicKey) {
		return nil, "", api.Errorf(api.CodeInvalid, "the CSR's key must be ECDSA P-256, ECDSA P-384 or Ed25519")
	}
	if csr.SignatureAlgorithm == x509.ECDSAWithSHA1 || csr.CheckSignature() != nil {
		return nil, "", api.Errorf(api.CodeInvalid, "the CSR must be signed by its own key, with SHA-256 or better")
	}
	// Of the key, not of the request's bytes: there may be other encodings.
	spki, err := x509.MarshalPKIXPublicKey(csr.PublicKey)
	if err != nil {
		return nil, "", api.Errorf(api.CodeInvalid, "the CSR's key cannot be encoded")
	}
	sum := sha256.Sum256(spki)
	return csr.PublicKey, hex.EncodeToString(sum[:]), nil
}

func acceptable(key crypto.PublicKey) bool {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		return k.Curve == elliptic.P256() || k.Curve == elliptic.P384()
	case ed25519.PublicKey:
		return true
	}
	return false
}

// SessionCertificate issues the certificate of the Session of that uid to the key
// of a CSR (see [ParseCSR]) and returns it (DER) with the hash of its key. It is
// for clients only, has the Session's URI and no other name, and is valid for
// life, or [SessionLifetime] if that is 0, but not after notAfter, when the
// Session ends. The caller compares the hash with that of the Session before it
// hands out a renewed one.
//
// It is valid since five minutes ago, for clocks that are behind.
func (a *Authority) SessionCertificate(csrDER []byte, sessionUID string, life time.Duration, notAfter time.Time) (der []byte, spkiSHA256 string, err error) {
	key, spkiSHA256, err := ParseCSR(csrDER)
	if err != nil {
		return nil, "", err
	}
	uri := certificate.SessionURI(sessionUID)
	if _, ok := certificate.SessionOf(uri); !ok {
		return nil, "", fmt.Errorf("cert: %.100q cannot be the uid of a Session", sessionUID)
	}
	now := a.now()
	if !now.Before(notAfter) {
		return nil, "", fmt.Errorf("cert: Session %s ended at %s", sessionUID, notAfter.UTC().Format(time.RFC3339))
	}
	if life < 0 {
		return nil, "", fmt.Errorf("cert: a certificate cannot be valid for %v", life)
	}
	if end := now.Add(cmp.Or(life, SessionLifetime)); end.Before(notAfter) {
		notAfter = end
	}
	der, err = a.issue(&a.current().root, &x509.Certificate{
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{uri},
	}, key, notAfter)
	if err != nil {
		return nil, "", fmt.Errorf("cert: %w", err)
	}
	return der, spkiSHA256, nil
}
