package api

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Secret holds a value that other Objects use by name. The value is encrypted
// at rest and no API returns it.
type Secret struct {
	Head
	Spec SecretSpec `json:"spec"`
	// Data is there in input only; it is sealed before it is stored.
	Data   *SecretData  `json:"data,omitempty"`
	Status SecretStatus `json:"status,omitzero"`
}

// SecretSpec is what an administrator sets.
type SecretSpec struct {
	// Bind restricts what the Secret may be used for. It is checked each time.
	Bind  *SecretBinding `json:"bind,omitempty"`
	Attrs Attrs          `json:"attrs,omitempty"`
}

// A SecretBinding lists where a Secret may be used; an empty list is anywhere.
type SecretBinding struct {
	Services []string `json:"services,omitempty"` // SERVICE, SERVICE.NAMESPACE or TCPMapping/NAMESPACE/NAME
	Hosts    []string `json:"hosts,omitempty"`    // of upstreams, as in their URLs
}

// Allows reports whether the Secret may be used for that Service (its full name, or
// KIND/NAMESPACE/NAME of a foreign Object) towards that host.
func (b *SecretBinding) Allows(service, host string) bool {
	if b == nil {
		return true
	}
	return (len(b.Services) == 0 || slices.ContainsFunc(b.Services, func(s string) bool { return s == service || ServiceName(s) == service })) &&
		(len(b.Hosts) == 0 || slices.ContainsFunc(b.Hosts, func(h string) bool { return strings.EqualFold(h, host) }))
}

// SecretData is the value: text, or bytes in base64.
type SecretData struct {
	Value      string `json:"value,omitempty"`
	ValueBytes []byte `json:"valueBytes,omitempty"`
}

// Bytes returns the value.
func (d *SecretData) Bytes() []byte {
	if d.Value != "" {
		return []byte(d.Value)
	}
	return d.ValueBytes
}

// SecretStatus is how the value is kept.
type SecretStatus struct {
	// Sealed is the encrypted value, and KeyID names the key. The API never
	// returns Sealed.
	Sealed []byte `json:"sealed,omitempty"`
	KeyID  string `json:"keyID,omitempty"`
	// SHA256 is a keyed hash of the value, in hex: the log tells by it that a
	// value changed, without telling the value.
	SHA256 string `json:"sha256,omitempty"`
	// Certificate is what can be told of the certificate that the value holds.
	Certificate *CertificateFacts `json:"certificate,omitempty"`
}

// CertificateFacts is what everybody may know of a certificate.
type CertificateFacts struct {
	Subject  string    `json:"subject,omitempty"`
	DNS      []string  `json:"dns,omitempty"`
	NotAfter time.Time `json:"notAfter,omitzero"`
	SHA256   string    `json:"sha256,omitempty"` // of the DER, hex
	// HasKey is whether the private key of it is there too.
	HasKey bool `json:"hasKey,omitempty"`
}

// Default implements Object.
func (s *Secret) Default() { s.APIVersion, s.Kind = Version, KindSecret }

// maxSecret is the size of the largest value of a Secret.
const maxSecret = 512 << 10

// Validate implements Object.
func (s *Secret) Validate(p *Problems) {
	s.Metadata.validate(p, 1)
	if b := s.Spec.Bind; b != nil {
		for i, h := range b.Hosts {
			if !validHost(h) {
				p.Add(fmt.Sprintf("/spec/bind/hosts/%d", i), "must be a DNS name or an IP address", h)
			}
		}
	}
	switch {
	case s.Data == nil: // good for a Secret that has its value already
	case (s.Data.Value == "") == (len(s.Data.ValueBytes) == 0):
		p.Add("/data", "must have one of value and valueBytes", "")
	case len(s.Data.Bytes()) > maxSecret:
		p.Add("/data", "must be at most 512 KiB", strconv.Itoa(len(s.Data.Bytes()))+" bytes")
	}
}

func secretKind() Kind {
	return Kind{Name: KindSecret, Plural: "secrets", Short: []string{"sec"}, ByHand: true,
		New:     func() Object { return new(Secret) },
		Columns: []Column{{Heading: "SHA256", Wide: true, Cell: func(o Object) string { return o.(*Secret).Status.SHA256 }}}}
}
