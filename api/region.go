package api

// A Region is a part of the cluster in which Services run. There is one, named
// "default".
type Region struct {
	Head
	Spec   RegionSpec   `json:"spec"`
	Status RegionStatus `json:"status,omitzero"`
}

// DefaultRegion is the Region of a Service that names none.
const DefaultRegion = "default"

// RegionSpec is empty.
type RegionSpec struct{}

// RegionStatus is what the cluster knows of it.
type RegionStatus struct{}

// Default implements Object.
func (r *Region) Default() { r.APIVersion, r.Kind = Version, KindRegion }

// Validate implements Object.
func (r *Region) Validate(p *Problems) { r.Metadata.validate(p, 1) }

func regionKind() Kind {
	return Kind{Name: KindRegion, Plural: "regions", Short: []string{"rgn"}, New: func() Object { return new(Region) }}
}
