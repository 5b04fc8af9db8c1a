package secret

import (
	"crypto/tls"
	"crypto/x509"
)

// A Material is what TLS is spoken with: what one Secret, or some files, hold.
type Material struct {
	Certificate *tls.Certificate // with its key, which stays here: a crypto.Signer; nil if there is none
	CAs         *x509.CertPool   // nil if there are none
	CRLs        []*x509.RevocationList
	// CertRequired is what a Secret says of client certificates, nil if it says nothing.
	CertRequired *bool
	Version      string // another one when the content is
}
