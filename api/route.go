package api

import (
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// A Route is one row of the routing table: what comes in at a listener, and
// matches, goes to one of its members. Services and the Objects of other systems
// become Routes; package ingress makes the table of them.
type Route struct {
	// Owner is the Object that the row is of: that of its first member. Of two rows
	// that want the same, the one whose Owner was Created first keeps it.
	Owner   Key
	Created time.Time
	Bind    Bind
	Match   Match
	// Terminate says how the TLS of clients is ended; nil leaves the bytes as they are.
	Terminate *Termination
	// StartTLS is the protocol in which TLS begins after a request for it.
	StartTLS StartTLS
	Members  []Member
	// Refused, if it is set, is why every connection is refused: something that the
	// row needs is not there. It is words for the status and the log.
	Refused string
	// Rate is how many new connections a second one source network may open; 0 is
	// any number.
	Rate int
}

// A Bind is where a listener is.
type Bind struct {
	// Address is an IP address. "" is every address of IPv4 and IPv6, 0.0.0.0 every
	// one of IPv4, :: every one of IPv6.
	Address string
	Port    int
	UDP     bool `json:",omitempty"` // it takes datagrams, and not connections of TCP
}

// String returns ADDRESS:PORT, with * for every address, and /udp behind it if that is
// what it takes.
func (b Bind) String() string {
	at := net.JoinHostPort(b.Address, strconv.Itoa(b.Port))
	if b.Address == "" {
		at = "*" + at
	}
	if b.UDP {
		at += "/udp"
	}
	return at
}

// AnyName is the SNI of a Match that matches TLS with any server name, or none.
const AnyName = "*"

// A Match is what of the connections to a listener belongs to a row. Server names
// decide first: an exact one before *.a.b before *.b before [AnyName] before rows
// that take any bytes. Among the rows of one name those with more conditions come
// first; if none of the rows of the best name matches, the connection is refused,
// and no worse name is looked at.
type Match struct {
	// SNI is a server name in lower case, *.DOMAIN (which stands for names of any
	// depth below DOMAIN) or AnyName; "" takes any bytes, TLS or not.
	SNI string
	// ALPN lists protocols of which the client must offer one; nil is any, or none.
	ALPN []string
	// Sources lists the networks that the client may come from; nil is everywhere.
	Sources []netip.Prefix
}

// Equal reports whether two Matches are the same.
func (m Match) Equal(o Match) bool {
	return m.SNI == o.SNI && slices.Equal(m.ALPN, o.ALPN) && slices.Equal(m.Sources, o.Sources)
}

// A Member is one of the places where the connections of a row go.
type Member struct {
	// Object is what decisions, log and figures are about.
	Object Key
	// Weight is its share: so many of the sum of all. 0 is none.
	Weight int
	// Config says how the upstream is reached. It is nil for a Service, where the
	// decision brings it.
	Config *ServiceConfig
	// Limits are those of a foreign Object; a Service's come with the decision.
	Limits Limits
	// StatsName is what figures call it; "" is its name.
	StatsName string
}

// Routed is where the routing table sent a connection.
type Routed struct {
	Object    Key
	Config    *ServiceConfig // nil for a Service
	Limits    Limits
	StatsName string
	Log       LogRoute // without what is known later
}

// StartTLS is a protocol in which TLS begins after a request for it.
type StartTLS string

// The values of StartTLS.
const (
	// StartTLSPostgres is PostgreSQL: SSLRequest, or TLS from the first byte.
	StartTLSPostgres StartTLS = "POSTGRES"
)

// Values implements Enum.
func (StartTLS) Values() []string { return []string{string(StartTLSPostgres)} }

// ProxyVersion is a version of the PROXY protocol.
type ProxyVersion string

// The values of ProxyVersion.
const (
	ProxyV1 ProxyVersion = "V1"
	ProxyV2 ProxyVersion = "V2"
)

// Values implements Enum.
func (ProxyVersion) Values() []string { return []string{string(ProxyV1), string(ProxyV2)} }

// A Termination says how the TLS of clients is ended.
type Termination struct {
	// Certificate is what the clients are shown. ClusterName is, instead, the server
	// name of a certificate of the cluster's own CA, and ClusterHosts the names and
	// *.DOMAIN that it is for beside that.
	Certificate  *Material
	ClusterName  string
	ClusterHosts []string
	// ClientCA is what certificates of clients are verified against; nil asks for none.
	ClientCA *Material
	CRL      *Material // revocation lists; nil for none
	// RequireClientCertificate refuses who shows none.
	RequireClientCertificate bool
	// Sessions asks for certificates of Sessions (of the cluster's own CA): who shows
	// one comes as that Session. RequireClientCertificate then refuses who shows none.
	Sessions bool
	ALPN     []string // in order of preference; nil takes the first that the client offers
	TLSTerms
}

// TLSTerms are what of TLS is negotiated. The zero value is TLS 1.2 and 1.3 with
// what Go thinks is safe.
type TLSTerms struct {
	MinVersion   TLSVersion `json:"minVersion,omitempty"`
	MaxVersion   TLSVersion `json:"maxVersion,omitempty"`
	CipherSuites []string   `json:"cipherSuites,omitempty"` // of TLS 1.2 and older, by their IANA or OpenSSL names
	Curves       []string   `json:"curves,omitempty"`       // "X25519", "P-256", …
}

// TLSVersion is a version of TLS.
type TLSVersion string

// Values implements Enum.
func (TLSVersion) Values() []string { return []string{"v1.0", "v1.1", "v1.2", "v1.3"} }

// A Material is where certificates, keys or revocation lists are: in a Secret, of
// ours or of Kubernetes, or in files of the machine that the cluster runs on.
type Material struct {
	Secret *Key `json:"secret,omitempty"`
	// Chain and Key are paths of PEM files: a certificate chain (or CAs, or revocation
	// lists) and its key.
	Chain string `json:"chain,omitempty"`
	Key   string `json:"key,omitempty"`
	// Service is the one that shows the certificate at its public port, if it is a
	// Service: a Secret of ours may be bound to others.
	Service string `json:"-"`
}

// String says for a person where it is.
func (m *Material) String() string {
	if m.Secret != nil {
		return m.Secret.String()
	}
	return "file " + m.Chain
}

// Routes is what an input of another system, or a set of Services, comes to.
type Routes struct {
	Routes []Route
	// Proxied are the listeners at which every connection begins with a PROXY header.
	Proxied []Bind
	// Status has how it stands with each Object of the input, by key.
	Status map[Key]*RouteStatus
	// Others are Objects that the Routes are about beside their Owners and members:
	// contexts and Secrets, by the key of the Object that uses them.
	Uses map[Key][]Key
}

// A RouteStatus is how it stands with an Object of which Routes are made.
type RouteStatus struct {
	Conditions []StatusCondition `json:"conditions,omitempty"`
	// Notes say what of the spec has no effect, or another one than the system that it
	// comes from gives it.
	Notes []string `json:"notes,omitempty"`
	// Endpoints say how the endpoints of its upstream do in this process, where that is
	// known; they are not stored.
	Endpoints []EndpointStatus `json:"endpoints,omitempty"`
}

// The types of conditions of a RouteStatus.
const (
	ConditionAccepted          = "Accepted"          // the Object is part of the table
	ConditionResolved          = "ResolvedRefs"      // what it refers to is there and good
	ConditionListening         = "Listening"         // its port is open
	ConditionUpstreamVerified  = "UpstreamVerified"  // its upstream's certificate verifies, as last seen
	ConditionUpstreamReachable = "UpstreamReachable" // a connection to its upstream can be made, as last tried
	ConditionUpstreamHealthy   = "UpstreamHealthy"   // one of its endpoints at least serves; that some do not is in the message
)

// Set makes a condition what it is now; one that stays as it was keeps its Since.
func (s *RouteStatus) Set(kind string, ok bool, reason, message string, now time.Time) {
	status := "False"
	if ok {
		status = "True"
	}
	for i := range s.Conditions {
		if c := &s.Conditions[i]; c.Type == kind {
			if c.Status != status {
				c.Status, c.Since = status, now.UTC()
			}
			c.Reason, c.Message = reason, message
			return
		}
	}
	s.Conditions = append(s.Conditions, StatusCondition{Type: kind, Status: status, Reason: reason, Message: message, Since: now.UTC()})
}

// Condition returns the condition of that type, nil if there is none.
func (s *RouteStatus) Condition(kind string) *StatusCondition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == kind {
			return &s.Conditions[i]
		}
	}
	return nil
}

