package api

import (
	"cmp"
	"slices"
	"strings"
)

// A Kind is an entry in the table of kinds: all that generic code (the API,
// the command line, the store) needs to know of one.
type Kind struct {
	Name   string // as in the field kind: "Service"
	Plural string // as in API paths: "services"
	// Group is that of the kind: "" stands for GroupCore. Kinds of other groups are
	// foreign: Objects of another system, kept as they came.
	Group string
	// Versions are the versions of a foreign group that are read, the newest first.
	Versions []string
	Short    []string // as a person may type it: "svc"
	New      func() Object
	// Columns are the headings and cells of a table, after NAME.
	Columns []Column
	// ByHand is whether people make and change Objects of the kind with apply;
	// the others are made by the system (a Session by logging in).
	ByHand bool
	// Updatable is whether people change the spec of Objects of a kind that they
	// do not make.
	Updatable bool
	// Later is whether the kind is known and Objects of it cannot be made yet.
	Later bool
}

// A Column is a column of the table that `get` prints.
type Column struct {
	Heading string
	Wide    bool // only with -o wide
	Cell    func(Object) string
}

// The names of the kinds.
const (
	KindClusterConfig = "ClusterConfig"
	KindNamespace     = "Namespace"
	KindService       = "Service"
	KindUser          = "User"
	KindGroup         = "Group"
	KindSession       = "Session"
	KindCredential    = "Credential"
	KindSecret        = "Secret"
	KindPolicy        = "Policy"
	KindDevice        = "Device"
	KindAuthenticator = "Authenticator"
	KindRegion        = "Region"
	KindGateway       = "Gateway"

	KindIdentityProvider = "IdentityProvider"
)

// Kinds returns the table of kinds, foreign ones last, in the order in which
// Objects that refer to each other are best written and read: what is referred to
// comes first.
func Kinds() []Kind {
	return append([]Kind{
		clusterConfigKind(), regionKind(), gatewayKind(), secretKind(), policyKind(), identityProviderKind(),
		namespaceKind(), groupKind(), userKind(), serviceKind(), credentialKind(), deviceKind(), sessionKind(),
		authenticatorKind(),
	}, foreignKinds()...)
}

// foreignKinds returns the kinds of other systems.
func foreignKinds() []Kind {
	return []Kind{
		kubernetesSecretKind(), moduleKind(), resolverKind(KindKubernetesServiceResolver), resolverKind(KindKubernetesEndpointResolver),
		resolverKind(KindConsulResolver), tlsContextKind(), hostKind(), listenerKind(), tcpMappingKind(),
	}
}

// IsForeign reports whether Objects of the kind are of another system.
func (k Kind) IsForeign() bool { return k.Group != "" && k.Group != GroupCore }

// APIGroup returns the group of the kind, which is never empty.
func (k Kind) APIGroup() string { return cmp.Or(k.Group, GroupCore) }

// Path returns where the API has the Objects of the kind, of a version of a foreign
// group: "" is the newest.
func (k Kind) Path(version string) string {
	if !k.IsForeign() {
		return "/api/" + Version + "/" + k.Plural
	}
	return "/api/" + k.Group + "/" + cmp.Or(version, k.Versions[0]) + "/" + k.Plural
}

// LaterKinds returns the names of the kinds that are known and not yet to be had.
func LaterKinds() []string {
	return []string{"Config", "TCPRoute", "TLSRoute",
		"Workload", "RuleSet", "ServiceDependencyPolicy", "ExternalNetwork"}
}

// KindIn returns the kind of that exact name in a group.
func KindIn(group, name string) (Kind, bool) {
	if group == "" || group == GroupCore {
		return KindOf(name)
	}
	for _, k := range foreignKinds() {
		if k.Group == group && k.Name == name {
			return k, true
		}
	}
	return Kind{}, false
}

// KindOf returns the kind of ours of that exact name.
func KindOf(name string) (Kind, bool) {
	// A switch instead of a search through Kinds: this runs for each Object read.
	switch name {
	case KindClusterConfig:
		return clusterConfigKind(), true
	case KindNamespace:
		return namespaceKind(), true
	case KindService:
		return serviceKind(), true
	case KindUser:
		return userKind(), true
	case KindGroup:
		return groupKind(), true
	case KindSession:
		return sessionKind(), true
	case KindCredential:
		return credentialKind(), true
	case KindSecret:
		return secretKind(), true
	case KindPolicy:
		return policyKind(), true
	case KindDevice:
		return deviceKind(), true
	case KindAuthenticator:
		return authenticatorKind(), true
	case KindRegion:
		return regionKind(), true
	case KindGateway:
		return gatewayKind(), true
	case KindIdentityProvider:
		return identityProviderKind(), true
	}
	return Kind{}, false
}

// FindKind returns the kind that a person means: its name, plural or short
// name, in any case. Of two kinds of one name it is the one of ours.
func FindKind(s string) (Kind, bool) {
	for _, k := range Kinds() {
		if k.isCalled(s) {
			return k, true
		}
	}
	return Kind{}, false
}

// FindKindIn does so among the kinds of a group.
func FindKindIn(group, s string) (Kind, bool) {
	for _, k := range Kinds() {
		if k.APIGroup() == group && k.isCalled(s) {
			return k, true
		}
	}
	return Kind{}, false
}

// isCalled reports whether a person may mean the kind by s.
func (k Kind) isCalled(s string) bool {
	s = strings.ToLower(s)
	return s == strings.ToLower(k.Name) || s == k.Plural || slices.Contains(k.Short, s)
}
