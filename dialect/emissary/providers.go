package emissary

import (
	"cmp"
	"reflect"
	"strings"

	"cardea/api"
)

// A provider is a TLSContext or Host that says how TLS is ended for some names.
type provider struct {
	*object
	terminate *api.Termination
	problem   problem   // why it cannot be used
	uses      []api.Key // its Secrets
	notes     []string  // what a person should know of those
	isHost    bool
	used      *bool
}

// providers are found by the names that they are for. The most specific name counts
// first; then one that can be used before one that cannot, a TLSContext before a Host,
// one of the own Namespace before others, and the older one.
type providers struct {
	list   []named
	byName map[string]*candidates
	// below has them by each domain that one of their names is below, "" for all. It is
	// made when it is first asked for.
	below map[string]*candidates
}

// A named is a provider with one of its names.
type named struct {
	key string
	p   *provider
}

// candidates are the providers of one name, contexts and Hosts apart, in order.
type candidates struct {
	contexts, hosts ranked
	told            map[*provider]bool // those of whom the others were told
}

type ranked struct {
	all    []*provider
	byNS   map[string]*provider // the first of each Namespace
	usable *ranked              // those that can be used; nil for none, and in itself
}

func (r *ranked) add(p *provider) {
	r.put(p)
	if p.problem.ok() {
		if r.usable == nil {
			r.usable = new(ranked)
		}
		r.usable.put(p)
	}
}

func (r *ranked) put(p *provider) {
	if r.byNS == nil {
		r.byNS = map[string]*provider{}
	}
	if _, there := r.byNS[p.ns]; !there {
		r.byNS[p.ns] = p
	}
	r.all = append(r.all, p)
}

// first returns the first for mappings of a Namespace, nil if there is none.
func (r *ranked) first(ns string) *provider {
	switch {
	case r == nil || len(r.all) == 0:
		return nil
	case r.byNS[ns] != nil:
		return r.byNS[ns]
	}
	return r.all[0]
}

func (c *candidates) add(p *provider) {
	if p.isHost {
		c.hosts.add(p)
	} else {
		c.contexts.add(p)
	}
}

// first returns who serves the mappings of a Namespace. One that cannot be used gives
// way to others, unless it lets in only clients that show a certificate: what it guards
// must not be open because it lacks something.
func (c *candidates) first(ns string) *provider {
	p := cmp.Or(c.contexts.first(ns), c.hosts.first(ns))
	if p.problem.ok() || p.terminate.RequireClientCertificate {
		return p
	}
	return cmp.Or(c.contexts.usable.first(ns), c.hosts.usable.first(ns), p)
}

// nameKey is the key of a name in providers: *.DOMAIN is found by .DOMAIN.
func nameKey(name string) string {
	if strings.HasPrefix(name, "*.") {
		return name[1:]
	}
	return name
}

func (x *providers) add(name string, p *provider) {
	if x.byName == nil {
		x.byName = map[string]*candidates{}
	}
	addTo(x.byName, nameKey(name), p)
	x.list = append(x.list, named{nameKey(name), p})
}

func addTo(m map[string]*candidates, key string, p *provider) {
	c := m[key]
	if c == nil {
		c = new(candidates)
		m[key] = c
	}
	c.add(p)
}

// find returns the provider for the host of a mapping of a Namespace, nil if there is
// none.
func (x *providers) find(host, ns string) *provider {
	covers := func(key string) *provider {
		c := x.byName[key]
		if c == nil {
			return nil
		}
		p := c.first(ns)
		*p.used = true
		c.tellOthers(key, p)
		return p
	}
	key := nameKey(host)
	if p := covers(key); p != nil {
		return p
	}
	for rest := strings.TrimPrefix(key, "."); ; {
		i := strings.IndexByte(rest, '.')
		if i < 0 {
			break
		}
		if p := covers(rest[i:]); p != nil {
			return p
		}
		rest = rest[i+1:]
	}
	if p := covers("*"); p != nil || !strings.HasPrefix(host, "*") {
		return p
	}
	// Nothing is for every name of a wildcard: what is for some of them will do, as in
	// the original.
	if x.below == nil {
		x.index()
	}
	c := x.below[strings.TrimPrefix(host, "*")]
	if c == nil {
		return nil
	}
	p := c.first(ns)
	*p.used = true
	p.note("clients are shown its certificate for %s, though it is not for every name of it", host)
	return p
}

// index makes below.
func (x *providers) index() {
	x.below = map[string]*candidates{}
	seen := map[named]bool{}
	for _, n := range x.list {
		for rest := strings.TrimPrefix(n.key, "."); ; {
			i := strings.IndexByte(rest, '.')
			at := named{"", n.p}
			if i >= 0 {
				at.key = rest[i:]
			}
			if !seen[at] {
				seen[at] = true
				addTo(x.below, at.key, n.p)
			}
			if i < 0 {
				break
			}
			rest = rest[i+1:]
		}
	}
}

// tellOthers notes with the first of the others that have a name who serves it, unless
// they would do the same.
func (c *candidates) tellOthers(key string, p *provider) {
	if c.told[p] {
		return
	}
	if c.told == nil {
		c.told = map[*provider]bool{}
	}
	c.told[p] = true
	name, whose := key, ""
	if strings.HasPrefix(key, ".") {
		name = "*" + key
	}
	if p != c.first("") {
		whose = " for mappings of Namespace " + p.ns
	}
	for _, list := range [][]*provider{c.contexts.all, c.hosts.all} {
		for _, o := range list[:min(len(list), maxNotes)] {
			*o.used = true
			switch {
			case o == p || o.problem.ok() && p.problem.ok() && reflect.DeepEqual(o.terminate, p.terminate):
			case p.problem.ok() && !o.problem.ok():
				o.note("%s is served by %s, because this one cannot be used%s", short(name), p.key, whose)
			default:
				o.note("%s is served by %s, which comes first%s", short(name), p.key, whose)
			}
		}
	}
}
