package control

import (
	"cmp"
	"maps"
	"reflect"
	"slices"
	"strings"

	"cardea/api"
	"cardea/store"
)

// Objects of Ambassador's change one another's routes: a mapping shares its port and
// host with others, a context ends the TLS of whatever mapping has its names, a
// Listener says that all connections of a port begin with a PROXY header, a Module has
// defaults for all. In the system that they come from whoever may write one of them
// has them all. Here he is asked for `publish` in each Namespace whose mappings what he
// writes can change.

// mappings are the TCPMappings that are there, by what others can change of them: the
// value is one mapping of each Namespace.
type mappings struct {
	byPort    map[int]map[string]api.Key
	byHost    map[string]map[string]api.Key
	byContext map[string]map[string]api.Key
	all       map[string]api.Key
}

func readMappings(r store.Reader) (*mappings, error) {
	m := &mappings{byPort: map[int]map[string]api.Key{}, byHost: map[string]map[string]api.Key{}, byContext: map[string]map[string]api.Key{}, all: map[string]api.Key{}}
	for o, err := range store.AllIn[*api.TCPMapping](r, api.GroupAmbassador, api.KindTCPMapping) {
		if err != nil {
			return nil, err
		}
		k := o.Key()
		note(m.all, k)
		if o.Spec.Port != nil {
			note(at(m.byPort, *o.Spec.Port), k)
		}
		if o.Spec.Host != "" {
			note(at(m.byHost, api.FoldName(o.Spec.Host)), k)
		}
		if o.Spec.TLS.Name != "" {
			note(at(m.byContext, o.Spec.TLS.Name), k)
		}
	}
	return m, nil
}

func at[K comparable](m map[K]map[string]api.Key, k K) map[string]api.Key {
	if m[k] == nil {
		m[k] = map[string]api.Key{}
	}
	return m[k]
}

// note keeps the first mapping of each Namespace, by name.
func note(by map[string]api.Key, k api.Key) {
	if was, ok := by[k.Namespace]; !ok || k.Name < was.Name {
		by[k.Namespace] = k
	}
}

// meets returns the mappings whose host can be one of a pattern's: the pattern is a
// name, *.DOMAIN or *.
func (m *mappings) meets(pattern string) map[string]api.Key {
	pattern = api.FoldName(cmp.Or(pattern, api.AnyName))
	found := map[string]api.Key{}
	take := func(by map[string]api.Key) {
		for _, k := range by {
			note(found, k)
		}
	}
	take(m.byHost[pattern])
	if !strings.Contains(pattern, "*") {
		for rest := pattern; ; { // a wildcard of a mapping takes the certificate of one of its names, if nothing else has it
			_, after, ok := strings.Cut(rest, ".")
			if !ok {
				break
			}
			rest = after
			take(m.byHost["*."+rest])
		}
		take(m.byHost[api.AnyName])
		return found
	}
	below := strings.TrimPrefix(pattern, "*")
	for host, by := range m.byHost {
		if strings.HasSuffix(host, below) || strings.HasPrefix(host, "*") {
			take(by)
		}
	}
	return found
}

// affects asks for publish in each Namespace whose mappings an Object of Ambassador's
// may change by what it becomes, or was.
func (w *writer) affects(r store.Reader, before, after api.Object) ([]question, error) {
	o := after
	if o == nil {
		o = before
	}
	if o == nil || o.Header().Key().Group != api.GroupAmbassador || before != nil && after != nil && sameSpec(before, after) {
		return nil, nil
	}
	if w.mappings == nil {
		var err error
		if w.mappings, err = readMappings(r); err != nil {
			return nil, err
		}
	}
	found := map[string]api.Key{}
	for _, x := range []api.Object{before, after} {
		for _, k := range w.mappings.changedBy(x) {
			note(found, k)
		}
	}
	if _, ok := o.(*api.TCPMapping); ok {
		delete(found, o.Header().Metadata.Namespace) // asked for by its own name
	}
	var list []question
	for _, ns := range slices.Sorted(maps.Keys(found)) {
		k := found[ns]
		list = append(list, question{verbPublish, k, "/metadata/name", "changes what connections to " + k.String() + " meet"})
	}
	return list, nil
}

// changedBy returns a mapping of each Namespace that has some which an Object changes.
func (m *mappings) changedBy(o api.Object) map[string]api.Key {
	found := map[string]api.Key{}
	take := func(by map[string]api.Key) {
		for _, k := range by {
			note(found, k)
		}
	}
	switch o := o.(type) {
	case *api.TCPMapping:
		if o.Spec.Port != nil {
			take(m.byPort[*o.Spec.Port])
		}
	case *api.Listener:
		if o.Spec.Port != nil {
			take(m.byPort[*o.Spec.Port])
		}
	case *api.TLSContext:
		for _, h := range o.Spec.Hosts {
			take(m.meets(h))
		}
		take(m.byContext[o.Metadata.Name])
		take(m.byContext[o.Metadata.Name+"."+o.Metadata.Namespace])
	case *api.Host:
		take(m.meets(o.Spec.Hostname))
	case *api.Module, *api.Resolver:
		take(m.all)
	}
	return found
}

// sameSpec reports whether two versions of an Object say the same.
func sameSpec(before, after api.Object) bool {
	a, b := api.Clone(before), api.Clone(after)
	for _, o := range []api.Object{a, b} {
		annotations := o.Header().Metadata.Annotations
		*o.Header() = api.Head{APIVersion: "", Kind: o.Header().Kind, Metadata: api.Metadata{Annotations: annotations}}
		if s, ok := o.(api.Routable); ok {
			*s.RouteStatus() = api.RouteStatus{}
		}
	}
	return reflect.DeepEqual(a, b)
}
