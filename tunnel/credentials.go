package tunnel

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"

	"cardea/api"
)

// Credentials are what a Dialer shows to a gateway: the TLS configuration for its
// Session's certificate as it stands. Its Dialer guards it.
type Credentials struct {
	leaf   []byte // DER
	config *tls.Config
}

// Configure returns the configuration for a certificate, which the caller clones to change
// it. It is the same one, and TLS sessions are resumed with it, as long as the certificate
// is; fresh is set when it is another than the last time. Without a certificate the error
// has the code UNAUTHENTICATED.
func (c *Credentials) Configure(cert *tls.Certificate, roots *x509.CertPool) (config *tls.Config, fresh bool, err error) {
	if cert == nil || len(cert.Certificate) == 0 {
		return nil, false, Unauthenticated("there is no certificate of a Session")
	}
	if roots == nil { // crypto/tls would take the system's
		return nil, false, errors.New("tunnel: no root certificates to know the gateway by")
	}
	if c.config != nil && bytes.Equal(c.leaf, cert.Certificate[0]) {
		return c.config, false, nil
	}
	c.leaf = cert.Certificate[0]
	c.config = &tls.Config{
		MinVersion:                  tls.VersionTLS13,
		RootCAs:                     roots,
		GetClientCertificate:        func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil },
		ClientSessionCache:          tls.NewLRUClientSessionCache(0),
		DynamicRecordSizingDisabled: true, // one write, one record: latency is the application's choice
	}
	return c.config, true, nil
}

// Last reports whether a configuration is the one that was returned last.
func (c *Credentials) Last(config *tls.Config) bool { return c.config == config }

// Unauthenticated returns the error of a Dialer whose Session has no certificate that the
// gateway takes.
func Unauthenticated(words string) error {
	return &api.Error{Code: api.CodeUnauthenticated, Message: words, Hint: "log in again"}
}
