package api

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
	AmbassadorID AmbassadorIDs `json:"ambassador_id,omitempty"`
	Hostname     string        `json:"hostname,omitempty"` // * if it is left out
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
