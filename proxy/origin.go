package proxy

import (
	"hash/maphash"
	"sync/atomic"

	"cardea/api"
)

// An origin is how connections come that came the same way. It is shared and never
// changes.
type origin struct {
	service string      // that is asked for; "" for a foreign Object
	route   *api.Routed // as in api.Arrival
	named   bool        // somebody asked who the client is
	facts   api.Facts   // without IP and Port
	name    string      // the full name of the Service, or the key of the foreign Object
}

// origins are some of those that were seen.
type origins struct {
	seed maphash.Seed
	of   [256]atomic.Pointer[origin]
}

// get returns the origin of an Arrival.
func (o *origins) get(a *api.Arrival) *origin {
	x := origin{service: a.Service, route: a.Route, named: a.Evidence.Kind != api.EvidenceAnonymous, facts: a.Facts}
	x.facts.IP, x.facts.Port = "", 0
	place := &o.of[maphash.Comparable(o.seed, struct {
		route             *api.Routed
		service, listener string
	}{x.route, x.service, x.facts.Listener})%uint64(len(o.of))]
	if known := place.Load(); known != nil && known.isAs(&x) {
		return known
	}
	if x.name = api.ServiceName(x.service); x.isForeign() {
		x.name = x.route.Object.String()
	}
	own := new(origin)
	*own = x
	if x.facts.TLS == nil && x.facts.Proxy == nil && x.facts.API == nil { // or it is of one connection
		place.Store(own)
	}
	return own
}

// isAs reports whether two are the same.
func (o *origin) isAs(x *origin) bool {
	return o == x || o.service == x.service && o.route == x.route && o.named == x.named && o.facts == x.facts
}

// isForeign reports whether it leads to an Object of another system, where the routing
// table sent it.
func (o *origin) isForeign() bool { return o.service == "" && o.route != nil }

// anonymous reports whether nobody asked who the client is.
func (o *origin) anonymous() bool { return o.isForeign() || !o.named }

// kind is that of the Object that it leads to.
func (o *origin) kind() string {
	if o.isForeign() {
		return o.route.Object.Kind
	}
	return api.KindService
}

// object is the key of what it leads to.
func (o *origin) object() api.Key {
	if o.isForeign() {
		return o.route.Object
	}
	return api.Key{Group: api.GroupCore, Kind: api.KindService, Name: o.name}
}
