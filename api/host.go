package api

import "cmp"

// KindHost is the kind of Hosts.
const KindHost = "Host"

// A Host is Ambassador's: a host name and its certificate. Of what it says, TCP
// takes those two.
type Host struct {
	Head
	Spec   HostSpec    `json:"spec"`
	Status RouteStatus `json:"status,omitzero"`
}

// HostSpec is what an administrator sets.
type HostSpec struct {
	Installations
	Hostname string `json:"hostname,omitempty"` // * if it is left out
	// TLSSecret names the Secret with certificate and key.
	TLSSecret *HostSecret `json:"tlsSecret,omitempty"`
	// TLSContext names a TLSContext.
	TLSContext *HostSecret `json:"tlsContext,omitempty"`
	// TLS says what else there is to say of TLS. It may be written with lowerCamelCase
	// names, too.
	TLS *HostTLS `json:"tls,omitempty"`
	// What follows has no effect on TCP.
	RequestPolicy   Ported `json:"requestPolicy,omitzero"`
	MappingSelector Ported `json:"mappingSelector,omitzero"`
	Selector        Ported `json:"selector,omitzero"`
	ACMEProvider    Ported `json:"acmeProvider,omitzero"`
	PreviewURL      Ported `json:"previewUrl,omitzero"`
}

// A HostSecret names an Object.
type HostSecret struct {
	Name      string `json:"name,omitempty"`
	Namespace string `json:"namespace,omitempty"`
}

// HostTLS is the tls of a Host.
type HostTLS struct {
	TLSSettings
	CertChainFileCamel         string               `json:"certChainFile,omitempty"`
	PrivateKeyFileCamel        string               `json:"privateKeyFile,omitempty"`
	CASecretCamel              string               `json:"caSecret,omitempty"`
	CACertChainFileCamel       string               `json:"caCertChainFile,omitempty"`
	CRLSecretCamel             string               `json:"crlSecret,omitempty"`
	CertRequiredCamel          *bool                `json:"certRequired,omitempty"`
	ALPNProtocolsCamel         string               `json:"alpnProtocols,omitempty"`
	MinTLSVersionCamel         AmbassadorTLSVersion `json:"minTLSVersion,omitempty"`
	MaxTLSVersionCamel         AmbassadorTLSVersion `json:"maxTLSVersion,omitempty"`
	CipherSuitesCamel          []string             `json:"cipherSuites,omitempty"`
	ECDHCurvesCamel            []string             `json:"ecdhCurves,omitempty"`
	RedirectCleartextFromCamel *int                 `json:"redirectCleartextFrom,omitempty"`
}

// Settings returns what is written, in the one spelling or the other.
func (t *HostTLS) Settings() TLSSettings {
	s := t.TLSSettings
	s.CertChainFile = cmp.Or(s.CertChainFile, t.CertChainFileCamel)
	s.PrivateKeyFile = cmp.Or(s.PrivateKeyFile, t.PrivateKeyFileCamel)
	s.CASecret = cmp.Or(s.CASecret, t.CASecretCamel)
	s.CACertChainFile = cmp.Or(s.CACertChainFile, t.CACertChainFileCamel)
	s.CRLSecret = cmp.Or(s.CRLSecret, t.CRLSecretCamel)
	s.CertRequired = cmp.Or(s.CertRequired, t.CertRequiredCamel)
	s.ALPNProtocols = cmp.Or(s.ALPNProtocols, t.ALPNProtocolsCamel)
	s.MinTLSVersion = cmp.Or(s.MinTLSVersion, t.MinTLSVersionCamel)
	s.MaxTLSVersion = cmp.Or(s.MaxTLSVersion, t.MaxTLSVersionCamel)
	if s.CipherSuites == nil {
		s.CipherSuites = t.CipherSuitesCamel
	}
	if s.ECDHCurves == nil {
		s.ECDHCurves = t.ECDHCurvesCamel
	}
	s.RedirectCleartextFrom = cmp.Or(s.RedirectCleartextFrom, t.RedirectCleartextFromCamel)
	return s
}

// RouteStatus implements Routable.
func (h *Host) RouteStatus() *RouteStatus { return &h.Status }

// Default implements Object.
func (h *Host) Default() { h.defaultForeign(GroupAmbassador, KindHost) }

// Validate implements Object.
func (h *Host) Validate(p *Problems) { h.Metadata.validateForeign(p) }

func hostKind() Kind {
	return Kind{Name: KindHost, Plural: "hosts", Group: GroupAmbassador, Versions: ambassadorVersions(), ByHand: true,
		New: func() Object { return new(Host) },
		Columns: []Column{
			namespaceColumn(),
			{Heading: "HOSTNAME", Cell: func(o Object) string { return o.(*Host).Spec.Hostname }},
			stateColumn(),
		}}
}
