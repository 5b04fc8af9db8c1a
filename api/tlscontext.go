package api

import (
	"slices"
	"strings"
)

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
	Installations
	// Hosts are the server names for which clients are shown the certificate.
	Hosts []string `json:"hosts,omitempty"`
	// Secret names a Secret with certificate and key: NAME, or NAME.NAMESPACE unless
	// secret_namespacing is false.
	Secret string `json:"secret,omitempty"`
	TLSSettings
	// SecretNamespacing says whether a dot in the name of a Secret parts it from its
	// namespace; true if it is left out, here and in the Module.
	SecretNamespacing *bool `json:"secret_namespacing,omitempty"`
}

// TLSSettings are what a TLSContext and the tls of a Host have in common.
type TLSSettings struct {
	// CertChainFile is the path of a certificate chain, PEM, below a directory of
	// --tls-files; PrivateKeyFile has its key.
	CertChainFile  string `json:"cert_chain_file,omitempty"`
	PrivateKeyFile string `json:"private_key_file,omitempty"` // path of the key of cert_chain_file, PEM
	// CASecret names the Secret with the certificates of CAs that the other side is
	// verified against: clients, or the service.
	CASecret        string `json:"ca_secret,omitempty"`
	CACertChainFile string `json:"cacert_chain_file,omitempty"` // path of such certificates, PEM
	// CRLSecret names the Secret with revocation lists of those CAs.
	CRLSecret string `json:"crl_secret,omitempty"`
	// V3CRLSecret is crl_secret in the stored form of version v2.
	V3CRLSecret  string `json:"v3CRLSecret,omitempty"`
	CRLFile      string `json:"crl_file,omitempty"`      // path of such revocation lists, PEM
	CertRequired *bool  `json:"cert_required,omitempty"` // refuses clients that show no certificate; it needs a CA
	// ALPNProtocols are in one text, with commas between them.
	ALPNProtocols string               `json:"alpn_protocols,omitempty"`
	MinTLSVersion AmbassadorTLSVersion `json:"min_tls_version,omitempty"` // v1.2 if it is left out
	MaxTLSVersion AmbassadorTLSVersion `json:"max_tls_version,omitempty"` // v1.3 if it is left out
	// CipherSuites are those of TLS 1.2 and older, by their IANA or OpenSSL names.
	CipherSuites []string `json:"cipher_suites,omitempty"`
	ECDHCurves   []string `json:"ecdh_curves,omitempty"` // X25519, P-256, P-384, P-521
	// RedirectCleartextFrom has no effect on TCP.
	RedirectCleartextFrom *int `json:"redirect_cleartext_from,omitempty"`
	// SNI is the server name that the service is asked for.
	SNI string `json:"sni,omitempty"`
}

// Terms returns what of TLS is negotiated, and what is wrong with it. Suites of TLS
// 1.3, which cannot be chosen, are left out; if there were no others, 1.3 is the
// lowest version.
func (s *TLSSettings) Terms() (TLSTerms, []Problem) {
	t := TLSTerms{MinVersion: TLSVersion(s.MinTLSVersion), MaxVersion: TLSVersion(s.MaxTLSVersion), Curves: s.ECDHCurves}
	for _, suite := range s.CipherSuites {
		if !isTLS13Suite(suite) {
			t.CipherSuites = append(t.CipherSuites, suite)
		}
	}
	if len(s.CipherSuites) > 0 && len(t.CipherSuites) == 0 {
		t.MinVersion = "v1.3"
	}
	var p Problems
	t.validate(&p, "")
	for i := range p.List {
		x := &p.List[i]
		x.Pointer, x.Rule = ambassadorField(x.Pointer), strings.Replace(x.Rule, "maxVersion", "max_tls_version", 1)
		if x.Hint == "" {
			x.Hint = nearestHint(x.Found, x.Allowed)
		}
		if strings.HasPrefix(x.Rule, "must be one of") {
			x.Allowed = nil // the rule lists them
		}
	}
	return t, p.List
}

// isTLS13Suite reports whether a text is the name of a suite of TLS 1.3 (RFC 8446,
// appendix B.4), of which OpenSSL has no other.
func isTLS13Suite(name string) bool {
	return slices.ContainsFunc([]string{"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256", "TLS_AES_128_CCM_SHA256", "TLS_AES_128_CCM_8_SHA256"},
		func(s string) bool { return strings.EqualFold(s, name) })
}

// ambassadorField returns the pointer of a field of TLSTerms as Ambassador calls it.
func ambassadorField(pointer string) string {
	return strings.NewReplacer("/cipherSuites", "/cipher_suites", "/curves", "/ecdh_curves", "/minVersion", "/min_tls_version", "/maxVersion", "/max_tls_version").
		Replace(pointer)
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
