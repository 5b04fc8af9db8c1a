package emissary

import (
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
	isHost    bool
	used      *bool
}

// providers are found by the names that they are for. The most specific name counts
// first; then a TLSContext before a Host, one of the own Namespace before others, and
// the older one.
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
	all  []*provider
	byNS map[string]*provider // the first of each Namespace
}

func (r *ranked) add(p *provider) {
	if r.byNS == nil {
		r.byNS = map[string]*provider{}
	}
	if _, there := r.byNS[p.ns]; !there {
		r.byNS[p.ns] = p
	}
	r.all = append(r.all, p)
}

func (r *ranked) first(ns string) *provider {
	if p := r.byNS[ns]; p != nil {
		return p
	}
	if len(r.all) > 0 {
		return r.all[0]
	}
	return nil
}

func (c *candidates) add(p *provider) {
	if p.isHost {
		c.hosts.add(p)
	} else {
		c.contexts.add(p)
	}
}

func (c *candidates) first(ns string) *provider {
	if p := c.contexts.first(ns); p != nil {
		return p
	}
	return c.hosts.first(ns)
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
			if o != p && !(o.problem.ok() && p.problem.ok() && reflect.DeepEqual(o.terminate, p.terminate)) {
				o.note("%s is served by %s, which comes first%s", short(name), p.key, whose)
			}
		}
	}
}
