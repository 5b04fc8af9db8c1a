package api

// A Context is what a condition sees as ctx. A nil pointer is an absent object:
// reading through it makes the condition unknown, never an empty value.
type Context struct {
	User      *User      `json:"user,omitempty"`
	Session   *Session   `json:"session,omitempty"`
	Device    *Device    `json:"device,omitempty"` // the one that the Session is bound to
	Groups    []*Group   `json:"groups,omitempty"` // those of the User that exist
	Service   *Service   `json:"service,omitempty"`
	Namespace *Namespace `json:"namespace,omitempty"`
	Request   *Facts     `json:"request,omitempty"`
}

// Facts is what is known of a request beside who makes it: what a condition
// sees as ctx.request, and what the log keeps of it. At most one of the protocol
// objects (api, later http, ssh, …) is there; reading another means that the
// rule is about another protocol.
type Facts struct {
	IP        string      `json:"ip,omitempty"`        // source address, of the client proper
	Port      int         `json:"port,omitempty"`      // source port
	Listener  string      `json:"listener,omitempty"`  // our own address, HOST:PORT
	ProxiedBy string      `json:"proxiedBy,omitempty"` // address of the proxy that told us IP and Port
	Proxy     *ProxyFacts `json:"proxy,omitempty"`     // what else it told
	Tunnel    string      `json:"tunnel,omitempty"`    // "cardea/1", "quic", "tls", "wireguard", "memory", "public" (a public port)
	TLS       *TLSFacts   `json:"tls,omitempty"`
	API       *APIFacts   `json:"api,omitempty" cardea:"protocol"`
}

// ProxyFacts is what a PROXY header told beside the source address: what a trusted
// proxy says, and nobody has verified. (The PROXY protocol, versions 1 & 2, HAProxy.)
type ProxyFacts struct {
	Version     int    `json:"version,omitempty"`     // 1 or 2
	Destination string `json:"destination,omitempty"` // HOST:PORT that the client connected to
	Authority   string `json:"authority,omitempty"`   // server name that the client asked for
	ALPN        string `json:"alpn,omitempty"`
	UniqueID    string `json:"uniqueID,omitempty"`   // hex
	TLSVersion  string `json:"tlsVersion,omitempty"` // of the client's connection to the proxy; "" if it was not TLS
	// ClientCertificate is set if the client showed a certificate, and CommonName is
	// its, if the proxy verified it.
	ClientCertificate bool   `json:"clientCertificate,omitempty"`
	CommonName        string `json:"commonName,omitempty"`
	// TLVs are the other fields that it sent: type (two hex digits) and value (hex).
	TLVs map[string]string `json:"tlvs,omitempty"`
}

// TLSFacts is what the TLS handshake told.
type TLSFacts struct {
	SNI               string             `json:"sni,omitempty"`
	ALPN              string             `json:"alpn,omitempty"`
	Version           string             `json:"version,omitempty"` // "1.2", "1.3"
	ClientCertificate *ClientCertificate `json:"clientCertificate,omitempty"`
}

// ClientCertificate is the verified certificate of the peer.
type ClientCertificate struct {
	Subject string   `json:"subject,omitempty"`
	Issuer  string   `json:"issuer,omitempty"`
	Serial  string   `json:"serial,omitempty"` // hex
	SHA256  string   `json:"sha256,omitempty"` // of the DER, hex
	URIs    []string `json:"uris,omitempty"`
	DNS     []string `json:"dns,omitempty"`
}

// FactKubernetesSecret is the kind of a Secret of Kubernetes in APIFacts, where kinds
// have no group beside them.
const FactKubernetesSecret = "KubernetesSecret"

// APIFacts is what ctx.request.api says of a call to Cardea's own API.
type APIFacts struct {
	// Verb is get, list, watch, create, update, delete, renew, why, route, conns,
	// kill, logs, metrics, backup or rotate, or serve, to be the upstream of a Service
	// that names the caller's User; apply asks for create or update of each document. A
	// write may ask for more: use for a Secret that it names, publish
	// for a Service or TCPMapping that opens a port, or needs no Session, approve for the state of a Session or
	// Device and the terms of Sessions, impersonate for a User as whom it lets
	// somebody log in, attach for a Policy that it gives and the writer does not
	// have, join for a Group of which it makes somebody a member, escalate for an
	// Object into which it writes what rules say or read.
	Verb string `json:"verb"`
	// Kind is that of the Object; of a Secret of Kubernetes it is FactKubernetesSecret.
	Kind string `json:"kind,omitempty"`
	Name string `json:"name,omitempty"`
	// Namespace is that of a Service, or of an Object of another system.
	Namespace string `json:"namespace,omitempty"`
}
