package api

import (
	"strconv"
	"strings"
	"time"
)

// A Gateway is a node at which tunnels end. Gateways make themselves known.
type Gateway struct {
	Head
	Spec   GatewaySpec   `json:"spec"`
	Status GatewayStatus `json:"status,omitzero"`
}

// GatewaySpec is empty.
type GatewaySpec struct{}

// GatewayStatus is what a Gateway says of itself.
type GatewayStatus struct {
	RegionRef Ref `json:"regionRef,omitzero"`
	// PublicIPs are where clients reach it, IP addresses or host names; where they reach
	// the API if there are none.
	PublicIPs []string          `json:"publicIPs,omitempty"`
	Hostname  string            `json:"hostname,omitempty"`
	WireGuard *GatewayWireGuard `json:"wireguard,omitempty"` // where it speaks WireGuard, if it does
	QUIC      *GatewayQUIC      `json:"quic,omitempty"`      // where it speaks QUIC, if it does
	// Form says how much of the tunnels is the kernel's: KERNEL, WireGuard and TCP; TUN, TCP
	// behind a network interface; USERSPACE, nothing.
	Form string `json:"form,omitempty"`
	// Sessions is how many are connected now: they have a tunnel, or their client listens
	// for what is new. It is not stored.
	Sessions int `json:"sessions,omitempty"`
	// Dropped is how many packets were dropped, by the reason; it is not stored.
	Dropped map[string]int `json:"dropped,omitempty"`
}

// A GatewayWireGuard is where a Gateway speaks WireGuard.
type GatewayWireGuard struct {
	Port         int       `json:"port"`      // UDP
	PublicKey    string    `json:"publicKey"` // X25519, base64
	KeyRotatedAt time.Time `json:"keyRotatedAt"`
}

// A GatewayQUIC is where a Gateway speaks QUIC (RFC 9000).
type GatewayQUIC struct {
	Port int `json:"port"` // UDP
}

// Default implements Object.
func (g *Gateway) Default() { g.APIVersion, g.Kind = Version, KindGateway }

// Validate implements Object.
func (g *Gateway) Validate(p *Problems) { g.Metadata.validate(p, 1) }

func gatewayKind() Kind {
	return Kind{Name: KindGateway, Plural: "gateways", Short: []string{"gw"}, New: func() Object { return new(Gateway) },
		Columns: []Column{
			{Heading: "REGION", Cell: func(o Object) string { return o.(*Gateway).Status.RegionRef.Name }},
			{Heading: "ADDRESSES", Cell: func(o Object) string {
				if ips := o.(*Gateway).Status.PublicIPs; len(ips) > 0 {
					return strings.Join(ips, ",")
				}
				return "those of the API"
			}},
			{Heading: "FORM", Cell: func(o Object) string { return o.(*Gateway).Status.Form }},
			{Heading: "WIREGUARD", Cell: func(o Object) string {
				if w := o.(*Gateway).Status.WireGuard; w != nil {
					return strconv.Itoa(w.Port) + "/udp"
				}
				return ""
			}},
			{Heading: "QUIC", Cell: func(o Object) string {
				if q := o.(*Gateway).Status.QUIC; q != nil {
					return strconv.Itoa(q.Port) + "/udp"
				}
				return ""
			}},
			{Heading: "SESSIONS", Cell: func(o Object) string { return strconv.Itoa(o.(*Gateway).Status.Sessions) }},
		}}
}
