package api

import "strconv"

// KindListener is the kind of Listeners.
const KindListener = "Listener"

// A Listener is Ambassador's: a port and the protocols that are stacked at it. Of
// what it says, TCP takes whether connections begin with a PROXY header.
type Listener struct {
	Head
	Spec   ListenerSpec `json:"spec"`
	Status RouteStatus  `json:"status,omitzero"`
}

// ListenerSpec is what an administrator sets.
type ListenerSpec struct {
	Installations
	Port *int `json:"port,omitempty"`
	// Protocol is the short form of protocolStack: HTTP, HTTPS, HTTPPROXY, HTTPSPROXY,
	// TCP or TLS.
	Protocol      string   `json:"protocol,omitempty"`
	ProtocolStack []string `json:"protocolStack,omitempty"`
	StatsPrefix   string   `json:"statsPrefix,omitempty"`
	// What follows has no effect on TCP.
	SecurityModel string `json:"securityModel,omitempty"`
	L7Depth       *int   `json:"l7Depth,omitempty"`
	HostBinding   Ported `json:"hostBinding,omitzero"`
}

// RouteStatus implements Routable.
func (l *Listener) RouteStatus() *RouteStatus { return &l.Status }

// Default implements Object.
func (l *Listener) Default() { l.defaultForeign(GroupAmbassador, KindListener) }

// Validate implements Object.
func (l *Listener) Validate(p *Problems) {
	l.Metadata.validateForeign(p)
	switch port := l.Spec.Port; {
	case port == nil:
		p.Add("/spec/port", "is required", "")
	case *port < 1 || *port > 65535:
		p.Add("/spec/port", "must be from 1 to 65535", strconv.Itoa(*port))
	}
}

func listenerKind() Kind {
	return Kind{Name: KindListener, Plural: "listeners", Group: GroupAmbassador, Versions: ambassadorVersions()[:1], ByHand: true,
		New: func() Object { return new(Listener) },
		Columns: []Column{
			namespaceColumn(),
			{Heading: "PORT", Cell: func(o Object) string {
				if p := o.(*Listener).Spec.Port; p != nil {
					return strconv.Itoa(*p)
				}
				return ""
			}},
			{Heading: "PROTOCOL", Cell: func(o Object) string { return o.(*Listener).Spec.Protocol }},
			stateColumn(),
		}}
}