// Summary says in a word or a sentence how it stands.
func (s *RouteStatus) Summary() string {
	if len(s.Conditions) == 0 {
		return ""
	}
	for _, c := range s.Conditions {
		if c.Status == "False" {
			return c.Type + "=False: " + c.Message
		}
	}
	return "OK"
}

// A Routable is an Object of which Routes are made.
type Routable interface {
	Object
	RouteStatus() *RouteStatus
}

// A RouteQuestion asks where a connection would go: GET /api/route.
type RouteQuestion struct {
	Port    int      `json:"port"`
	UDP     bool     `json:"udp,omitempty"`     // it is about a datagram
	Address string   `json:"address,omitempty"` // that is connected to; any
	SNI     string   `json:"sni,omitempty"`
	NoTLS   bool     `json:"noTLS,omitempty"` // the client does not speak TLS
	ALPN    []string `json:"alpn,omitempty"`
	From    string   `json:"from,omitempty"` // IP address
}

// A RouteAnswer says where a connection would go, and why.
type RouteAnswer struct {
	Listener string   `json:"listener,omitempty"` // "" if nothing listens there
	Open     bool     `json:"open"`               // the port is open in this process
	Steps    []string `json:"steps"`              // what was looked at, in order
	Refused  string   `json:"refused,omitempty"`  // why the connection would be refused
	Match    string   `json:"match,omitempty"`
	Owner    *Key     `json:"owner,omitempty"`
	Version  string   `json:"version,omitempty"`
	TLS      string   `json:"tls,omitempty"` // what becomes of the client's TLS
	// Members are where it may go, each with its share.
	Members []RouteShare `json:"members,omitempty"`
}

// A RouteShare is one of several places where a connection may go.
type RouteShare struct {
	Object    Key      `json:"object"`
	Weight    int      `json:"weight"`
	Of        int      `json:"of"`        // the sum of all weights
	Endpoints []string `json:"endpoints"` // HOST:PORT
	// Health says how they do in the process that was asked, where that is known.
	Health []EndpointStatus `json:"health,omitempty"`
	TLS    string           `json:"tls,omitempty"`
	Notes  []string         `json:"notes,omitempty"`
}
