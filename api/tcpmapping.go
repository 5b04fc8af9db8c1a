package api

import (
	"fmt"
	"strconv"
	"strings"
)

// KindTCPMapping is the kind of TCPMappings.
const KindTCPMapping = "TCPMapping"

// A TCPMapping is Ambassador's: connections to a port, and with host to a server
// name, go to a service. The versions of it have the same fields. What these do not
// say, metadata.annotations do, as text:
//
//   - cardea/tls: passthrough leaves TLS to the service; only the server name is read.
//   - cardea/alpn: the client must offer one of these protocols, such as h2,http/1.1.
//   - cardea/sources: the client must come from one of these networks, such as 10.0.0.0/8,fd00::/8.
//   - cardea/proxy-protocol: v1 or v2 of the PROXY header that the service is sent first.
//   - cardea/starttls: postgres, if clients ask for TLS as PostgreSQL's do.
//   - cardea/upstream-verification: REQUIRE or REPORT, of the certificate of the service.
//   - cardea/connect-timeout: until the connection to the service is there, such as 3s.
//   - cardea/pending-timeout: of a connection that waits for another to end, such as 5s.
//   - cardea/max-duration: of a connection, such as 8h.
//   - cardea/half-close-timeout: of a connection of which one side has finished, such as 30s.
//   - cardea/on-removal: cut or drain, what becomes of live connections when it is deleted.
//   - cardea/connections-per-second: new ones that one source network may open, such as 50.
//   - cardea/connections-per-client: live ones that one source network may have, such as 10.
//   - cardea/max-bytes: that a connection may carry, of both directions together.
//   - cardea/upload-bytes-per-second, cardea/download-bytes-per-second: of a connection.
//   - cardea/loadbalance: as a Service's config.upstream.loadbalance, without endpoints, in JSON,
//     such as {"algorithm": "LEAST_CONNECTIONS", "slowStart": {"seconds": 30}}: the addresses of
//     the service's name are shared among.
//   - cardea/health: as a Service's config.upstream.health, in JSON,
//     such as {"check": {"type": "TCP", "interval": {"seconds": 2}}}.
type TCPMapping struct {
	Head
	Spec   TCPMappingSpec `json:"spec"`
	Status RouteStatus    `json:"status,omitzero"`
}

// TCPMappingSpec is what an administrator sets.
type TCPMappingSpec struct {
	Installations
	// Address is the IP address to listen on; every one, if it is left out.
	Address string `json:"address,omitempty"`
	// Port is the TCP port to listen at: 1 to 65535, required.
	Port *int `json:"port,omitempty"`
	// Host makes the listener end TLS, and is the server name that the client must ask
	// for: NAME, *.DOMAIN or *, which is any or none.
	Host string `json:"host,omitempty"`
	// Service is where connections go: [SCHEME://]HOST[:PORT], required. Without a port
	// it is 443 with TLS, else 80.
	Service string `json:"service,omitempty"`
	// TLS makes the connection to the service speak TLS: true, or the name of a
	// TLSContext.
	TLS NameOrBool `json:"tls,omitzero"`
	// Weight is the share, in per cent, of the connections of the mappings with the
	// same address, port and host: 0 to 100.
	Weight *int `json:"weight,omitempty"`
	// IdleTimeoutMs ends a connection on which nothing passed for so many milliseconds;
	// 0 is never.
	IdleTimeoutMs *Digits `json:"idle_timeout_ms,omitempty"`
	// EnableIPv4 uses the IPv4 addresses of the service's name; as the Module says if it
	// is left out, else true.
	EnableIPv4 *bool `json:"enable_ipv4,omitempty"`
	// EnableIPv6 uses its IPv6 addresses, before those of IPv4; as the Module says if it
	// is left out, else false.
	EnableIPv6 *bool `json:"enable_ipv6,omitempty"`
	// CircuitBreakers bound the connections; an empty list takes away those of the
	// Module.
	CircuitBreakers *[]CircuitBreaker `json:"circuit_breakers,omitempty"`
	// Resolver names a resolver, which says how the service is found: by DNS, that of
	// Kubernetes or not.
	Resolver string `json:"resolver,omitempty"`
	// ClusterTag has no effect here.
	ClusterTag string `json:"cluster_tag,omitempty"`
	// StatsName is what metrics call it, instead of its name.
	StatsName string `json:"stats_name,omitempty"`
	// V3StatsName is stats_name in the stored form of version v2.
	V3StatsName string `json:"v3StatsName,omitempty"`
	// V2ExplicitTLS is what the conversion from version v2 keeps; it says nothing new.
	V2ExplicitTLS Ported `json:"v2ExplicitTLS,omitzero"`
	// Labels have no effect on TCP.
	Labels Ported `json:"labels,omitzero"`
}

// A CircuitBreaker bounds the connections of one priority.
type CircuitBreaker struct {
	Priority           string `json:"priority,omitempty"`             // default or high, which means nothing for TCP
	MaxConnections     *int   `json:"max_connections,omitempty"`      // open at once; 0 refuses everybody
	MaxPendingRequests *int   `json:"max_pending_requests,omitempty"` // connections that may wait until there are fewer
	MaxRequests        *int   `json:"max_requests,omitempty"`         // means nothing for TCP
	MaxRetries         *int   `json:"max_retries,omitempty"`          // means nothing for TCP
}

