package api

import "strings"

// The kinds of resolvers.
const (
	KindKubernetesServiceResolver  = "KubernetesServiceResolver"
	KindKubernetesEndpointResolver = "KubernetesEndpointResolver"
	KindConsulResolver             = "ConsulResolver"
)

// A Resolver is Ambassador's: how the services of mappings that name it are found.
// Its kind says how.
type Resolver struct {
	Head
	Spec   ResolverSpec `json:"spec"`
	Status RouteStatus  `json:"status,omitzero"`
}

// ResolverSpec is what an administrator sets.
type ResolverSpec struct {
	Installations
	// Address and Datacenter are those of Consul.
	Address    string `json:"address,omitempty"`
	Datacenter string `json:"datacenter,omitempty"`
}

// RouteStatus implements Routable.
func (r *Resolver) RouteStatus() *RouteStatus { return &r.Status }

// Default implements Object.
func (r *Resolver) Default() { r.defaultForeign(GroupAmbassador, r.Kind) }

// Validate implements Object.
func (r *Resolver) Validate(p *Problems) { r.Metadata.validateForeign(p) }

func resolverKind(name string) Kind {
	return Kind{Name: name, Plural: strings.ToLower(name) + "s", Group: GroupAmbassador, Versions: ambassadorVersions(), ByHand: true,
		New:     func() Object { return &Resolver{Head: Head{Kind: name}} },
		Columns: []Column{namespaceColumn(), stateColumn()}}
}
