package api

// A Namespace collects Services. Namespaces form a tree by spec.parent; their
// names stay flat and unique.
type Namespace struct {
	Head
	Spec   NamespaceSpec   `json:"spec"`
	Status NamespaceStatus `json:"status,omitzero"`
}

// NamespaceSpec is what an administrator sets.
type NamespaceSpec struct {
	// Parent is the Namespace that this one is in; "" is a root.
	Parent        string        `json:"parent,omitempty"`
	Authorization Authorization `json:"authorization,omitzero"`
	Attrs         Attrs         `json:"attrs,omitempty"`
}

// NamespaceStatus is empty for now.
type NamespaceStatus struct{}

// Default implements Object.
func (n *Namespace) Default() { n.APIVersion, n.Kind = Version, KindNamespace }

// Validate implements Object.
func (n *Namespace) Validate(p *Problems) {
	n.Metadata.validate(p, 1)
	if n.Spec.Parent != "" && !validLabel(n.Spec.Parent) {
		p.Add("/spec/parent", labelRule, n.Spec.Parent)
	}
	if n.Spec.Parent != "" && n.Spec.Parent == n.Metadata.Name {
		p.Add("/spec/parent", "must not be the Namespace itself", n.Spec.Parent)
	}
	n.Spec.Authorization.validate(p, "/spec/authorization")
}

func namespaceKind() Kind {
	return Kind{Name: KindNamespace, Plural: "namespaces", Short: []string{"ns"}, ByHand: true,
		New:     func() Object { return new(Namespace) },
		Columns: []Column{{Heading: "PARENT", Cell: func(o Object) string { return o.(*Namespace).Spec.Parent }}}}
}
