package api

import (
	"fmt"
	"net/netip"
)

// A ClusterConfig holds what is true of the whole cluster. There is one, named
// "default".
type ClusterConfig struct {
	Head
	Spec   ClusterConfigSpec   `json:"spec"`
	Status ClusterConfigStatus `json:"status,omitzero"`
}

// ClusterConfigName is the name of the only ClusterConfig.
const ClusterConfigName = "default"

// ClusterConfigSpec is what an administrator sets.
type ClusterConfigSpec struct {
	Authorization Authorization   `json:"authorization,omitzero"`
	DNS           ClusterDNS      `json:"dns,omitzero"`
	Upstream      ClusterUpstream `json:"upstream,omitzero"`
	Attrs         Attrs           `json:"attrs,omitempty"`
	Session       NotYet          `json:"session,omitzero"`
	Device        NotYet          `json:"device,omitzero"`
	Gateway       NotYet          `json:"gateway,omitzero"`
	Ingress       NotYet          `json:"ingress,omitzero"`
	Authenticator NotYet          `json:"authenticator,omitzero"`
	Collector     NotYet          `json:"collector,omitzero"`
	Routing       NotYet          `json:"routing,omitzero"`
}

// ClusterDNS says how names are resolved.
type ClusterDNS struct {
	// Hosts maps upstream host names to their addresses, before any other
	// resolver is asked.
	Hosts        map[string][]string `json:"hosts,omitempty"`
	FallbackZone NotYet              `json:"fallbackZone,omitzero"`
}

// ClusterUpstream says what upstreams may be.
type ClusterUpstream struct {
	// Allow lists addresses (CIDR) that upstreams may have although they are
	// refused by default: loopback where the cluster listens elsewhere,
	// link-local and metadata addresses, multicast, the cluster's own listeners
	// (each only by its one address, /32 or /128).
	Allow []string `json:"allow,omitempty"`
}

// ClusterConfigStatus is what the cluster knows of itself.
type ClusterConfigStatus struct {
	Domain    string `json:"domain,omitempty"`
	RegionUID string `json:"regionUID,omitempty"`
}

// Default implements Object.
func (c *ClusterConfig) Default() { c.APIVersion, c.Kind = Version, KindClusterConfig }

// Validate implements Object.
func (c *ClusterConfig) Validate(p *Problems) {
	c.Metadata.validate(p, 1)
	if c.Metadata.Name != ClusterConfigName {
		p.Add("/metadata/name", "must be \"default\": there is one ClusterConfig", c.Metadata.Name)
	}
	c.Spec.Authorization.validate(p, "/spec/authorization")
	for h, addrs := range c.Spec.DNS.Hosts {
		at := "/spec/dns/hosts/" + Escape(h)
		if len(addrs) == 0 {
			p.Add(at, "must list at least one address", "")
		}
		for i, a := range addrs {
			if _, err := netip.ParseAddr(a); err != nil {
				p.Add(fmt.Sprintf("%s/%d", at, i), "must be an IP address", a)
			}
		}
	}
	for i, a := range c.Spec.Upstream.Allow {
		if _, err := netip.ParsePrefix(a); err != nil {
			p.Add(fmt.Sprintf("/spec/upstream/allow/%d", i), "must be a CIDR such as 10.0.0.0/8 or ::1/128", a)
		}
	}
}

func clusterConfigKind() Kind {
	return Kind{Name: KindClusterConfig, Plural: "clusterconfigs", Short: []string{"cc"}, ByHand: true,
		New:     func() Object { return new(ClusterConfig) },
		Columns: []Column{{Heading: "DOMAIN", Cell: func(o Object) string { return o.(*ClusterConfig).Status.Domain }}}}
}
