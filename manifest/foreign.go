package manifest

import (
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"cardea/api"
)

// kindList is the kind of the lists that kubectl prints, in group v1. Each of its
// items is a document.
const kindList = "List"

// lastApplied is the annotation in which kubectl keeps the whole document, the
// values of Secrets included.
const lastApplied = "kubectl.kubernetes.io/last-applied-configuration"

// version is that of the resourceVersions that we give.
var version = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}$`)

// httpKinds are kinds of Ambassador's that are known and have nothing to do with
// TCP.
func httpKinds() []string {
	return []string{"AuthService", "ConsulService", "DevPortal", "ExternalFilter", "Features", "Filter", "FilterPolicy", "IngressStatus",
		"KubernetesIngressResolver", "LogService", "Mapping", "Project", "ProjectController", "ProjectRevision", "RateLimit",
		"RateLimitService", "TracingService", "WebApplicationFirewall", "WebApplicationFirewallPolicy"}
}

// installationKinds are kinds of Ambassador's that say how it is installed.
func installationKinds() []string { return []string{"AmbassadorInstallation"} }

// isTheirs reports whether a field of a foreign Object is what the other system
// says of it, and not what its user does.
func isTheirs(at, name string, value *yaml.Node) bool {
	switch at {
	case "":
		return name == "status"
	case "/metadata":
		// Of a number that Kubernetes gives, nobody here knows whether it is the latest.
		return name == "resourceVersion" && !version.MatchString(value.Value)
	case "/metadata/annotations":
		return name == lastApplied
	}
	return false
}

// flatten returns the documents with the items of each List in its place. A List
// whose items are none stays, for the walker to complain of.
func flatten(roots []*yaml.Node) []*yaml.Node {
	var all []*yaml.Node
	for _, root := range roots {
		if items, ok := itemsOf(root); ok {
			all = append(all, flatten(items)...)
		} else {
			all = append(all, root)
		}
	}
	return all
}

// itemsOf returns the items of a List.
func itemsOf(root *yaml.Node) ([]*yaml.Node, bool) {
	says := func(name, want string) bool {
		_, n := child(root, name)
		return n != nil && n.Kind == yaml.ScalarNode && n.Value == want
	}
	if root.Kind != yaml.MappingNode || !says("apiVersion", "v1") || !says("kind", kindList) {
		return nil, false
	}
	_, items := child(root, "items")
	if items == nil || items.Kind != yaml.SequenceNode {
		return nil, false
	}
	return items.Content, true
}

// kindOf returns the kind of a document, or reports why it has none: it is wrong,
// or it is skipped.
func (w *walker) kindOf() (api.Kind, bool) {
	if w.root.Kind != yaml.MappingNode {
		w.mustBe(w.root, "", "a mapping with kind, metadata and spec")
		return api.Kind{}, false
	}
	var written string
	_, at := child(w.root, "apiVersion")
	if at != nil && !isNull(at) {
		var ok bool
		if written, ok = w.text(at, "/apiVersion"); !ok {
			return api.Kind{}, false
		}
	}
	group, version := api.GroupOf(written)
	known := versions(group)
	switch {
	case known == nil && isMisspelt(group, api.GroupAmbassador):
		w.add(at, "/apiVersion", "unknown group", group).Hint = "did you mean " + api.GroupAmbassador + "?"
		return api.Kind{}, false
	case known == nil:
		p := w.skip(at, "/apiVersion", "kinds of the group "+short(printable(group))+" have no meaning here")
		if near := didYouMean(group, []string{api.GroupCore}); near != "" {
			p.Hint = near
		}
		return api.Kind{}, false
	case !slices.Contains(known, version):
		w.wrongVersion(at, group, written, known)
		return api.Kind{}, false
	}
	_, n := child(w.root, "kind")
	if n == nil || isNull(n) {
		w.add(w.root, "/kind", "is required", "").Allowed = kindNames(group)
		return api.Kind{}, false
	}
	name, ok := w.text(n, "/kind")
	if !ok {
		return api.Kind{}, false
	}
	kind, ok := api.KindIn(group, name)
	switch {
	case !ok && group != api.GroupCore:
		w.foreignKind(n, group, name)
	case !ok || kind.Later:
		w.unknownKind(n, name)
	case kind.IsForeign() && !slices.Contains(kind.Versions, version):
		w.wrongVersion(at, group, written, kind.Versions)
	default:
		w.kind = kind
		return kind, true
	}
	return api.Kind{}, false
}

// isMisspelt reports whether a word is meant to be another: two letters differ at most.
func isMisspelt(s, meant string) bool {
	const most = 2
	return len(s) <= len(meant)+most && api.Distance(strings.ToLower(s), meant) <= most
}

// versions returns the versions of a group that there are, nil if it is not known.
func versions(group string) (all []string) {
	if group == api.GroupCore {
		return []string{"v1"}
	}
	for _, k := range api.Kinds() {
		if k.Group == group {
			all = append(all, k.Versions...)
		}
	}
	return all
}

// wrongVersion reports an apiVersion of a known group that is none of those.
func (w *walker) wrongVersion(n *yaml.Node, group, written string, known []string) {
	var allowed []string
	for _, v := range known {
		if group != api.GroupKubernetes {
			v = group + "/" + v
		}
		if !slices.Contains(allowed, v) {
			allowed = append(allowed, v)
		}
	}
	if group == api.GroupKubernetes {
		allowed = append(allowed, api.Version)
	}
	w.add(n, "/apiVersion", "must be a version that is known here", written).Allowed = allowed
}

// unknownKind reports a kind that is none of ours.
func (w *walker) unknownKind(n *yaml.Node, name string) {
	names := kindNames(api.GroupCore)
	if _, known := api.KindOf(name); known || slices.Contains(api.LaterKinds(), name) {
		w.add(n, "/kind", name+" is not yet available", "").Allowed = names
		return
	}
	p := w.add(n, "/kind", "unknown kind", name)
	p.Allowed, p.Hint = names, didYouMean(name, names)
	for _, k := range api.Kinds() {
		if k.IsForeign() && k.Name == name {
			p.Allowed, p.Hint = nil, "it needs apiVersion: "+k.Group+"/"+k.Versions[0]
		}
	}
}

// skip reports that a document is left out, and why. In a file, which may be for
// other systems too, that is no error.
func (w *walker) skip(n *yaml.Node, at, why string) *api.Problem {
	if w.isWire {
		return w.add(n, at, "must be one that there is use for: "+why, "")
	}
	p := w.add(n, at, "the document is skipped: "+why, "")
	p.Warning = true
	return p
}

// foreignKind says what becomes of a document whose kind, of a foreign group that is
// known, is not one that is read. Of Ambassador's kinds all are known.
func (w *walker) foreignKind(n *yaml.Node, group, name string) {
	isAmbassador := group == api.GroupAmbassador
	noMeaning := "a Kubernetes " + short(printable(name)) + " has no meaning here"
	switch {
	case isAmbassador && slices.Contains(httpKinds(), name):
		w.skip(n, "/kind", "a "+name+" is about HTTP")
	case isAmbassador && slices.Contains(installationKinds(), name):
		w.skip(n, "/kind", "an "+name+" has no meaning here")
	case isAmbassador:
		p := w.add(n, "/kind", "unknown kind", name)
		p.Allowed, p.Hint = kindNames(group), didYouMean(name, slices.Concat(kindNames(group), httpKinds()))
	case name == kindList && w.isWire:
		w.skip(n, "/kind", "it is a list, and each item is a document")
	case name == kindList:
		w.add(w.root, "/items", "must be a list of documents", "")
	case hasConfig(w.root):
		w.skip(n, "/kind", noMeaning).Hint = "what its annotation " + configAnnotation + " says needs documents of its own"
	default:
		w.skip(n, "/kind", noMeaning).Hint = didYouMean(name, kindNames(group))
	}
}

// configAnnotation is where Kubernetes Objects may hold documents of Ambassador's.
const configAnnotation = api.GroupAmbassador + "/config"

// hasConfig reports whether a document has that annotation.
func hasConfig(root *yaml.Node) bool {
	n := root
	for _, name := range []string{"metadata", "annotations", configAnnotation} {
		if _, n = child(n, name); n == nil {
			return false
		}
	}
	return true
}

// kindNames returns the kinds of a group that people write.
func kindNames(group string) []string {
	var names []string
	for _, k := range api.Kinds() {
		if k.ByHand && k.APIGroup() == group {
			names = append(names, k.Name)
		}
	}
	return names
}
