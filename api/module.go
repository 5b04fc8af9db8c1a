package api

// KindModule is the kind of Modules.
const KindModule = "Module"

// A Module is Ambassador's: the one named ambassador has defaults for all
// mappings.
type Module struct {
	Head
	Spec   ModuleSpec  `json:"spec"`
	Status RouteStatus `json:"status,omitzero"`
}

// ModuleSpec is what an administrator sets.
type ModuleSpec struct {
	Installations
	// Config has the defaults. Those that TCP knows are read; the rest is HTTP's, and
	// kept.
	Config Attrs `json:"config,omitempty"`
}

// RouteStatus implements Routable.
func (m *Module) RouteStatus() *RouteStatus { return &m.Status }

// Default implements Object.
func (m *Module) Default() { m.defaultForeign(GroupAmbassador, KindModule) }

// Validate implements Object.
func (m *Module) Validate(p *Problems) { m.Metadata.validateForeign(p) }

func moduleKind() Kind {
	return Kind{Name: KindModule, Plural: "modules", Group: GroupAmbassador, Versions: ambassadorVersions(), ByHand: true,
		New:     func() Object { return new(Module) },
		Columns: []Column{namespaceColumn(), stateColumn()}}
}
