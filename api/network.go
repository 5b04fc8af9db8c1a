package api

import (
	"net/netip"
	"time"
)

// NetworkMTU is the MTU of the interfaces of the private network, in bytes: the least that
// IPv6 takes (RFC 8200, section 5), so that a tunnel fits through almost any link.
const NetworkMTU = 1280

// A ClusterNetwork is the address plan of the private network: every Service, and every
// Session that connects, has an address of each family in it.
type ClusterNetwork struct {
	// IPv4 is 100.64.0.0/10 if it is left out, and IPv6 a prefix of unique local
	// addresses (RFC 4193) that is drawn at the first start. A plan in which addresses
	// have been given away can only become wider.
	IPv4 string `json:"ipv4,omitempty"` // CIDR, /8 to /24
	IPv6 string `json:"ipv6,omitempty"` // CIDR, /48
}

// DefaultIPv4Network is what ClusterNetwork.IPv4 is if it is left out: shared addresses
// (RFC 6598), which networks of homes and offices do not use.
const DefaultIPv4Network = "100.64.0.0/10"

func (n *ClusterNetwork) validate(p *Problems, at string) {
	if n.IPv4 != "" {
		x, err := netip.ParsePrefix(n.IPv4)
		switch a := x.Addr(); {
		case err != nil || !a.Is4():
			p.Add(at+"/ipv4", "must be a network of IPv4 such as "+DefaultIPv4Network, n.IPv4)
		case x.Bits() < 8 || x.Bits() > 24:
			p.Add(at+"/ipv4", "must be /8 to /24", n.IPv4)
		case x != x.Masked():
			p.Add(at+"/ipv4", "must begin where the network does: "+x.Masked().String(), n.IPv4)
		case a.As4()[0] == 0 || a.IsLoopback() || a.IsLinkLocalUnicast() || a.As4()[0] >= 224:
			p.Add(at+"/ipv4", "must be of addresses that hosts can have", n.IPv4)
		case !a.IsPrivate() && !netip.MustParsePrefix(DefaultIPv4Network).Contains(a):
			p.Warn(at+"/ipv4", "is of public addresses: who is connected cannot reach the hosts that have them", n.IPv4)
		}
	}
	if n.IPv6 != "" {
		x, err := netip.ParsePrefix(n.IPv6)
		switch a := x.Addr(); {
		case err != nil || !a.Is6() || a.Is4In6():
			p.Add(at+"/ipv6", "must be a network of IPv6 such as fd12:3456:789a::/48", n.IPv6)
		case x.Bits() != 48:
			p.Add(at+"/ipv6", "must be /48", n.IPv6)
		case x != x.Masked():
			p.Add(at+"/ipv6", "must begin where the network does: "+x.Masked().String(), n.IPv6)
		case a.As16()[0] != 0xfd:
			p.Add(at+"/ipv6", "must be of unique local addresses, fd00::/8 (RFC 4193)", n.IPv6)
		}
	}
}

// Addresses are those of a Service or a Session in the private network.
type Addresses struct {
	IPv4 string `json:"ipv4,omitempty"`
	IPv6 string `json:"ipv6,omitempty"`
}

// A SessionConnection is the place of a Session in the private network.
type SessionConnection struct {
	// Addresses stay those of the Session until it is deleted.
	Addresses Addresses `json:"addresses"`
	// PublicKey is the WireGuard key (X25519, base64) to which the addresses are bound;
	// it is made on the device for each time that it connects. It is "" while the Session
	// has no network interface.
	PublicKey string    `json:"publicKey,omitempty"`
	StartedAt time.Time `json:"startedAt,omitzero"` // when it connected last
	// Serves are the Services whose upstream the Session is.
	Serves []string `json:"serves,omitempty"`
}

// A ConnectRequest asks for a place in the private network. CONFLICT says that another
// Session has the key, or that the upstream of a Service in Serve is not the caller's User;
// PERMISSION_DENIED that he may not serve one of them.
type ConnectRequest struct {
	// PublicKey is the WireGuard key of the device (X25519, base64); "" if it needs none.
	PublicKey string `json:"publicKey,omitempty"`
	// Serve are the Services, SERVICE or SERVICE.NAMESPACE, whose upstream the Session
	// wants to be; ServeAll means all that name its User.
	Serve    []string `json:"serve,omitempty"`
	ServeAll bool     `json:"serveAll,omitempty"`
}

// A ConnectEvent is a line of the answer to a ConnectRequest. The first is STATE. The
// place lasts until the Session ends or another ConnectRequest of it takes it over; that
// the answer breaks off does not end it.
type ConnectEvent struct {
	Type ConnectEventType `json:"type"`
	// State is the whole of what is now, with STATE.
	State *NetworkState `json:"state,omitempty"`
	// Ended says why, with ENDED.
	Ended *Error `json:"ended,omitempty"`
	// Refused is a connection through the network that was not let in, with REFUSED.
	Refused *NetworkRefusal `json:"refused,omitempty"`
}

// ConnectEventType says what a ConnectEvent is about.
type ConnectEventType string

// The types of a ConnectEvent.
const (
	ConnectState   ConnectEventType = "STATE"   // first, and whenever something of it has changed
	ConnectAlive   ConnectEventType = "ALIVE"   // nothing; each 10 seconds in which nothing else is said
	ConnectRefused ConnectEventType = "REFUSED" // a connection was not let in, or was cut
	ConnectEnded   ConnectEventType = "ENDED"   // the last: the place is gone
)

// A NetworkState is what a connected Session has to know.
type NetworkState struct {
	Session   Ref       `json:"session"` // without its version: what is told changes when something else here does
	Domain    string    `json:"domain"`
	Addresses Addresses `json:"addresses"`
	// Services are the prefixes (CIDR) in which Services have their addresses: what goes
	// through the tunnel.
	Services []string `json:"services"`
	// DNS are the addresses, within Services, at which the cluster answers questions for
	// names.
	DNS []string `json:"dns"`
	// MTU is that of the interface, in bytes.
	MTU      int            `json:"mtu"`
	Gateways []GatewayPlace `json:"gateways"`
	// Serves are the Services that this Session serves, as they are now.
	Serves []ServedService `json:"serves,omitempty"`
}

// A GatewayPlace is how a Gateway is reached.
type GatewayPlace struct {
	Name   string `json:"name"`
	Region string `json:"region,omitempty"`
	// Addresses are IP addresses or host names; empty for where the API is reached.
	Addresses []string `json:"addresses,omitempty"`
	// WireGuardPort (UDP) is 0 if there is no WireGuard, as QUICPort (UDP) is. TLS is
	// where the API is.
	WireGuardPort int    `json:"wireguardPort,omitempty"`
	PublicKey     string `json:"publicKey,omitempty"` // X25519, base64
	QUICPort      int    `json:"quicPort,omitempty"`
	// Services are the prefixes that are reached through this Gateway.
	Services []string `json:"services,omitempty"`
}

// A ServedService is a Service whose upstream is a Session.
type ServedService struct {
	Service string `json:"service"`
	Config  string `json:"config,omitempty"` // the config of the Service that says so
	// URL is where the upstream is, as the device that serves sees it.
	URL string `json:"url"`
	// Problem says why the Session does not serve it now; "" if it does.
	Problem string `json:"problem,omitempty"`
}

// A NetworkRefusal is a connection that was not let in, or was cut, for who made it:
// a network interface can only show a reset.
type NetworkRefusal struct {
	At         time.Time `json:"at"`
	Service    string    `json:"service,omitempty"`
	DecisionID string    `json:"decisionID,omitempty"`
	Words      string    `json:"words"`
}
