package secret

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"

	"cardea/api"
)

// The names of what a Secret of Kubernetes holds: those of kubernetes.io/tls, and
// others that Ambassador reads (Istio's, and those of ACME clients).
const (
	keyCert         = "tls.crt"
	keyKey          = "tls.key"
	keyIstioCert    = "cert-chain.pem"
	keyIstioKey     = "key.pem"
	keyIstioRoot    = "root-cert.pem"
	keyUser         = "user.key"
	keyCA           = "ca.crt"
	keyCRL          = "crl.pem"
	keyCertRequired = "cert_required"
)

// maxDNS is the number of a certificate's names that are told.
const maxDNS = 100

// Describe sets what may be known of a Secret of Kubernetes, from its values: their
// names, and the facts of its certificate. One whose values are not there, because
// they are sealed, stays as it is.
func Describe(s *api.KubernetesSecret) {
	if !s.HasData() && len(s.Status.Sealed) > 0 {
		return
	}
	values := s.Values()
	s.Status.Keys = slices.Sorted(maps.Keys(values))
	s.Status.Certificate = describe(ownOf(values))
}

// ownOf returns which values of a Secret of Kubernetes are its certificate and the
// key of that.
func ownOf(values map[string][]byte) (cert, key []byte) {
	return first(values, keyCert, keyIstioCert), first(values, keyKey, keyIstioKey, keyUser)
}

// first returns the first value of those names that is there.
func first(values map[string][]byte, names ...string) []byte {
	for _, n := range names {
		if len(values[n]) > 0 {
			return values[n]
		}
	}
	return nil
}

// DescribeValue returns the facts of the certificate that the value of a Secret
// holds: that of its key, or else the first. It is nil if there is none that can be
// read.
func DescribeValue(value []byte) *api.CertificateFacts { return describe(value, nil) }

// describe does so of a certificate and a key that stands elsewhere.
func describe(cert, key []byte) *api.CertificateFacts {
	var b bundle
	if b.add(cert) != nil || len(b.certs) == 0 {
		return nil
	}
	if b.add(key) != nil {
		b.key = nil
	}
	at := b.own()
	c := b.certs[max(at, 0)]
	hash := sha256.Sum256(c.Raw)
	return &api.CertificateFacts{
		Subject: c.Subject.String(), DNS: c.DNSNames[:min(len(c.DNSNames), maxDNS)], NotAfter: c.NotAfter.UTC(),
		SHA256: hex.EncodeToString(hash[:]), HasKey: at >= 0,
	}
}
