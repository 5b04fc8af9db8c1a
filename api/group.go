package api

// A Group collects Users, so that policies can be written for all of them.
type Group struct {
	Head
	Spec   GroupSpec   `json:"spec"`
	Status GroupStatus `json:"status,omitzero"`
}

// GroupSpec is what an administrator sets.
type GroupSpec struct {
	Authorization Authorization `json:"authorization,omitzero"`
	Attrs         Attrs         `json:"attrs,omitempty"`
}

// GroupStatus is empty for now.
type GroupStatus struct{}

// Default implements Object.
func (g *Group) Default() { g.APIVersion, g.Kind = Version, KindGroup }

// Validate implements Object.
func (g *Group) Validate(p *Problems) {
	g.Metadata.validate(p, 1)
	g.Spec.Authorization.validate(p, "/spec/authorization")
}

func groupKind() Kind {
	return Kind{Name: KindGroup, Plural: "groups", Short: []string{"grp"}, ByHand: true, New: func() Object { return new(Group) }}
}