// AnnotationPrefix begins the annotations of a TCPMapping that say what its spec has no
// field for.
const AnnotationPrefix = "cardea/"

// The annotations of a TCPMapping, without AnnotationPrefix.
const (
	AnnotationTLS                  = "tls"                    // passthrough: TLS is left to the service
	AnnotationALPN                 = "alpn"                   // protocols of which the client must offer one
	AnnotationSources              = "sources"                // networks that clients may come from
	AnnotationProxyProtocol        = "proxy-protocol"         // v1, v2: of the header that the service is sent
	AnnotationStartTLS             = "starttls"               // postgres
	AnnotationUpstreamVerification = "upstream-verification"  // REQUIRE, REPORT
	AnnotationConnectTimeout       = "connect-timeout"        // a duration of Go's, as are the next three
	AnnotationPendingTimeout       = "pending-timeout"        // of a connection that waits for another to end
	AnnotationMaxDuration          = "max-duration"           // of a connection
	AnnotationHalfCloseTimeout     = "half-close-timeout"     // of a connection of which one side has finished
	AnnotationOnRemoval            = "on-removal"             // cut, drain: live connections when the TCPMapping is deleted
	AnnotationConnectionsPerSecond = "connections-per-second" // new ones, of one source network
	AnnotationConnectionsPerClient = "connections-per-client" // live ones, of one source network
	AnnotationMaxBytes             = "max-bytes"              // of a connection
	AnnotationUpload               = "upload-bytes-per-second"
	AnnotationDownload             = "download-bytes-per-second"
	AnnotationLoadbalance          = "loadbalance" // a Loadbalance without endpoints, in JSON
	AnnotationHealth               = "health"      // an UpstreamHealth, in JSON
)

// OnRemovalCut reports whether the live connections of a TCPMapping end when it is
// deleted, instead of being drained.
func OnRemovalCut(m *TCPMapping) bool {
	return strings.EqualFold(strings.TrimSpace(m.Metadata.Annotations[AnnotationPrefix+AnnotationOnRemoval]), "cut")
}

// RouteStatus implements Routable.
func (m *TCPMapping) RouteStatus() *RouteStatus { return &m.Status }

// Default implements Object.
func (m *TCPMapping) Default() { m.defaultForeign(GroupAmbassador, KindTCPMapping) }

// Validate implements Object. What depends on other Objects, and what the other
// system finds only when it builds its configuration, is said by the status.
func (m *TCPMapping) Validate(p *Problems) {
	m.Metadata.validateForeign(p)
	switch port := m.Spec.Port; {
	case port == nil:
		p.Add("/spec/port", "is required", "")
	case *port < 1 || *port > 65535:
		p.Add("/spec/port", "must be from 1 to 65535", strconv.Itoa(*port))
	}
	if m.Spec.Service == "" {
		p.Add("/spec/service", "is required: [SCHEME://]HOST[:PORT]", "")
	}
	if m.Spec.CircuitBreakers != nil {
		validateBreakers(p, "/spec/circuit_breakers", *m.Spec.CircuitBreakers)
	}
}

func validateBreakers(p *Problems, at string, list []CircuitBreaker) {
	for i, b := range list {
		at := fmt.Sprintf("%s/%d", at, i)
		if b.Priority != "" && b.Priority != "default" && b.Priority != "high" {
			p.Add(at+"/priority", "must be one of the allowed values", b.Priority).Allowed = []string{"default", "high"}
		}
		for _, x := range []struct {
			name string
			n    *int
		}{{"max_connections", b.MaxConnections}, {"max_pending_requests", b.MaxPendingRequests}, {"max_requests", b.MaxRequests}, {"max_retries", b.MaxRetries}} {
			if x.n != nil && *x.n < 0 {
				p.Add(at+"/"+x.name, "must not be less than 0", strconv.Itoa(*x.n))
			}
		}
	}
}

func tcpMappingKind() Kind {
	return Kind{Name: KindTCPMapping, Plural: "tcpmappings", Short: []string{"tm"}, Group: GroupAmbassador, Versions: ambassadorVersions(), ByHand: true,
		New: func() Object { return new(TCPMapping) },
		Columns: []Column{
			namespaceColumn(),
			{Heading: "LISTEN", Cell: func(o Object) string {
				s := &o.(*TCPMapping).Spec
				if s.Port == nil {
					return ""
				}
				return Bind{Address: s.Address, Port: *s.Port}.String()
			}},
			{Heading: "HOST", Cell: func(o Object) string { return o.(*TCPMapping).Spec.Host }},
			{Heading: "SERVICE", Cell: func(o Object) string { return o.(*TCPMapping).Spec.Service }},
			{Heading: "TLS", Cell: func(o Object) string {
				switch t := o.(*TCPMapping).Spec.TLS; {
				case t.Name != "":
					return t.Name
				case t.Bool != nil:
					return strings.ToLower(fmt.Sprint(*t.Bool))
				}
				return ""
			}},
			{Heading: "WEIGHT", Cell: func(o Object) string {
				if w := o.(*TCPMapping).Spec.Weight; w != nil {
					return strconv.Itoa(*w)
				}
				return ""
			}},
			stateColumn(),
		}}
}
