package api

import "strings"

// KindTLSContext is the kind of TLSContexts.
const KindTLSContext = "TLSContext"

// A TLSContext is Ambassador's: how the TLS of some hosts is ended, or how TLS to
// a service is spoken.
type TLSContext struct {
	Head
	Spec   TLSContextSpec `json:"spec"`
	Status RouteStatus    `json:"status,omitzero"`
}

// TLSContextSpec is what an administrator sets.
type TLSContextSpec struct {
	AmbassadorID AmbassadorIDs `json:"ambassador_id,omitempty"`
	// Hosts are the server names for which clients are shown the certificate.
	Hosts []string `json:"hosts,omitempty"`
	// Secret names a Secret with certificate and key: NAME, or NAME.NAMESPACE unless
	// secret_namespacing is false.
	Secret string `json:"secret,omitempty"`
	TLSSettings
	SecretNamespacing *bool `json:"secret_namespacing,omitempty"`
	// V3CRLSecret is crl_secret in the stored form of version v2.
	V3CRLSecret string `json:"v3CRLSecret,omitempty"`
}

// TLSSettings are what a TLSContext and the tls of a Host have in common.
type TLSSettings struct {
	CertChainFile   string `json:"cert_chain_file,omitempty"`
	PrivateKeyFile  string `json:"private_key_file,omitempty"`
	CASecret        string `json:"ca_secret,omitempty"`
	CACertChainFile string `json:"cacert_chain_file,omitempty"`
	CRLSecret       string `json:"crl_secret,omitempty"`
	CRLFile         string `json:"crl_file,omitempty"`
	CertRequired    *bool  `json:"cert_required,omitempty"`
	// ALPNProtocols are in one text, with commas between them.
	ALPNProtocols string               `json:"alpn_protocols,omitempty"`
	MinTLSVersion AmbassadorTLSVersion `json:"min_tls_version,omitempty"`
	MaxTLSVersion AmbassadorTLSVersion `json:"max_tls_version,omitempty"`
	CipherSuites  []string             `json:"cipher_suites,omitempty"`
	ECDHCurves    []string             `json:"ecdh_curves,omitempty"`
	// RedirectCleartextFrom has no effect on TCP.
	RedirectCleartextFrom *int `json:"redirect_cleartext_from,omitempty"`
	// SNI is the server name that the service is asked for.
	SNI string `json:"sni,omitempty"`
}

// AmbassadorTLSVersion is a version of TLS as Ambassador writes it.
type AmbassadorTLSVersion string

// Values implements Enum.
func (AmbassadorTLSVersion) Values() []string { return []string{"v1.0", "v1.1", "v1.2", "v1.3"} }

// RouteStatus implements Routable.
func (c *TLSContext) RouteStatus() *RouteStatus { return &c.Status }

// Default implements Object.
func (c *TLSContext) Default() { c.defaultForeign(GroupAmbassador, KindTLSContext) }

// Validate implements Object.
func (c *TLSContext) Validate(p *Problems) { c.Metadata.validateForeign(p) }

func tlsContextKind() Kind {
	return Kind{Name: KindTLSContext, Plural: "tlscontexts", Short: []string{"tlsctx"}, Group: GroupAmbassador, Versions: ambassadorVersions(), ByHand: true,
		New: func() Object { return new(TLSContext) },
		Columns: []Column{
			namespaceColumn(),
			{Heading: "HOSTS", Cell: func(o Object) string { return strings.Join(o.(*TLSContext).Spec.Hosts, ",") }},
			{Heading: "SECRET", Cell: func(o Object) string { return o.(*TLSContext).Spec.Secret }},
			stateColumn(),
		}}
}
