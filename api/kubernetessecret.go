package api

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// A KubernetesSecret is a Secret of Kubernetes, which TLSContexts and Hosts name.
// Its values are encrypted at rest and no API returns them.
type KubernetesSecret struct {
	Head
	Type      string `json:"type,omitempty"` // kubernetes.io/tls, Opaque, …
	Immutable *bool  `json:"immutable,omitempty"`
	// Data and StringData are there in input only; they are sealed before they are
	// stored.
	Data       map[string][]byte      `json:"data,omitempty"`
	StringData map[string]string      `json:"stringData,omitempty"`
	Status     KubernetesSecretStatus `json:"status,omitzero"`
}

// KubernetesSecretStatus is how the values are kept.
type KubernetesSecretStatus struct {
	// Sealed is the encrypted values (the JSON of data), and KeyID names the key. The
	// API never returns Sealed.
	Sealed []byte `json:"sealed,omitempty"`
	KeyID  string `json:"keyID,omitempty"`
	// SHA256 is a keyed hash of the values, in hex.
	SHA256 string `json:"sha256,omitempty"`
	// Keys are the names of the values, in order: tls.crt, tls.key, …
	Keys []string `json:"keys,omitempty"`
	// Certificate is what can be told of the certificate in tls.crt.
	Certificate *CertificateFacts `json:"certificate,omitempty"`
}

// Values returns data and stringData together, as Kubernetes has them.
func (s *KubernetesSecret) Values() map[string][]byte {
	all := maps.Clone(s.Data)
	if all == nil {
		all = map[string][]byte{}
	}
	for k, v := range s.StringData {
		all[k] = []byte(v)
	}
	return all
}

// HasData reports whether the values are there, in input.
func (s *KubernetesSecret) HasData() bool { return s.Data != nil || s.StringData != nil }

// Default implements Object.
func (s *KubernetesSecret) Default() { s.defaultForeign(GroupKubernetes, KindSecret) }

// Validate implements Object.
func (s *KubernetesSecret) Validate(p *Problems) {
	s.Metadata.validateForeign(p)
	n := 0
	for k, v := range s.Values() {
		n += len(k) + len(v)
	}
	if n > maxSecret {
		p.Add("/data", "must be at most 512 KiB", fmt.Sprintf("%d bytes", n))
	}
}

// HasKey reports whether the Secret has a value of that name.
func (s *KubernetesSecret) HasKey(name string) bool { return slices.Contains(s.Status.Keys, name) }

func kubernetesSecretKind() Kind {
	return Kind{Name: KindSecret, Plural: "secrets", Short: []string{"secret.v1", "secrets.v1"}, Group: GroupKubernetes, Versions: []string{"v1"}, ByHand: true,
		New: func() Object { return new(KubernetesSecret) },
		Columns: []Column{
			namespaceColumn(),
			{Heading: "TYPE", Cell: func(o Object) string { return o.(*KubernetesSecret).Type }},
			{Heading: "KEYS", Cell: func(o Object) string { return strings.Join(o.(*KubernetesSecret).Status.Keys, ",") }},
		}}
}
