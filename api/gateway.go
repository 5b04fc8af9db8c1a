package api

import "strings"

// A Gateway is a node at which tunnels end. Gateways make themselves known; there
// are none yet.
type Gateway struct {
	Head
	Spec   GatewaySpec   `json:"spec"`
	Status GatewayStatus `json:"status,omitzero"`
}

// GatewaySpec is empty.
type GatewaySpec struct{}

// GatewayStatus is what a Gateway says of itself.
type GatewayStatus struct {
	RegionRef Ref      `json:"regionRef,omitzero"`
	PublicIPs []string `json:"publicIPs,omitempty"`
	Hostname  string   `json:"hostname,omitempty"`
}

// Default implements Object.
func (g *Gateway) Default() { g.APIVersion, g.Kind = Version, KindGateway }

// Validate implements Object.
func (g *Gateway) Validate(p *Problems) { g.Metadata.validate(p, 1) }

func gatewayKind() Kind {
	return Kind{Name: KindGateway, Plural: "gateways", Short: []string{"gw"}, New: func() Object { return new(Gateway) },
		Columns: []Column{
			{Heading: "REGION", Cell: func(o Object) string { return o.(*Gateway).Status.RegionRef.Name }},
			{Heading: "ADDRESSES", Cell: func(o Object) string { return strings.Join(o.(*Gateway).Status.PublicIPs, ",") }},
		}}
}
