package api

import (
	"slices"
	"strings"
)

// A Kind is an entry in the table of kinds: all that generic code (the API,
// the command line, the store) needs to know of one.
type Kind struct {
	Name   string   // as in the field kind: "Service"
	Plural string   // as in API paths: "services"
	Short  []string // as a person may type it: "svc"
	New    func() Object
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

// Kinds returns the table of kinds in the order in which Objects that refer to
// each other are best written and read: what is referred to comes first.
func Kinds() []Kind {
	return []Kind{
		clusterConfigKind(), regionKind(), gatewayKind(), secretKind(), policyKind(), identityProviderKind(),
		namespaceKind(), groupKind(), userKind(), serviceKind(), credentialKind(), deviceKind(), sessionKind(),
		authenticatorKind(),
	}
}

// LaterKinds returns the names of the kinds that are known and not yet to be had.
func LaterKinds() []string {
	return []string{"Config",
		"TCPMapping", "TLSContext", "Host", "Listener", "Module", "TCPRoute", "TLSRoute",
		"Workload", "RuleSet", "ServiceDependencyPolicy", "ExternalNetwork"}
}

// KindOf returns the kind of that exact name.
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
// name, in any case.
func FindKind(s string) (Kind, bool) {
	s = strings.ToLower(s)
	for _, k := range Kinds() {
		if s == strings.ToLower(k.Name) || s == k.Plural || slices.Contains(k.Short, s) {
			return k, true
		}
	}
	return Kind{}, false
}
