package tunnel

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"cardea/api"
)

// GatewayName returns the server name at which a gateway of a domain has its protocols.
func GatewayName(domain string) string { return "gateway." + domain }

// VerifyClient checks that the certificate of a client is for client authentication and
// signed by one of the roots. It is for VerifyConnection of crypto/tls, which calls that
// also when a TLS session is resumed. The error is words for the log.
func VerifyClient(state tls.ConnectionState, roots *x509.CertPool) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("no client certificate")
	}
	leaf := state.PeerCertificates[0]
	between := x509.NewCertPool()
	for _, c := range state.PeerCertificates[1:] {
		between.AddCert(c)
	}
	if roots == nil { // x509 would take the system's
		roots = x509.NewCertPool()
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: between,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	invalid, unknown := new(x509.CertificateInvalidError), new(x509.UnknownAuthorityError)
	switch {
	case errors.As(err, invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("the client certificate holds from %s to %s", stamp(leaf.NotBefore), stamp(leaf.NotAfter))
	case errors.As(err, invalid) && invalid.Reason == x509.IncompatibleUsage,
		err == nil && !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth):
		return errors.New("the client certificate is not for client authentication")
	case errors.As(err, unknown):
		return errors.New("the client certificate is not signed by the cluster's authority")
	case err != nil:
		return fmt.Errorf("the client certificate does not verify: %w", err)
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// ConnFacts returns what is known of a connection before its first byte.
func ConnFacts(local, remote net.Addr) api.Facts {
	f := api.Facts{Listener: local.String()}
	if from, err := netip.ParseAddrPort(remote.String()); err == nil {
		f.IP, f.Port = from.Addr().Unmap().String(), int(from.Port())
	}
	return f
}

// TLSFacts returns what a handshake told; leaf is the client's certificate if that was
// verified.
func TLSFacts(state *tls.ConnectionState, leaf *x509.Certificate) *api.TLSFacts {
	f := &api.TLSFacts{
		SNI:     ServerName(state.ServerName),
		ALPN:    state.NegotiatedProtocol,
		Version: strings.TrimPrefix(tls.VersionName(state.Version), "TLS "),
	}
	if leaf == nil {
		return f
	}
	sum := sha256.Sum256(leaf.Raw)
	f.ClientCertificate = &api.ClientCertificate{
		Subject: leaf.Subject.String(),
		Issuer:  leaf.Issuer.String(),
		Serial:  leaf.SerialNumber.Text(16),
		SHA256:  hex.EncodeToString(sum[:]),
		DNS:     leaf.DNSNames,
	}
	for _, u := range leaf.URIs {
		f.ClientCertificate.URIs = append(f.ClientCertificate.URIs, u.String())
	}
	return f
}

// ServerName returns a server name as it is compared and logged.
func ServerName(s string) string {
	s = strings.ToLower(s)
	return s[:min(len(s), 255)]
}
